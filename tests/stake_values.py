"""A worker's stake as tests deploy it: on paper."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.contracts.stake import StakeConfig
from workers.agent.staking import StakedKey

GLOBAL_ID = -3
STAKED_SEED = b"\x11" * 32
STAKED = Ed25519PrivateKey.from_private_bytes(STAKED_SEED)
OPERATOR_KEY = Ed25519PrivateKey.from_private_bytes(b"\x22" * 32).public_key().public_bytes_raw()
OPERATOR = Address(0, b"\x33" * 32)


def a_stake_config(**changes: Any) -> StakeConfig:
    members: dict[str, Any] = {
        "owner": Address(0, b"\x44" * 32), "operator": OPERATOR,
        "staked_key": STAKED.public_key().public_bytes_raw(), "operator_key": OPERATOR_KEY,
        "unbond_s": 86_400, "bounty_bps": 1_000, "salt": b"\x55" * 32,
    }  # fmt: skip
    return StakeConfig(**{**members, **changes})


def a_staked_key(global_id: int = GLOBAL_ID, **changes: Any) -> StakedKey:
    return StakedKey(STAKED, a_stake_config(**changes), global_id=global_id)
