"""Transfers of one transaction and what they add to the accounts: collected first, written in one go."""

import datetime as dt
import uuid

import msgspec

from billing.ledger import Code, Phase
from billing.postgres.pool import Connection
from billing.postgres.statements import load_statements

SQL = load_statements("queries.sql")


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `transfers`; `amount` in nano of the accounts' asset. `lease_id` names the lease it belongs to."""

    day: dt.date
    id: uuid.UUID
    phase: Phase
    code: Code
    debit: int
    credit: int
    amount: int
    pending_id: uuid.UUID | None = None
    body_digest: bytes | None = None
    lease_id: uuid.UUID | None = None


class _Delta(msgspec.Struct):
    debits_posted: int = 0
    credits_posted: int = 0
    debits_pending: int = 0
    credits_pending: int = 0
    numerator: int = 0


class Entries:
    """Collects transfers; every one adds the same to a debit and to a credit side."""

    def __init__(self) -> None:
        self._transfers: list[Transfer] = []
        self._deltas: dict[int, _Delta] = {}

    def __bool__(self) -> bool:
        return bool(self._transfers or self._deltas)

    def add(self, transfer: Transfer) -> None:
        """A transfer that moves at once or reserves."""
        debit, credit = self._delta(transfer.debit), self._delta(transfer.credit)
        if transfer.phase is Phase.PENDING:
            debit.debits_pending += transfer.amount
            credit.credits_pending += transfer.amount
        else:
            assert transfer.phase is Phase.SINGLE, "resolutions need the reserved amount"
            debit.debits_posted += transfer.amount
            credit.credits_posted += transfer.amount
        self._transfers.append(transfer)

    def resolve(self, transfer: Transfer, *, reserved: int) -> None:
        """A transfer that ends a pending one of `reserved` nano."""
        debit, credit = self._delta(transfer.debit), self._delta(transfer.credit)
        debit.debits_pending -= reserved
        credit.credits_pending -= reserved
        if transfer.phase is Phase.POST:
            assert transfer.amount <= reserved, "a post never exceeds what was reserved"
            debit.debits_posted += transfer.amount
            credit.credits_posted += transfer.amount
        self._transfers.append(transfer)

    def add_numerator(self, account_id: int, numerator: int) -> None:
        """Grow an account's cumulative numerator."""
        if numerator:
            self._delta(account_id).numerator += numerator

    async def write(self, connection: Connection) -> None:
        """Insert the transfers and update the accounts, which the caller has locked."""
        rows = self._transfers
        await connection.execute(
            SQL["insert_transfers"],
            [row.day for row in rows],
            [row.id for row in rows],
            [row.phase.value for row in rows],
            [row.code.value for row in rows],
            [row.pending_id for row in rows],
            [row.debit for row in rows],
            [row.credit for row in rows],
            [row.amount for row in rows],
            [row.body_digest for row in rows],
            [row.lease_id for row in rows],
        )
        deltas = self._deltas
        await connection.execute(
            SQL["add_to_accounts"],
            list(deltas),
            [delta.debits_posted for delta in deltas.values()],
            [delta.credits_posted for delta in deltas.values()],
            [delta.debits_pending for delta in deltas.values()],
            [delta.credits_pending for delta in deltas.values()],
            [delta.numerator for delta in deltas.values()],
        )

    def _delta(self, account_id: int) -> _Delta:
        delta = self._deltas.get(account_id)
        if delta is None:
            delta = self._deltas[account_id] = _Delta()
        return delta
