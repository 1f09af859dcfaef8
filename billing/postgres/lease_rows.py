"""A locked row of `leases`, and the transfers that change what it holds."""

import datetime as dt
import uuid

import msgspec

from billing import ledger
from billing.ledger import Code, Phase
from billing.postgres.entries import Entries, Transfer
from billing.postgres.pool import Record
from billing.postgres.statements import load_statements

LEASE_SQL = load_statements("leases.sql")


class LeaseRow(msgspec.Struct, kw_only=True):
    """One lease while it is locked; `amount` in nano."""

    lease_id: uuid.UUID
    customer_id: uuid.UUID
    asset: str
    fence: int
    state: str
    available_id: int
    leased_id: int
    amount: int
    version: int
    pending_day: dt.date | None
    pending_id: uuid.UUID | None
    change_seq: int
    change_delta: int
    today: dt.date

    def roll_over(self, entries: Entries, *, consumed: int, amount: int) -> None:
        """End the pending transfer, posting what was consumed, and reserve `amount` by the next one."""
        if self.pending_id is not None:
            assert self.pending_day is not None, "a pending transfer has a day"
            assert consumed <= self.amount, "no lease pays more than it has"
            phase = Phase.POST if consumed else Phase.VOID
            entries.resolve(
                self._transfer(
                    self.pending_day, phase, consumed or self.amount, self.version, pending_id=self.pending_id
                ),
                reserved=self.amount,
            )
        else:
            assert not consumed, "no lease pays out of nothing"
        self.amount = amount
        self.version += 1
        self.pending_day, self.pending_id = None, None
        if amount:
            pending = self._transfer(self.today, Phase.PENDING, amount, self.version)
            entries.add(pending)
            self.pending_day, self.pending_id = pending.day, pending.id

    def expire(self, entries: Entries, recovery_id: int) -> None:
        """Move what is left from the lease to the customer's recovery account."""
        if self.pending_id is not None:
            assert self.pending_day is not None, "a pending transfer has a day"
            entries.resolve(
                self._transfer(self.pending_day, Phase.EXPIRE, self.amount, self.version, pending_id=self.pending_id),
                reserved=self.amount,
            )
            entries.add(self._move(self.available_id, recovery_id, self.amount))

    def draw(self, entries: Entries, recovery_id: int, nano: int) -> None:
        """Pay a late row out of recovery."""
        assert nano <= self.amount, "recovery is never overdrawn"
        entries.add(self._move(recovery_id, self.leased_id, nano))
        self.amount -= nano
        self.version += 1

    def return_rest(self, entries: Entries, recovery_id: int) -> None:
        """Give the customer back what nobody claimed in time."""
        if self.amount:
            entries.add(self._move(recovery_id, self.available_id, self.amount))

    def _move(self, debit: int, credit: int, nano: int) -> Transfer:
        return Transfer(
            day=self.today,
            id=ledger.lease_transfer_id(self.lease_id, self.version, Phase.SINGLE),
            phase=Phase.SINGLE,
            code=Code.RECOVERY,
            debit=debit,
            credit=credit,
            amount=nano,
            lease_id=self.lease_id,
        )

    def _transfer(
        self, day: dt.date, phase: Phase, nano: int, version: int, *, pending_id: uuid.UUID | None = None
    ) -> Transfer:
        return Transfer(
            day=day,
            id=ledger.lease_transfer_id(self.lease_id, version, phase),
            phase=phase,
            code=Code.LEASE,
            pending_id=pending_id,
            debit=self.available_id,
            credit=self.leased_id,
            amount=nano,
            lease_id=self.lease_id,
        )


def read_lease(row: Record) -> LeaseRow:
    """A row of `lock_leases` or `lock_due_leases`."""
    return LeaseRow(**{name: row[name] for name in LeaseRow.__struct_fields__})
