"""The tickets that carry no signature yet: how many the agent tolerates, and how it gets them signed.

A ticket's MAC convinces the agent and nobody else. Until the gateway has signed a batch that holds the ticket, the
work done for it rests on trust; so the agent takes no more jobs while too many tickets are unsigned, or one for too
long (PROTOCOL §2). It asks by itself, any gateway process can answer, and it believes nothing that does not verify.
"""

import asyncio
import contextlib
import hashlib
from collections import deque
from typing import Protocol

import msgspec
import structlog

from cocoon.clock import Clock
from cocoon.delegation import operator_of
from cocoon.errors import MalformedError
from cocoon.signatures import SIGNATURES_PATH, TICKETS_MAX, SignaturesAnswer, SignaturesRequest, UnsignedTicket
from cocoon.signed_batch import BatchHead, Proof, SignedBatch, open_batch, require_leaf
from cocoon.ticket import open_unverified
from workers.agent.receipt_store import KeptSignature, ReceiptStore, ReceiptStoreError, SignatureKind

GATHER_S = 0.02
"""A question waits this long for more tickets."""
ASK_S = 1.0
"""At most one question in this time, unless a full one is waiting."""
BACKOFF_S_MAX = 10.0
REFUSED_S = 3600.0
"""A ticket that the gateway disowns is not asked for again; for this long it counts among the unsigned."""
FINISH_S_MAX = 2.0
_OK = 200
_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Link(Protocol):
    """What is used of the standing with the gateway (`GatewayLink`; tests bring their own)."""

    @property
    def global_id(self) -> int | None:
        """The network of the current enrolment, None before the first."""
        ...

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """POST with the token of the current enrolment; status 0 when there was no answer or is no enrolment."""
        ...


class _Entry(msgspec.Struct, frozen=True):
    ticket: str
    stub: str
    keyset_digest: bytes
    since: float


class Unsigned:
    """The unsigned tickets, oldest first. `count_max` is how many are tolerated, `age_s_max` for how long."""

    def __init__(self, clock: Clock, *, count_max: int, age_s_max: float) -> None:
        self._clock = clock
        self._count_max = count_max
        self._age_s_max = age_s_max
        self._entries: dict[bytes, _Entry] = {}
        self._refused: deque[float] = deque()
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def accepting(self) -> bool:
        """Whether the agent may work for one more ticket."""
        now = self._clock.monotonic()
        while self._refused and now - self._refused[0] > REFUSED_S:
            self._refused.popleft()
        if len(self._entries) + len(self._refused) >= self._count_max:
            return False
        oldest = next(iter(self._entries.values()), None)
        return oldest is None or now - oldest.since <= self._age_s_max

    def add(self, raw: bytes, ticket: str, stub: str, keyset_digest: bytes, *, age_s: float = 0.0) -> None:
        """Note a ticket that the agent works for: its exact bytes, and the headers that it came with."""
        entry = _Entry(ticket, stub, keyset_digest, self._clock.monotonic() - age_s)
        self._entries[hashlib.sha256(raw).digest()] = entry
        self.changed.set()

    def question(self) -> tuple[list[bytes], SignaturesRequest] | None:
        """The oldest tickets of one keyset, by digest, and the question about them; None when all are signed."""
        first = next(iter(self._entries.values()), None)
        if first is None:
            self.changed.clear()
            return None
        chosen: list[tuple[bytes, _Entry]] = []
        for digest, entry in self._entries.items():
            if entry.keyset_digest == first.keyset_digest:
                chosen.append((digest, entry))
                if len(chosen) == TICKETS_MAX:
                    break
        tickets = tuple(UnsignedTicket(ticket=entry.ticket, stub=entry.stub) for _, entry in chosen)
        request = SignaturesRequest(keyset_digest=first.keyset_digest, tickets=tickets)
        return [digest for digest, _ in chosen], request

    def settle(self, digest: bytes, *, signed: bool) -> None:
        """A ticket was signed, or disowned."""
        if self._entries.pop(digest, None) is not None and not signed:
            self._refused.append(self._clock.monotonic())


