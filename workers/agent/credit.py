"""How much the operator may owe this worker before it takes no more jobs (PROTOCOL §6, `operator_credit_max`).

What is owed is what the operator has signed that it charged for this worker's answers (countersignatures, in the
receipt store), less the fee, less what the worker's wallet was paid since. What was paid stands in a file that the
worker's own look at the chain keeps up (`cocoon worker payout watch`); while that is not kept up, nothing more counts
as paid. One wallet for each worker: the payments of a shared one would count for every worker of it.
"""

from pathlib import Path

import structlog

from cocoon.errors import MalformedError
from cocoon.money import BASIS_POINTS, NUMERATOR_PER_NANO
from cocoon.paid import PAID_BYTES_MAX, Paid
from workers.agent.receipt_store import ReceiptStore

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class OperatorCredit:
    """The limit of one agent; `max_nano` None is no limit. `refresh` belongs to every heartbeat."""

    def __init__(self, store: ReceiptStore, *, max_nano: int | None, path: Path | None, global_id: int | None) -> None:
        assert (max_nano is None) == (path is None), "a limit needs to know what was paid"
        self._store = store
        self._max_nano = max_nano
        self._path = path
        self._global_id = global_id
        self._paid: Paid | None = None
        self._troubled = False
        self._accepted = True

    @property
    def owed_nano(self) -> int:
        """What was earned and not paid; below zero where a payment was for what others earned."""
        paid, fee_bps = (0, 0) if self._paid is None else (self._paid.paid_nano, self._paid.fee_bps)
        earned = self._store.charged_numerator * (BASIS_POINTS - fee_bps) // (BASIS_POINTS * NUMERATOR_PER_NANO)
        before = self._store.paid_before_nano
        return earned - (0 if before is None else paid - before)

    @property
    def accepting(self) -> bool:
        """Whether the operator has credit for one more job."""
        return self._max_nano is None or self.owed_nano <= self._max_nano

    async def refresh(self) -> None:
        """Look at the file again. While it cannot be read, or goes back, the last good figure stands.

        Raises:
            ReceiptStoreError: what was paid before cannot be kept.
        """
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                paid = self._checked(Paid.decode(file.read(PAID_BYTES_MAX + 1)))
            self._troubled = False
        except (OSError, MalformedError) as error:
            if not self._troubled:
                _log.warning("paid_file_unreadable", path=str(self._path), reason=str(error))
            self._troubled = True
        else:
            if self._store.paid_before_nano is None:
                await self._store.keep_paid_before(paid.paid_nano)
            self._paid = paid
        if self.accepting != self._accepted:
            self._accepted = self.accepting
            event = "operator_paid" if self._accepted else "operator_owes_too_much"
            _log.warning(event, owed_nano=self.owed_nano, max_nano=self._max_nano)

    def _checked(self, paid: Paid) -> Paid:
        last = self._paid
        if self._global_id is not None and paid.global_id != self._global_id:
            raise MalformedError("of another network")
        if last is not None and (paid.payout, paid.wallet) != (last.payout, last.wallet):
            raise MalformedError("of another contract or wallet than before")
        if last is not None and paid.paid_nano < last.paid_nano:
            raise MalformedError("less than before")
        return paid
