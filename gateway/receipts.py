"""What happens to receipts that an agent delivers: judged, countersigned, kept, and only then answered for.

The countersignature promises a place in the log. So the receipt and its row in the log's queue are durable before
anybody sees the promise; what was signed and could not be kept is thrown away, and the agent delivers again.
"""

import uuid
from collections.abc import Sequence

import msgspec
import structlog

from audit.errors import LogUnavailableError, NotLoggedError
from audit.postgres.reader import LogReader
from billing.postgres.recoveries import Recoveries
from cocoon import canonical
from cocoon.bundle import Inclusion, ReceiptBundle
from cocoon.clock import Clock
from cocoon.errors import MalformedError
from cocoon.ids import job_day
from cocoon.receipt import ReceiptBody
from cocoon.receipt_batch import ReceiptBatch, ReceiptVerdicts
from cocoon.signed_batch import SignedBatch
from cocoon.transparency import DIGEST_BYTES, Entry, LeafType
from gateway.errors import GatewayError
from gateway.postgres.receipts import AuthenticReceipt, Proofs, ReceiptBook, StoredReceipt
from gateway.recovery import Judgement, Reconciler
from gateway.signing import BatchSigner, Charged, SignedReceipt

PROMISE_S = 24 * 3600
"""How long after a countersignature the log holds the receipt at the latest; in good times it is seconds."""
SETTLING_S = 900
"""A job that began within this may still be answered, or settled: the longest request, and then some."""
DELIVERY_S_MAX = 24 * 3600
"""A worker that has not delivered a receipt by then is not expected to."""
_UUID_MS_SHIFT = 80
log = structlog.get_logger()


class ReceiptUnknownError(GatewayError):
    """There is no such receipt."""

    code = "receipt_not_found"