class SignatureVerifier:
    """Judges what claims to be signed by the operator's gateways.

    Without a key to expect, which only development allows, the first operator that signs is the one to the end.
    """

    def __init__(self, clock: Clock, link: Link, operator_key: bytes | None) -> None:
        self._clock = clock
        self._link = link
        self._operator_key = operator_key

    def open(self, batch: SignedBatch) -> BatchHead:
        """The head of an authentic batch of the network that this agent is enrolled with.

        Raises:
            MalformedError: it is not authentic.
        """
        if self._link.global_id is None:
            raise MalformedError("not enrolled")
        expected = self._operator_key if self._operator_key is not None else operator_of(batch.delegation)
        head = open_batch(
            batch, operator_key=expected, global_id=self._link.global_id, now_s=self._clock.now().timestamp()
        )
        self._operator_key = expected
        return head


class SignatureAsker:
    """One agent's questions for signatures."""

    def __init__(self, unsigned: Unsigned, store: ReceiptStore, link: Link, verifier: SignatureVerifier) -> None:
        self._unsigned = unsigned
        self._store = store
        self._link = link
        self._verifier = verifier
        self._failures = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        await self._recall()
        loop = asyncio.get_running_loop()
        while True:
            await self._unsigned.changed.wait()
            await asyncio.sleep(GATHER_S)
            began = loop.time()
            if await self.ask():
                pause_s = 0.0 if len(self._unsigned) >= TICKETS_MAX else ASK_S
            else:
                pause_s = min(BACKOFF_S_MAX, ASK_S * 2 ** min(self._failures - 1, 10))
            await asyncio.sleep(max(0.0, began + pause_s - loop.time()))

    async def finish(self) -> None:
        """Ask for what is left, before the agent stops; what stays unsigned is asked for after the next start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S_MAX):
                while len(self._unsigned) and await self.ask():
                    pass

    async def ask(self) -> bool:
        """One question; False when it brought no usable answer, and nothing has changed."""
        asked = self._unsigned.question()
        if asked is None:
            return True
        digests, request = asked
        status, raw = await self._link.post(SIGNATURES_PATH, msgspec.json.encode(request))
        try:
            if status != _OK:
                raise MalformedError(f"status {status}")
            signed = self._verified(digests, request, raw)
            if signed:
                await self._store.keep_signatures(list(signed.values()))
        except (MalformedError, ReceiptStoreError) as error:
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:
                _log.warning("tickets_not_signed", reason=str(error), failures=self._failures, count=len(digests))
            return False
        self._failures = 0
        disowned = len(digests) - len(signed)
        if disowned:
            _log.error("tickets_disowned", count=disowned)
        for digest in digests:
            self._unsigned.settle(digest, signed=digest in signed)
        return True

    def _verified(self, digests: list[bytes], request: SignaturesRequest, raw: bytes) -> dict[bytes, KeptSignature]:
        """Signatures by ticket digest; a ticket that the gateway disowns is missing.

        Raises:
            MalformedError: anything in the answer does not verify; then nothing of it counts.
        """
        try:
            answer = msgspec.json.decode(raw, type=SignaturesAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedError("not an answer about signatures") from error
        if len(answer.proofs) != len(digests):
            raise MalformedError("an answer about other tickets")
        if answer.batch is None:
            if any(proof is not None for proof in answer.proofs):
                raise MalformedError("proofs without a batch")
            return {}
        head = self._verifier.open(answer.batch)
        signed: dict[bytes, KeptSignature] = {}
        for digest, one, proof in zip(digests, request.tickets, answer.proofs, strict=True):
            if proof is not None:
                leaf = open_unverified(one.ticket)
                require_leaf(head, leaf, proof)
                signed[digest] = kept_signature(digest, SignatureKind.TICKET, leaf, proof, answer.batch)
        return signed

    async def _recall(self) -> None:
        """Take up what an earlier run of this agent had to leave unsigned."""
        try:
            for one in await self._store.unsigned(REFUSED_S):
                self._unsigned.add(
                    open_unverified(one.ticket), one.ticket, one.stub, one.keyset_digest, age_s=one.age_s
                )
        except (MalformedError, ReceiptStoreError) as error:
            _log.error("unsigned_tickets_not_recalled", reason=str(error))


def kept_signature(
    ticket_sha256: bytes, kind: SignatureKind, leaf: bytes, proof: Proof, batch: SignedBatch
) -> KeptSignature:
    """The row of a verified leaf."""
    return KeptSignature(
        ticket_sha256=ticket_sha256, kind=kind, leaf=leaf, index=proof.index, path=b"".join(proof.path), batch=batch
    )
