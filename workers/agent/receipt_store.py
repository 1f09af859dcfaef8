"""Keeps signed receipts in SQLite until the gateway has judged them: the second copy of what is owed.

One file, one thread, one transaction for whatever waits (a group commit): the event loop only ever hands over and is
told. In WAL mode with `synchronous = NORMAL` a commit survives the death of this process in any way; a power cut can
take what came after the last checkpoint, which runs within `CHECKPOINT_S`. A flush to disk for each answer would cost
more than it saves: a receipt is needed only when the gateway loses its own copy in the same moment.

Beside the receipts lie the gateway's signatures: of the ticket that each was made under, and, once it was judged, of
what it was charged. With them a receipt proves itself to others than the gateway.

The store is bounded. What the gateway has judged is kept for `ACKNOWLEDGED_S_MAX` and goes first when room is needed;
what it has not judged is never dropped: when that fills the store, or the disk refuses, the agent takes no more jobs.
The sum of what was charged outlives the signatures that it was added up from.
"""

import asyncio
import enum
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
import structlog

from cocoon.clock import Clock, unix_ms
from cocoon.errors import CocoonError
from cocoon.receipt_batch import DeliveredReceipt, ReceiptBatch, Verdict
from cocoon.signed_batch import Countersignature, SignedBatch
from cocoon.sql import named_statements
from workers.agent.receipts import SignedReceipt

GRACE_S = 5.0
"""How long after its job a receipt is sent: by then the gateway has settled by itself."""
ROWS_MAX = 200_000
"""About 300 MB. Receipts that the gateway has not judged yet, plus acknowledged ones where there is room."""
RESERVED_ROWS = 8192
"""Room for the jobs that run when the store fills up: at least twice the largest capacity."""
ACKNOWLEDGED_S_MAX = 24 * 3600
COMMIT_ROWS_MAX = 256
"""Rows of one transaction: about 2 ms."""
CHECKPOINT_S = 1.0
RETRY_S = 1.0
"""After a failed write."""
BATCH_BYTES_MAX = 512 * 1024
"""Of receipts sent together, before their encoding makes them a third larger."""
BATCH_KEYSETS_MAX = 8

SIGNATURES_S_MIN = 3600
"""A signature without a receipt is kept this long: its job may still be running."""
UNSIGNED_MAX = 100_000
"""Unsigned tickets that are taken up after a restart."""
_CREATED = (
    "create_keysets", "create_receipts", "create_due_index", "create_acknowledged_index", "create_ticket_index",
    "create_batches", "create_signatures", "create_charged", "begin_charged",
)  # fmt: skip
_SQL = named_statements(files("workers.agent").joinpath("receipts.sql").read_text(encoding="utf-8"))
_log: structlog.stdlib.BoundLogger = structlog.get_logger()
Answer = TypeVar("Answer")


class ReceiptStoreError(CocoonError):
    """The receipts cannot be kept where they should be."""

    code: ClassVar[str] = "receipt_store_unusable"


class KeptReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt with all that its judge needs: the headers of its job, and the keyset that signed it."""

    signed: SignedReceipt
    ticket: str
    stub: str
    keyset: bytes
    keyset_digest: bytes


class SignatureKind(enum.StrEnum):
    """What a signed leaf is."""

    TICKET = "ticket"
    COUNTERSIGNATURE = "countersignature"


class KeptSignature(msgspec.Struct, frozen=True, kw_only=True):
    """A verified leaf of a signed batch, with the way to its root; both kinds are found by the ticket's digest."""

    ticket_sha256: bytes
    kind: SignatureKind
    leaf: bytes
    index: int
    path: bytes
    batch: SignedBatch


class UnsignedReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt whose ticket was not signed when the agent stopped; `age_s` is the receipt's."""

    ticket: str
    stub: str
    keyset_digest: bytes
    age_s: float


class DueReceipts(msgspec.Struct, frozen=True, kw_only=True):
    """Receipts to be sent together: their row ids, how often each was sent before, and the batch."""

    ids: tuple[int, ...]
    tries: tuple[int, ...]
    batch: ReceiptBatch


