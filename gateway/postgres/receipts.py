"""Receipts in Postgres: kept as agents deliver them, read by the customers that paid, dropped by the day."""

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from importlib.resources import files

import msgspec
import structlog

from audit.entries import Entry, LeafType, entry_of, receipt_envelope
from audit.postgres.queue import enqueue_digests
from billing.postgres.pool import Connection, Pool, Record, acquired, transaction
from billing.postgres.slashing import keep_evidence
from billing.slashing import StakeEvidence
from cocoon.addresses import Address
from cocoon.bundle import Batched, Countersigned, ReceiptBundle
from cocoon.cells import Cell, write_boc
from cocoon.contracts.stake import Evidence, EvidenceKind
from cocoon.ids import job_day
from cocoon.receipt import ReceiptHead
from cocoon.signed_batch import BatchHead, Proof, SignedBatch
from cocoon.sql import named_statements
from cocoon.ticket import Ticket

SLOTS_MAX = 10_000
"""Slots that one statement forgets."""
_SEQ_BYTES = 8
_HASH_BYTES = 32
log = structlog.get_logger()
_SQL = named_statements(files("gateway.postgres").joinpath("receipts.sql").read_text(encoding="utf-8"))


class Proofs(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway signed about a receipt: its ticket, and what it was charged (the leaf's 64 bytes)."""

    batch: SignedBatch
    ticket: Proof
    charge_leaf: bytes | None
    charge: Proof | None


class AuthenticReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt that was verified, and whose it is. `relevant` is false for one that the books know another head of.

    `named` says who answers for its key with a stake; None where nobody does.
    """

    job_id: uuid.UUID
    attempt: int
    worker_id: uuid.UUID
    customer_id: uuid.UUID
    receipt_pk: bytes
    named: Evidence | None
    keyset_digest: bytes
    head: bytes
    signature: bytes
    body: bytes
    ticket: bytes
    relevant: bool
    proofs: Proofs | None

    @property
    def slot(self) -> bytes:
        """The receipt key and the number under it, which stand for one head for ever."""
        return self.receipt_pk + ReceiptHead.decode(self.head).seq.to_bytes(_SEQ_BYTES, "big")

    @property
    def entry(self) -> Entry:
        """What the log says of it."""
        return entry_of(LeafType.RECEIPT, receipt_envelope(self.receipt_pk, self.head, self.signature))


class StoredReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt as it is answered, without its place in the log and its manifest, and the entry to look for there."""

    bundle: ReceiptBundle
    entry: Entry


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What the books know of a job without a receipt; `age_s` since it ended."""

    is_theirs: bool
    by_worker: bool
    age_s: float


class ReceiptBook:
    """Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def keep(self, receipts: Sequence[AuthenticReceipt]) -> list[int]:
        """Keep authentic receipts and queue their entries for the log, all or nothing. Keeping them again adds nothing.

        Returns the indices of receipts that equivocate: another head is known under their key and number. Both heads
        with their signatures are evidence now. What costs a stake is kept as its contract takes it (`slash_evidence`).
        """
        if not receipts:
            return []
        async with transaction(self._pool) as connection:
            equivocating = await _keep_slots(connection, receipts)
            await _keep_receipts(connection, [one for one in receipts if one.relevant])
            await keep_evidence(connection, [used for one in receipts if (used := _over_use(one)) is not None])
        return equivocating

    async def find(self, customer_id: uuid.UUID, job_id: uuid.UUID) -> StoredReceipt | None:
        """The receipt of a customer's job (UUIDv7)."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["read_receipt"], job_day(job_id), job_id, customer_id)
        return None if row is None else _stored(job_id, row)

    async def answered(self, customer_id: uuid.UUID, job_id: uuid.UUID) -> Answered | None:
        """What the books know of a job (UUIDv7) that may be this customer's."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["read_answered"], job_day(job_id), job_id, customer_id)
        if row is None:
            return None
        return Answered(is_theirs=row["is_theirs"], by_worker=row["by_worker"], age_s=row["age_s"])

    async def forget(self, days: int) -> int:
        """Drop receipts of days more than `days` days ago; returns how many partitions went."""
        async with acquired(self._pool) as connection:
            dropped: int = await connection.fetchval(_SQL["drop_old_receipts"], days)
            while await connection.execute(_SQL["delete_old_slots"], days, SLOTS_MAX) == f"DELETE {SLOTS_MAX}":
                pass
        return dropped


async def _keep_slots(connection: Connection, receipts: Sequence[AuthenticReceipt]) -> list[int]:
    slots, heads = [one.slot for one in receipts], [one.head for one in receipts]
    days = [job_day(one.job_id) for one in receipts]
    await connection.execute(_SQL["keep_slots"], slots, heads, [one.signature for one in receipts], days)
    found: list[int] = []
    for row in await connection.fetch(_SQL["find_equivocating"], slots, heads):
        at: int = row["place"] - 1
        second = receipts[at]
        await connection.execute(
            _SQL["insert_equivocation"], second.slot, second.worker_id, row["head"], row["signature"], second.head,
            second.signature,
        )  # fmt: skip
        if second.named is not None:
            cell = second.named.equivocation((row["head"], row["signature"]), (second.head, second.signature))
            await keep_evidence(connection, [_evidence(second, EvidenceKind.EQUIVOCATION, cell)])
        found.append(at)
    return found


def _over_use(one: AuthenticReceipt) -> StakeEvidence | None:
    """What shows that a receipt says more than its ticket; None where it does not, or where nobody could sign that."""
    ticket, used = Ticket.decode(one.ticket), ReceiptHead.decode(one.head).usage
    if one.named is None or (used.prompt <= ticket.max_prompt and used.completion <= ticket.max_completion):
        return None
    if one.proofs is None:
        log.error("over_use_not_provable", worker_id=str(one.worker_id), job_id=str(one.job_id))
        return None
    batch = one.proofs.batch
    cell = one.named.over_use(
        (one.head, one.signature), one.ticket, batch, one.proofs.ticket, size=BatchHead.decode(batch.head).size
    )
    return _evidence(one, EvidenceKind.OVER_USE, cell)


def _evidence(one: AuthenticReceipt, kind: EvidenceKind, cell: Cell) -> StakeEvidence:
    return StakeEvidence(
        stake=str(Address(0, ReceiptHead.decode(one.head).stake)), worker_id=one.worker_id, kind=kind, slot=one.slot,
        job_id=one.job_id, attempt=one.attempt, boc=write_boc(cell),
    )  # fmt: skip


async def _keep_receipts(connection: Connection, receipts: Sequence[AuthenticReceipt]) -> None:
    days: dict[bytes, set[dt.date]] = {}
    batches: dict[bytes, SignedBatch] = {}
    for one in receipts:
        if one.proofs is not None:
            batches[one.proofs.batch.head] = one.proofs.batch
            days.setdefault(one.proofs.batch.head, set()).add(job_day(one.job_id))
    for head, batch in batches.items():
        await connection.execute(_SQL["insert_batch"], sorted(days[head]), head, batch.signature, batch.delegation)
    if receipts:
        rows = await connection.fetch(_SQL["insert_receipts"], *_columns(_row(one) for one in receipts))
        digests = [row["entry_digest"] for row in rows]
        # A countersignature promises a place in the log, whether or not its day is kept here.
        digests += [one.entry.digest for one in receipts if one.proofs is not None and one.proofs.charge is not None]
        await enqueue_digests(connection, LeafType.RECEIPT, list(dict.fromkeys(digests)))


def _columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _row(one: AuthenticReceipt) -> tuple[object, ...]:
    """Values in the order of `insert_receipts`."""
    proofs = one.proofs
    charge = None if proofs is None else proofs.charge
    return (
        job_day(one.job_id), one.job_id, one.attempt, one.worker_id, one.customer_id, one.keyset_digest, one.head,
        one.signature, one.body, one.ticket, one.entry.digest,
        None if proofs is None else proofs.batch.head,
        None if proofs is None else proofs.ticket.index,
        None if proofs is None else b"".join(proofs.ticket.path),
        None if proofs is None else proofs.charge_leaf,
        None if charge is None else charge.index,
        None if charge is None else b"".join(charge.path),
    )  # fmt: skip


def _stored(job_id: uuid.UUID, row: Record) -> StoredReceipt:
    batch = None
    if row["batch_signature"] is not None:
        batch = SignedBatch(head=row["batch_head"], signature=row["batch_signature"], delegation=row["delegation"])
    ticket_signed, countersigned = None, None
    if batch is not None:
        ticket_signed = Batched(batch=batch, proof=_proof(row["ticket_index"], row["ticket_path"]))
        if row["countersignature"] is not None:
            proof = _proof(row["countersignature_index"], row["countersignature_path"])
            countersigned = Countersigned(leaf=row["countersignature"], signed=Batched(batch=batch, proof=proof))
    bundle = ReceiptBundle(
        receipt_id=str(job_id), head=row["head"], signature=row["signature"], body=row["body"], ticket=row["ticket"],
        ticket_signed=ticket_signed, countersigned=countersigned, keyset=row["keyset"], evidence=row["evidence"],
        endorsements=row["endorsements"], manifest=None, log=None, stake=row["stake"],
    )  # fmt: skip
    return StoredReceipt(bundle=bundle, entry=Entry(type=LeafType.RECEIPT, digest=row["entry_digest"]))


def _proof(index: int, path: bytes) -> Proof:
    return Proof(index=index, path=tuple(path[at : at + _HASH_BYTES] for at in range(0, len(path), _HASH_BYTES)))
