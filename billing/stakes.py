"""Workers' stakes as the chain shows them."""

import datetime as dt
import enum
import uuid

import msgspec


class StakeState(enum.StrEnum):
    """REGISTERED until it is seen on the chain; REFUSED is not a stake for this network."""

    REGISTERED = "registered"
    LIVE = "live"
    SLASHED = "slashed"
    REFUSED = "refused"


class StakeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What a stake's data said at a masterchain block; amounts in nano, `unbond_at` Unix seconds of the chain."""

    seqno: int
    at: dt.datetime
    slashed: bool
    owner: str
    staked_key: bytes
    operator_key: bytes
    unbond_s: int
    bond_nano: int
    unbonding_nano: int
    unbond_at: int


class Stake(msgspec.Struct, frozen=True, kw_only=True):
    """A stake in our table: the worker whose keyset names it, and what was last seen of it."""

    address: str
    worker_id: uuid.UUID
    state: StakeState
    bond_nano: int
    unbonding_nano: int
    unbond_at: int
    unbond_s: int | None
    owner: str | None
    staked_key: bytes | None
    operator_key: bytes | None
    seen_seqno: int | None
    seen_at: dt.datetime | None
