"""One sealed request and its answer, without I/O: seal, open as it arrives, and check what it was.

What leaves `feed` is the answer as the worker wrote it, authenticated frame by frame. The mark that a stream is whole
(`[DONE]`) leaves only from `finish`, after the last frame and the worker's receipt have held: whoever reads up to that
mark has read exactly what the receipt commits to.
"""

import uuid
from collections.abc import Sequence

from cocoon import sse
from cocoon.errors import MalformedError
from cocoon.receipt import Commitment
from cocoon.sealed import RandomBytes, SentRequest, Terms, parse_request, seal_request
from cocoon.sealed_answer import AnswerOpener
from cocoon.sealed_trailer import AnswerTrailer, Delivered, check_receipt
from cocoon_client.directory import VerifiedWorker
from cocoon_client.errors import AnswerRefusedError, NotSealableError
from cocoon_client.opening import Opening, ShownPrice, is_usage_chunk
from cocoon_client.plan import Plan

ANSWER_BYTES_MAX = 256 * 1024 * 1024
REFUSED = "refused"
"""Finish reason in the trailer of an answer that is an error of the worker's."""
_DONE = b"[DONE]"


class SealedExchange:
    """One job. `sent.raw` is the body to post; feed it what comes back."""

    def __init__(self, plan: Plan, terms: Terms, workers: Sequence[VerifiedWorker], random_bytes: RandomBytes) -> None:
        """Seal.

        Raises:
            NotSealableError: the workers' keys cannot be sealed for.
        """
        self.plan = plan
        self.job_id = uuid.UUID(bytes=terms.job_id)
        self.content_type = "text/event-stream" if terms.stream else "application/json"
        self._workers = {worker.verdict.keyset_digest: worker for worker in workers}
        try:
            self.sent: SentRequest = seal_request(
                terms, plan.body, [worker.recipient for worker in workers], random_bytes
            )
        except MalformedError as error:
            raise NotSealableError(str(error)) from error
        self._opener = AnswerOpener(digest=self.sent.digest, secrets=self.sent.secrets)
        self._splitter = sse.EventSplitter()
        self._answer = bytearray()
        self._payloads: list[bytes] = []
        self._held = b""
        self._trailer: AnswerTrailer | None = None

    @property
    def worker(self) -> VerifiedWorker | None:
        """Who answers; None before the prelude."""
        return self._workers.get(self._opener.keyset_digest)

    @property
    def tee_types(self) -> str:
        """The TEEs of the workers that may read the request; simulated ones say so."""
        return ",".join(sorted({worker.verdict.tee_type for worker in self._workers.values()}))

    def feed(self, chunk: bytes) -> bytes:
        """What the client may see now: whole events of a stream, nothing yet of a document.

        Raises:
            AnswerRefusedError: a frame is not authentic, or the answer is too long.
        """
        try:
            opened = b"".join(self._opener.feed(chunk))
            self._answer += opened
            if len(self._answer) > ANSWER_BYTES_MAX:
                raise AnswerRefusedError("the answer is longer than any answer")
            return self._events(opened) if self.plan.request.streams else b""
        except MalformedError as error:
            raise AnswerRefusedError(f"the sealed answer does not hold: {error}") from error

    def finish(self) -> bytes:
        """The rest of a whole answer, after everything that can be checked at once has held.

        Raises:
            AnswerRefusedError: cut off, or the receipt is for something else.
        """
        try:
            self._opener.finish()
            self._trailer = trailer = AnswerTrailer.decode(self._opener.trailer)
            if self.refused:
                return b"" if self.plan.request.streams else bytes(self._answer)
            self._require_whole()
            check_receipt(trailer, self._delivered())
        except MalformedError as error:
            raise AnswerRefusedError(f"the sealed answer does not hold: {error}") from error
        return self._held if self.plan.request.streams else bytes(self._answer)

    @property
    def refused(self) -> bool:
        """Whether the worker refused the request, in its own sealed words; such an answer has no receipt."""
        trailer = self._trailer
        return trailer is not None and trailer.receipt is None and trailer.finish_reason == REFUSED

    @property
    def refusal(self) -> bytes:
        """Those words: an error in OpenAI's shape."""
        return bytes(self._answer)

    def opening(self, asked_at: float, price: ShownPrice | None) -> Opening:
        """What has to be kept to open the receipt's commitments; `asked_at` is the Unix time of the answer's end."""
        worker, trailer = self.worker, self._trailer
        assert worker is not None, "a finished answer has a worker"
        assert trailer is not None, "a finished answer has a trailer"
        assert trailer.receipt is not None, "its receipt was checked"
        shown = trailer.receipt
        digest = worker.verdict.keyset_digest
        return Opening(
            v=1, receipt_id=str(self.job_id), endpoint=self.plan.endpoint.name, sealed=True,
            streamed=self.plan.request.streams, salt=self.sent.secrets[digest], request=self.plan.body,
            sealed_header=header_bytes(self.sent.raw), answer=bytes(self._answer), rolling=self._opener.rolling,
            keyset_digest=digest, nonce=worker.nonce, evidence=worker.evidence, endorsements=worker.endorsements,
            judged_at=worker.verdict.judged_at, asked_at=int(asked_at), ticket=shown.ticket, head=shown.head,
            body=shown.body, signature=shown.signature, manifest=self.plan.manifest, price=price,
        )  # fmt: skip

    def _events(self, opened: bytes) -> bytes:
        shown: list[bytes] = []
        for event in self._splitter.feed(opened):
            if self._held:
                raise AnswerRefusedError("something follows the end mark of the stream")
            payload = sse.data_of(event)
            if payload is not None and payload.strip() == _DONE:
                self._held = event
                self._payloads.append(_DONE)
                continue
            if payload is not None and not is_usage_chunk(payload):
                self._payloads.append(payload)
            shown.append(event)
        return b"".join(shown)

    def _require_whole(self) -> None:
        if not self.plan.request.streams:
            self._payloads.append(bytes(self._answer))
        elif not self._held or self._splitter.pending:
            raise AnswerRefusedError("the stream has no end mark")

    def _delivered(self) -> Delivered:
        worker = self.worker
        assert worker is not None, "the opener knows only recipients"
        commitment = Commitment(self.sent.secrets[worker.verdict.keyset_digest])
        commitment.request(self.plan.body)
        for payload in self._payloads:
            commitment.response(payload)
        return Delivered(self.sent.digest, self._opener.rolling, worker.keyset_bytes, commitment)


def header_bytes(raw: bytes) -> bytes:
    """The exact bytes of the clear header in a sealed request: H is their digest."""
    parse_request(raw)
    length = int.from_bytes(raw[4:8], "big")
    return raw[8 : 8 + length]
