"""The `LeaseStore` port and its values: where credit leases and usage rows are kept.

`billing.memory_leases` and `billing.postgres.leases` implement it; one suite tests both. Its one consumer is
`billing.leases`. How much a lease gets is decided here, without a store.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import msgspec

from billing.ceilings import Withheld
from billing.ports import Balance, BillingError, Posted, Settlement
from cocoon.money import Amount, Asset

CHANGES_MAX = 500
"""Lease changes in one call."""
ROWS_MAX = 500
"""Usage rows in one flush."""
SURPLUS_PART = 4
"""Of what is left after the need, one lease gets at most this part ahead: other processes ask too."""


class LeaseLostError(BillingError):
    """The lease expired, was closed or is somebody else's; what it had left may be spent by others."""

    code: ClassVar[str] = "lease_lost"


class LeaseExhaustedError(BillingError):
    """The row costs more than its lease has left: the operator's loss, never an overdraft."""

    code: ClassVar[str] = "lease_exhausted"


class LeaseActiveError(BillingError):
    """A claim without a fence for a lease whose holder is still alive: the holder's own row is on its way."""

    code: ClassVar[str] = "lease_active"
    transient: ClassVar[bool] = True


class LeaseChange(msgspec.Struct, frozen=True, kw_only=True):
    """Open, extend, shrink, renew or close one lease; amounts in nano of `asset`.

    `lease_id` and `seq` are the idempotency key: the same change again answers what it did the first time. `seq` 1
    opens the lease; the holder counts up. The store first takes `give_back_nano`, then grants at least `need_min_nano`
    (or nothing), at best `need_nano` and up to `headroom_nano` ahead. Every change renews the lease for `ttl_s` of
    the store's time.

    `answers_recall` says that nothing idle was kept. `recalled_at` is the store's time of the holder's own recall:
    leases that were given up since then count as answered.
    """

    lease_id: uuid.UUID
    customer_id: uuid.UUID
    asset: Asset
    holder: str
    seq: int
    ttl_s: float
    give_back_nano: int = 0
    need_min_nano: int = 0
    need_nano: int = 0
    headroom_nano: int = 0
    headroom_min_nano: int = 0
    close: bool = False
    answers_recall: bool = False
    recalled_at: dt.datetime | None = None


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a change did: the lease's amount grew by `delta_nano` (or shrank).

    `short`: the minimum was not there, and nothing was granted. `alone`: no other lease of this customer has anything
    that a recall could still bring. `withheld`: why, where the balance had it and the customer's ceiling did not.
    """

    fence: int
    delta_nano: int
    short: bool = False
    alone: bool = False
    withheld: Withheld | None = None


class JournalRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A settlement and the lease that pays for it.

    `fence` is the holder's proof; None is a late claim by somebody else (a recovered receipt), which is paid only out
    of what an expired lease left in recovery.
    """

    settlement: Settlement
    lease_id: uuid.UUID
    fence: int | None


class LeaseStore(Protocol):
    """Leases and the usage journal behind them. Every method is one transaction.

    All raise `LedgerUnavailableError` when the store cannot be reached; then the identical call may be sent again.
    """

    async def change(self, changes: Sequence[LeaseChange]) -> list[LeaseAnswer | BillingError]:
        """Change at most `CHANGES_MAX` leases, each at most once; one answer each, in order.

        Answers `LeaseLostError` and `UnknownCustomerError` as values.
        """
        ...

    async def flush(self, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
        """Post at most `ROWS_MAX` rows; one answer each, in order. A row that was posted before is answered alike.

        What cannot be charged is answered with its error and recorded beside the books: `TransferConflictError` (the
        attempt has another body), `HoldClosedError` (the job was charged under another attempt), `LeaseLostError`,
        `LeaseExhaustedError`, `RecordRefusedError`. `LeaseActiveError` alone is not recorded: try again later.
        """
        ...

    async def find(self, job_id: uuid.UUID, attempt: int) -> tuple[bytes, Posted] | None:
        """The body digest and the amounts of a posted row."""
        ...

    async def recall(self, customer_ids: Sequence[uuid.UUID], holder: str) -> dt.datetime:
        """Ask every other holder to give up what is idle; returns the store's time just before asking."""
        ...

    async def follow_recalls(self, heard: Callable[[uuid.UUID, str], None]) -> None:
        """Hear of recalls (customer, who asks) until cancelled.

        Raises:
            LedgerUnavailableError: the store is gone; what was recalled meanwhile is not heard.
        """
        ...

    async def sweep(self, limit: int, recovery_s: float) -> int:
        """Move up to `limit` expired leases into recovery, or out of it after `recovery_s`; returns how many."""
        ...


class Books(Protocol):
    """The part of a `Ledger` that leases do not touch."""

    async def expire_due(self, limit: int) -> int:
        """See `Ledger.expire_due`."""
        ...

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        """See `Ledger.deposit`."""
        ...

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        """See `Ledger.balance`; `held` includes every lease and what is in recovery."""
        ...


def lease_grant(available_nano: int, change: LeaseChange) -> int:
    """Nano that a change is granted when `available_nano` are there, its own give-back included; never negative.

    The need comes first. What goes ahead of it shrinks with the balance, and stops altogether near zero, so that the
    last nano can be spent through any process.
    """
    if available_nano < max(0, change.need_min_nano):
        return 0
    surplus = available_nano - change.need_nano
    if surplus < max(1, change.headroom_min_nano):
        return min(available_nano, change.need_nano)
    return change.need_nano + min(change.headroom_nano, surplus // SURPLUS_PART)