class ReceiptDesk:
    """One process's way of receipts, in and out."""

    def __init__(
        self, reconciler: Reconciler, signer: BatchSigner, book: ReceiptBook, recoveries: Recoveries,
        log_reader: LogReader, clock: Clock,
    ) -> None:  # fmt: skip
        self._reconciler = reconciler
        self._signer = signer
        self._book = book
        self._recoveries = recoveries
        self._log_reader = log_reader
        self._clock = clock

    async def deliver(self, worker_id: uuid.UUID, batch: ReceiptBatch) -> ReceiptVerdicts:
        """Judge what a worker delivers, and keep what is authentic. Delivering it again adds nothing.

        Raises:
            OverloadedError: too many batches are waiting.
            LedgerUnavailableError: the books cannot be reached; the agent is to deliver again.
        """
        judged = await self._reconciler.judge(worker_id, batch)
        signed_batch, signed = await self._countersign(judged)
        receipts: list[AuthenticReceipt] = []
        of: list[Judgement] = []
        for one, proofs in zip(judged, signed, strict=True):
            if one.claim is not None and one.verdict.final:
                receipts.append(_authentic(one, signed_batch, proofs))
                of.append(one)
        found = [of[index] for index in await self._book.keep(receipts)]
        if found:
            await self._hold_against(found)
        countersigned = tuple(None if proofs is None else proofs.countersigned for proofs in signed)
        verdicts = tuple(one.verdict for one in judged)
        if not any(countersigned):
            return ReceiptVerdicts(verdicts)
        return ReceiptVerdicts(verdicts, signed_batch, countersigned)

    async def bundle(self, customer_id: uuid.UUID, job_id: uuid.UUID) -> ReceiptBundle | None:
        """The receipt of a customer's job; None while the worker may still deliver it.

        Raises:
            ReceiptUnknownError: this customer has no such job, or nobody will ever deliver a receipt for it.
            LedgerUnavailableError: the books cannot be reached.
        """
        stored = await self._stored(customer_id, job_id)
        if stored is None:
            return None
        manifest = await self._manifest(stored.bundle.body)
        return msgspec.structs.replace(stored.bundle, manifest=manifest, log=await self._inclusion(stored.entry))

    async def entry(self, customer_id: uuid.UUID, job_id: uuid.UUID) -> Entry:
        """The log's entry of a customer's receipt.

        Raises:
            ReceiptUnknownError: there is none, or not yet.
        """
        stored = await self._stored(customer_id, job_id)
        if stored is None:
            raise ReceiptUnknownError
        return stored.entry

    async def _stored(self, customer_id: uuid.UUID, job_id: uuid.UUID) -> StoredReceipt | None:
        try:
            job_day(job_id)
        except MalformedError:
            raise ReceiptUnknownError from None
        stored = await self._book.find(customer_id, job_id)
        if stored is not None:
            return stored
        answered = await self._book.answered(customer_id, job_id)
        if answered is None:
            age_s = self._clock.now().timestamp() - (job_id.int >> _UUID_MS_SHIFT) / 1000
            if not 0 <= age_s < SETTLING_S:
                raise ReceiptUnknownError
        elif not answered.is_theirs:
            raise ReceiptUnknownError
        elif not answered.by_worker:
            raise ReceiptUnknownError("The answer came from an engine without an agent: it has no receipt.")
        elif answered.age_s > DELIVERY_S_MAX:
            raise ReceiptUnknownError("The worker has not delivered this receipt, or it is no longer kept.")
        return None

    async def _inclusion(self, entry: Entry) -> Inclusion | None:
        try:
            proof, signed = await self._log_reader.inclusion(entry)
        except (NotLoggedError, LogUnavailableError):
            return None
        return Inclusion(checkpoint=signed.note, index=proof.index, size=proof.size, path=proof.path)

    async def _manifest(self, body: bytes) -> bytes | None:
        digest = canonical.decode(body, ReceiptBody).model_manifest_sha256
        if len(digest) != DIGEST_BYTES:
            return None
        try:
            return await self._log_reader.envelope(Entry(type=LeafType.MANIFEST, digest=digest))
        except (NotLoggedError, LogUnavailableError):
            return None

    async def _countersign(
        self, judged: Sequence[Judgement]
    ) -> tuple[SignedBatch | None, Sequence[SignedReceipt | None]]:
        asked = [
            Charged(one.claim.ticket, one.head, one.charged)
            if one.claim is not None and one.verdict.final else None
            for one in judged
        ]  # fmt: skip
        include_by = int(self._clock.now().timestamp()) + PROMISE_S
        try:
            return await self._signer.countersign(asked, include_by=include_by)
        except GatewayError as error:
            # What was lost is recovered, and kept, whether or not anybody can sign for it now.
            log.warning("receipts_not_countersigned", code=error.code)
            return None, [None] * len(judged)

    async def _hold_against(self, judged: Sequence[Judgement]) -> None:
        claims = [one.claim for one in judged if one.claim is not None]
        for claim in claims:
            log.error("receipts_equivocate", worker_id=str(claim.worker_id), job_id=str(claim.settlement.job_id))
        await self._recoveries.note_equivocations(claims)


def _authentic(one: Judgement, batch: SignedBatch | None, signed: SignedReceipt | None) -> AuthenticReceipt:
    claim = one.claim
    assert claim is not None, "only what was verified is kept"
    settlement = claim.settlement
    assert settlement.receipt_signature is not None, "it came with the head"
    proofs = None
    if batch is not None and signed is not None:
        charge = signed.countersigned
        proofs = Proofs(
            batch=batch, ticket=signed.ticket, charge_leaf=None if charge is None else charge.leaf,
            charge=None if charge is None else charge.proof,
        )  # fmt: skip
    return AuthenticReceipt(
        job_id=settlement.job_id, attempt=settlement.attempt, worker_id=claim.worker_id,
        customer_id=settlement.customer_id, receipt_pk=one.receipt_pk, named=one.named,
        keyset_digest=one.keyset_digest, head=one.head,
        signature=settlement.receipt_signature, body=claim.receipt_body, ticket=claim.ticket,
        relevant=one.booked_head is None or one.booked_head == one.head, proofs=proofs,
    )  # fmt: skip