class ReceiptStore:
    """One agent's receipts. `folder` None keeps them in memory: they then live as long as the process.

    Raises:
        ReceiptStoreError: the file cannot be opened, or another agent has it open.
    """

    def __init__(
        self, folder: Path | None, name: str, clock: Clock, *, grace_s: float = GRACE_S, rows_max: int = ROWS_MAX
    ) -> None:
        self._clock = clock
        self._grace_ms = int(grace_s * 1000)
        self._rows_max = rows_max
        self._reserved = min(RESERVED_ROWS, rows_max // 2)
        self._connection = _open(folder, name)
        self._executor = ThreadPoolExecutor(1, "receipts")
        self._queue: list[tuple[KeptReceipt, int, asyncio.Future[None]]] = []
        self._writing = False
        self._failing = False
        self._closed = False
        self._retry: asyncio.TimerHandle | None = None
        self._checkpointed = clock.monotonic()
        self._unflushed = False
        self._rows: int = self._connection.execute(_SQL["count_all"]).fetchone()[0]
        self._unacknowledged: int = self._connection.execute(_SQL["count_unacknowledged"]).fetchone()[0]
        charged, paid_before = self._connection.execute(_SQL["read_charged"]).fetchone()
        self._charged = int(charged)
        self._paid_before = None if paid_before is None else int(paid_before)

    @property
    def unacknowledged(self) -> int:
        """Receipts that the gateway has not judged yet."""
        return self._unacknowledged

    @property
    def accepting(self) -> bool:
        """Whether the receipt of one more job is sure to find room."""
        return not self._failing and self._unacknowledged + self._reserved < self._rows_max

    @property
    def charged_numerator(self) -> int:
        """What gateways have signed that was charged for our answers, in 10^-6 nano, since the file is there."""
        return self._charged

    @property
    def paid_before_nano(self) -> int | None:
        """What the worker's wallet had been paid when that was first looked at; None before."""
        return self._paid_before

    def keep(self, receipt: KeptReceipt) -> "asyncio.Future[None]":
        """Hand over a receipt, to be sent after the grace. The future is done when it is committed."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((receipt, unix_ms(self._clock.now()) + self._grace_ms, committed))
        self._unacknowledged += 1
        self._write()
        return committed

    async def due(self, limit: int) -> DueReceipts | None:
        """Up to `limit` receipts whose time has come, oldest first; None when there is none."""
        rows = await self._run(lambda: self._list_due(unix_ms(self._clock.now()), limit))
        return _due(rows) if rows else None

    async def acknowledge(self, ids: Sequence[int], verdicts: Sequence[Verdict]) -> None:
        """Note final verdicts; these receipts are not sent again."""
        now = unix_ms(self._clock.now())
        rows = [_bound(now, verdict.value, row) for row, verdict in zip(ids, verdicts, strict=True)]
        await self._run(lambda: self._transact([("acknowledge", rows)]))
        self._unacknowledged -= len(rows)
        await self._run(lambda: self._forget(now))

    async def postpone(self, ids: Sequence[int], seconds: Sequence[float]) -> None:
        """Send these again, each after its seconds."""
        now = unix_ms(self._clock.now())
        rows = [_bound(now + int(wait * 1000), row) for row, wait in zip(ids, seconds, strict=True)]
        await self._run(lambda: self._transact([("postpone", rows)]))

    async def keep_signatures(self, signatures: Sequence[KeptSignature]) -> None:
        """Keep verified signatures beside their receipts; returns when they are committed.

        Raises:
            ReceiptStoreError: the file cannot be written.
        """
        now = unix_ms(self._clock.now())
        await self._run(lambda: self._insert_signatures(signatures, now))

    async def keep_paid_before(self, nano: int) -> None:
        """Note what had been paid before this file counted anything.

        Raises:
            ReceiptStoreError: the file cannot be written.
        """
        await self._run(lambda: self._transact([("set_paid_before", [_bound(str(nano))])]))
        self._paid_before = nano

    async def signatures(self, ticket_sha256: bytes) -> dict[SignatureKind, KeptSignature]:
        """What is signed about a ticket and its receipt: the evidence that a slashing or a claim would carry.

        Raises:
            ReceiptStoreError: the file cannot be read.
        """
        rows = await self._run(
            lambda: self._connection.execute(_SQL["list_signatures"], _bound(ticket_sha256)).fetchall()
        )
        found = [_kept_signature(row) for row in rows]
        return {one.kind: one for one in found}

    async def unsigned(self, age_s_max: float, limit: int = UNSIGNED_MAX) -> list[UnsignedReceipt]:
        """Receipts younger than this whose tickets have no signature and were not refused, oldest first.

        Raises:
            ReceiptStoreError: the file cannot be read.
        """
        now = unix_ms(self._clock.now())
        bound = _bound(now - int(age_s_max * 1000), Verdict.REFUSED.value, limit)
        rows = await self._run(lambda: self._connection.execute(_SQL["list_unsigned"], bound).fetchall())
        return [
            UnsignedReceipt(
                ticket=ticket, stub=stub, keyset_digest=digest, age_s=max(0.0, (now - kept_at) / 1000)
            )
            for ticket, stub, digest, kept_at in rows
        ]  # fmt: skip

    async def aclose(self) -> None:
        """Commit what waits, and close the file."""
        while (self._queue or self._writing) and not self._failing:
            await self._run(lambda: None)
            await asyncio.sleep(0)
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._queue:
            _log.error("receipts_not_kept", count=len(self._queue))
        await self._run(self._connection.close)
        self._executor.shutdown(wait=True)

    # The event loop's side

    def _write(self) -> None:
        """Start a transaction with what waits, unless one is under way: the next one takes the rest."""
        self._retry = None
        if self._writing or not self._queue or self._closed:
            return
        self._writing = True
        batch, self._queue = self._queue[:COMMIT_ROWS_MAX], self._queue[COMMIT_ROWS_MAX:]
        now = unix_ms(self._clock.now())
        work = asyncio.get_running_loop().run_in_executor(self._executor, lambda: self._insert(batch, now))
        work.add_done_callback(lambda done: self._written(batch, done))

    def _written(
        self, batch: list[tuple[KeptReceipt, int, "asyncio.Future[None]"]], done: "asyncio.Future[None]"
    ) -> None:
        self._writing = False
        error = None if done.cancelled() else done.exception()
        if error is not None:
            # Kept in memory and tried again; meanwhile no new job is taken.
            if not self._failing:
                _log.error("receipts_write_failed", error=str(error), waiting=len(batch) + len(self._queue))
            self._failing = True
            self._queue = batch + self._queue
            if not self._closed:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._write)
            return
        self._failing = False
        for _, _, committed in batch:
            if not committed.done():
                committed.set_result(None)
        self._write()

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except sqlite3.Error as error:
            raise ReceiptStoreError(f"the receipts cannot be read or written: {error}") from error

    # The thread's side

    def _insert(self, batch: list[tuple[KeptReceipt, int, "asyncio.Future[None]"]], now: int) -> None:
        keysets = {receipt.keyset_digest: receipt.keyset for receipt, _, _ in batch}
        self._transact([
            ("put_keyset", [_bound(digest, raw) for digest, raw in keysets.items()]),
            ("insert_receipt", [_receipt_row(receipt, now, due_at) for receipt, due_at, _ in batch]),
        ])  # fmt: skip
        self._rows += len(batch)
        if self._rows > self._rows_max:
            self._forget(now)
        self._unflushed = True
        self._checkpoint()

    def _insert_signatures(self, signatures: Sequence[KeptSignature], now: int) -> None:
        batches = {one.batch.head: one.batch for one in signatures}
        charged = self._charged + self._newly_charged(signatures)
        self._transact([
            (
                "put_batch",
                [_bound(batch.head, batch.signature, batch.delegation) for batch in batches.values()],
            ),
            (
                "put_signature",
                [
                    _bound(one.ticket_sha256, one.kind.value, one.leaf, one.index, one.path, one.batch.head, now)
                    for one in signatures
                ],
            ),
            ("set_charged", [_bound(str(charged))]),
        ])  # fmt: skip
        self._charged = charged
        self._unflushed = True
        self._checkpoint()

    def _newly_charged(self, signatures: Sequence[KeptSignature]) -> int:
        """The sum of those countersignatures, in 10^-6 nano, that are not kept yet: each counts once."""
        shown = {one.ticket_sha256: one.leaf for one in signatures if one.kind is SignatureKind.COUNTERSIGNATURE}
        return sum(
            Countersignature.decode(leaf).charge_numerator
            for ticket, leaf in shown.items()
            if not self._connection.execute(
                _SQL["has_signature"], _bound(ticket, SignatureKind.COUNTERSIGNATURE.value)
            ).fetchone()
        )

    def _checkpoint(self) -> None:
        """Flush to the disk what was committed."""
        if self._unflushed and self._clock.monotonic() - self._checkpointed >= CHECKPOINT_S:
            self._checkpointed = self._clock.monotonic()
            self._unflushed = False
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _list_due(self, now: int, limit: int) -> list[tuple[object, ...]]:
        self._checkpoint()
        return self._connection.execute(_SQL["list_due"], _bound(now, limit)).fetchall()

    def _transact(self, work: list[tuple[str, list[dict[str, object]]]]) -> int:
        """Run statements for many rows each, all or nothing; returns how many rows the last one changed."""
        changed = 0
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for name, rows in work:
                changed = self._connection.executemany(_SQL[name], rows).rowcount
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return changed

    def _forget(self, now: int) -> None:
        """Make room: what was acknowledged long ago, then, above the limit, what was acknowledged first."""
        old = self._transact([("forget_old", [_bound(now - ACKNOWLEDGED_S_MAX * 1000)])])
        self._rows -= old
        excess = self._rows - self._rows_max
        if excess > 0:
            # A hundredth more, so that a full store does not forget one by one.
            limit = excess + self._rows_max // 100
            self._rows -= self._transact([("forget_excess", [_bound(limit)])])
        if old:
            self._transact([("forget_keysets", [_bound()])])
        if old or excess > 0:
            self._transact([
                ("forget_signatures", [_bound(now - SIGNATURES_S_MIN * 1000)]), ("forget_batches", [_bound()]),
            ])  # fmt: skip


def _open(folder: Path | None, name: str) -> sqlite3.Connection:
    """The database, ours alone: a second agent on it would deliver our receipts as its own.

    Only this module's thread uses the connection once it is open.
    """
    try:
        if folder is None:
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"receipts-{name}.sqlite3"
            path.touch(mode=0o600)
            connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
                connection.execute(f"PRAGMA {pragma}")
            for statement in _CREATED:
                connection.execute(_SQL[statement])
            # Found out now, and not by the receipt that is lost in it.
            [(found,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise sqlite3.DatabaseError(f"the file is damaged: {found}")
        except sqlite3.Error:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as error:
        raise ReceiptStoreError(f"receipts cannot be kept in {folder}: {error}") from error
    return connection


def _bound(*values: object) -> dict[str, object]:
    """Values of `$1`, `$2`, ... as SQLite binds them: by name."""
    return {str(number): value for number, value in enumerate(values, 1)}


def _receipt_row(receipt: KeptReceipt, now: int, due_at: int) -> dict[str, object]:
    signed = receipt.signed
    return _bound(
        receipt.keyset_digest, receipt.ticket, receipt.stub, signed.head, signed.signature, signed.body, now, due_at
    )


def _due(rows: Sequence[tuple[object, ...]]) -> DueReceipts:
    """As many rows as fit into one batch."""
    keysets: dict[bytes, int] = {}
    ids: list[int] = []
    tries: list[int] = []
    receipts: list[DeliveredReceipt] = []
    size = 0
    for row in rows:
        due = msgspec.convert(row, _DueRow)
        size += len(due.ticket) + len(due.stub) + len(due.head) + len(due.signature) + len(due.body)
        if receipts and (size > BATCH_BYTES_MAX or (due.keyset not in keysets and len(keysets) >= BATCH_KEYSETS_MAX)):
            break
        ids.append(due.id)
        tries.append(due.tries)
        receipts.append(
            DeliveredReceipt(
                keyset=keysets.setdefault(due.keyset, len(keysets)), ticket=due.ticket, stub=due.stub, head=due.head,
                signature=due.signature, body=due.body,
            )
        )  # fmt: skip
    return DueReceipts(
        ids=tuple(ids), tries=tuple(tries), batch=ReceiptBatch(keysets=tuple(keysets), receipts=tuple(receipts))
    )


class _DueRow(msgspec.Struct, frozen=True, array_like=True):
    """Columns in the order of `list_due`."""

    id: int
    tries: int
    ticket: str
    stub: str
    head: bytes
    signature: bytes
    body: bytes
    keyset: bytes


def _kept_signature(row: Sequence[object]) -> KeptSignature:
    """Columns in the order of `list_signatures`."""
    found = msgspec.convert(row, _SignatureRow)
    return KeptSignature(
        ticket_sha256=found.ticket_sha256, kind=SignatureKind(found.kind), leaf=found.leaf, index=found.leaf_index,
        path=found.path, batch=SignedBatch(head=found.head, signature=found.signature, delegation=found.delegation),
    )  # fmt: skip


class _SignatureRow(msgspec.Struct, frozen=True, array_like=True):
    ticket_sha256: bytes
    kind: str
    leaf: bytes
    leaf_index: int
    path: bytes
    head: bytes
    signature: bytes
    delegation: bytes
