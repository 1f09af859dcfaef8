"""Delivers receipts to the gateway, again and again until each has a final verdict.

A receipt is due some seconds after its job: in the ordinary case the gateway has settled by then and only says so.
"""

import asyncio
import hashlib
import random

import msgspec
import structlog

from cocoon.errors import MalformedError
from cocoon.receipt_batch import RECEIPTS_PATH, ReceiptVerdicts, Verdict
from cocoon.signed_batch import Countersignature, head_digest, require_leaf
from cocoon.ticket import open_unverified
from workers.agent.receipt_store import DueReceipts, KeptSignature, ReceiptStore, ReceiptStoreError, SignatureKind
from workers.agent.signatures import Link, SignatureVerifier, kept_signature

BATCH_MAX = 200
"""Well below what the gateway takes (500): a batch holds its event loop for a few milliseconds."""
PENDING_S_FIRST = 5.0
PENDING_S_MAX = 300.0
"""A pending receipt waits for its hold to expire: about a quarter of an hour."""
BACKOFF_S_FIRST = 0.5
BACKOFF_S_MAX = 60.0
_OK = 200

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ReceiptSender:
    """One agent's deliveries."""

    def __init__(
        self, store: ReceiptStore, link: Link, verifier: SignatureVerifier, rng: random.Random, *, grace_s: float
    ) -> None:
        self._store = store
        self._link = link
        self._verifier = verifier
        self._rng = rng
        self._grace_s = grace_s
        self._failures = 0

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                due = await self._store.due(BATCH_MAX)
                done = due is None or await self.deliver(due)
            except ReceiptStoreError as error:
                # The disk's trouble: jobs are refused meanwhile, and what was delivered is delivered again.
                due, done = None, False
                self._fail(reason=str(error))
            if not done:
                backoff = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** min(self._failures - 1, 10))
                await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.0))
            elif due is None:
                await asyncio.sleep(min(self._grace_s, 1.0))

    async def deliver(self, due: DueReceipts) -> bool:
        """Send one batch and note what was said; False when there was no usable answer, and nothing is noted.

        Raises:
            ReceiptStoreError: what was said cannot be noted.
        """
        status, raw = await self._link.post(RECEIPTS_PATH, msgspec.json.encode(due.batch))
        try:
            if status != _OK:
                raise MalformedError(f"status {status}")
            answer = _read_answer(raw, len(due.ids))
            signatures = self._countersignatures(due, answer)
        except MalformedError as error:
            self._fail(reason=str(error), count=len(due.ids))
            return False
        self._failures = 0
        if signatures:
            await self._store.keep_signatures(signatures)
        await self._note(due, answer.verdicts)
        return True

    def _fail(self, **facts: object) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            _log.warning("receipts_not_delivered", failures=self._failures, **facts)

    def _countersignatures(self, due: DueReceipts, answer: ReceiptVerdicts) -> list[KeptSignature]:
        """What the gateway signed about these receipts.

        Raises:
            MalformedError: it is about others, or does not verify; then nothing of the answer counts.
        """
        if answer.batch is None or not answer.countersigned:
            return []
        batch = self._verifier.open(answer.batch)
        kept: list[KeptSignature] = []
        for receipt, one in zip(due.batch.receipts, answer.countersigned, strict=True):
            if one is None:
                continue
            signed = Countersignature.decode(one.leaf)
            if (signed.global_id, signed.head_sha256) != (batch.global_id, head_digest(receipt.head)):
                raise MalformedError("a countersignature of another receipt")
            require_leaf(batch, one.leaf, one.proof)
            digest = hashlib.sha256(open_unverified(receipt.ticket)).digest()
            kept.append(kept_signature(digest, SignatureKind.COUNTERSIGNATURE, one.leaf, one.proof, answer.batch))
        return kept

    async def _note(self, due: DueReceipts, verdicts: tuple[Verdict, ...]) -> None:
        final = [(row, verdict) for row, verdict in zip(due.ids, verdicts, strict=True) if verdict.final]
        waiting = [
            (row, tries) for row, tries, verdict in zip(due.ids, due.tries, verdicts, strict=True) if not verdict.final
        ]
        if final:
            await self._store.acknowledge([row for row, _ in final], [verdict for _, verdict in final])
        if waiting:
            first = min(PENDING_S_FIRST, self._grace_s)
            waits = [min(PENDING_S_MAX, first * 2 ** min(tries, 10)) for _, tries in waiting]
            await self._store.postpone([row for row, _ in waiting], waits)
        words = [verdict.value for verdict in verdicts]
        _log.info("receipts_judged", **{word: words.count(word) for word in sorted(set(words))})


def _read_answer(raw: bytes, count: int) -> ReceiptVerdicts:
    try:
        answer = msgspec.json.decode(raw, type=ReceiptVerdicts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError("not an answer about receipts") from error
    if len(answer.verdicts) != count or len(answer.countersigned) not in {0, count}:
        raise MalformedError("an answer about other receipts")
    return answer
