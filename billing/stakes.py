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


class Headroom(msgspec.Struct, frozen=True, kw_only=True):
    """What a stake covers as of the block that was seen last: nothing unless it is live and unchallenged."""

    address: str
    worker_id: uuid.UUID
    state: StakeState
    headroom_nano: int


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """A stake beside what is exposed under it: earnings of the audit window, and what processes hold for dispatches."""

    address: str
    worker_id: uuid.UUID
    name: str | None
    state: StakeState
    bond_nano: int
    unbonding_nano: int
    headroom_nano: int
    earned_nano: int
    covered_nano: int


class CoverTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How stakes are shared; seconds. `ttl_s` is how long a holder may dispatch without hearing from the store.

    What it was granted counts against others for `linger_s` longer: the longest request, and the longest that its
    settlement takes. Earnings stay exposed for `window_s`.
    """

    ttl_s: float = 30.0
    linger_s: float = 900.0
    window_s: float = 86_400.0


class CoverRequest(msgspec.Struct, frozen=True):
    """A holder's claim on a stake: what it uses, what it keeps until it hears the answer, what it wants beyond use."""

    address: str
    used_nano: int
    kept_nano: int
    wanted_nano: int
