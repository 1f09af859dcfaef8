"""The worker's staked key, which stands behind its receipt keys: whoever proves that one of them lied takes the bond.

The key signs one short statement per keyset (PROTOCOL §1) and nothing else. It lives in a file that only the agent's
user may read; what the stake was deployed with lives beside it and is no secret.
"""

import binascii
from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.cells import read_boc, write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, StakeConfig, delegate_receipt_key, stake_init
from cocoon.errors import CocoonError, MalformedError

_OTHERS = 0o077
_SEED_BYTES = 32
CONFIG_BYTES_MAX = 8 * 1024
"""Longest file of a configuration; the cell itself is a fraction of it."""


class StakeUnusableError(CocoonError):
    """The staked key or the configuration of its stake cannot be used."""

    code: ClassVar[str] = "stake_unusable"


class StakedKey:
    """A staked key with the contract that it belongs to, on one chain."""

    def __init__(self, key: Ed25519PrivateKey, config: StakeConfig, *, global_id: int) -> None:
        if key.public_key().public_bytes_raw() != config.staked_key:
            raise StakeUnusableError("the stake was deployed for another staked key")
        self._key = key
        self._global_id = global_id
        self.address = stake_init(code_of(CODE), config).address
        self.config = write_boc(config.encode())

    def delegate(self, receipt_key: bytes, not_after: int) -> bytes:
        """The signature that lets `receipt_key` speak for the stake until `not_after` (Unix seconds)."""
        return delegate_receipt_key(
            self._key,
            global_id=self._global_id,
            stake=self.address.account,
            receipt_key=receipt_key,
            not_after=not_after,
        )


def read_staked_key(key_file: Path, config_file: Path, *, global_id: int) -> StakedKey:
    """The staked key (64 hexadecimal digits) and the configuration (a cell in base64) from their files.

    Raises:
        StakeUnusableError: naming the file that is missing, open to others, or something else.
    """
    try:
        if key_file.stat().st_mode & _OTHERS:
            raise StakeUnusableError(f"{key_file} may be read by others: chmod 600 it")
        seed = bytes.fromhex(key_file.read_text("ascii"))
    except (OSError, ValueError):
        # Without its cause: a message about digits may quote them.
        raise StakeUnusableError(f"{key_file} cannot be read as 64 hexadecimal digits") from None
    if len(seed) != _SEED_BYTES:
        raise StakeUnusableError(f"{key_file} does not hold 64 hexadecimal digits")
    config = read_stake_config(config_file)
    return StakedKey(Ed25519PrivateKey.from_private_bytes(seed), config, global_id=global_id)


def stake_config_text(config: StakeConfig) -> bytes:
    """What a file of a stake's configuration holds."""
    return binascii.b2a_base64(write_boc(config.encode()))


def read_stake_config(path: Path) -> StakeConfig:
    """The configuration in a file.

    Raises:
        StakeUnusableError: it is missing, or something else.
    """
    try:
        with path.open("rb") as file:
            raw = binascii.a2b_base64(file.read(CONFIG_BYTES_MAX).strip(), strict_mode=True)
        return StakeConfig.decode(read_boc(raw))
    except OSError as error:
        raise StakeUnusableError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, MalformedError) as error:
        raise StakeUnusableError(f"{path} is not a stake's configuration in base64") from error
