"""The gateway's side of an agent: enrolment and heartbeats over HTTP, jobs over TLS pinned to the keyset."""

import asyncio
import contextlib
import hashlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cocoon import hop, receipt
from cocoon.clock import SystemClock, system_random
from cocoon.endpoints import CHAT
from cocoon.enrolment import (
    ENROL_PATH,
    HEARTBEAT_PATH,
    RENEW_PATH,
    EnrolAnswer,
    EnrolRequest,
    Heartbeat,
    Keyset,
    Token,
    keyset_digest,
)
from cocoon.http1 import Connection, Head, request_bytes
from cocoon.ids import WORKER_KEY_PREFIX, new_job_id, new_secret_key
from cocoon.receipt_batch import RECEIPTS_PATH, ReceiptBatch, ReceiptVerdicts, Verdict
from cocoon.signatures import SIGNATURES_PATH, SignaturesAnswer, SignaturesRequest
from cocoon.ticket import Ticket, open_unverified, plain_request_digest, seal_ticket, ticket_key
from cocoon.usage import TokenUsage
from tests.signing_values import Operator

GLOBAL_ID = -217
SECRET = b"n" * 32
WORKER_KEY = new_secret_key(WORKER_KEY_PREFIX, system_random())
DEADLINE_S = 60.0


async def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until true; the value."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, "the deadline passed"
        await asyncio.sleep(0.01)
    return value


class FakeGateway:
    """Admits whoever shows the worker key. `refuse_tokens` makes heartbeats 401 until the next enrolment."""

    def __init__(self, port: int = 0, heartbeat_s: float = 0.1) -> None:
        self.port = port
        self.heartbeat_s = heartbeat_s
        self.enrolments: list[EnrolRequest] = []
        self.heartbeats: list[Heartbeat] = []
        self.bearers: list[str] = []
        self.refuse_tokens = False
        self.token_s = 3600
        self.renewals: list[str] = []
        self.renew_status = 200
        self.enrol_status = 200
        self.receipt_status = 200
        self.verdict = Verdict.RECORDED
        self.delivered: list[ReceiptBatch] = []
        self.operator = Operator(GLOBAL_ID)
        self.asked: list[SignaturesRequest] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()
        await until(lambda: not self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *lines = head.split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (part.partition(":") for part in lines if part)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status, answer = self._answer(line.split(" ")[1], headers.get("authorization", ""), body)
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _answer(self, path: str, bearer: str, body: bytes) -> tuple[int, bytes]:
        self.bearers.append(bearer)
        if path == ENROL_PATH:
            if bearer != f"Bearer {WORKER_KEY}" or self.enrol_status != 200:
                return (401 if self.enrol_status == 200 else self.enrol_status), b"{}"
            request = msgspec.json.decode(body, type=EnrolRequest)
            self.enrolments.append(request)
            self.refuse_tokens = False
            answer = EnrolAnswer(
                worker_id=uuid.UUID(int=7), token=f"token-{len(self.enrolments)}", token_seconds=self.token_s,
                ticket_key=ticket_key(SECRET, keyset_digest(request.keyset)), global_id=GLOBAL_ID,
                heartbeat_seconds=self.heartbeat_s,
            )  # fmt: skip
            return 200, msgspec.json.encode(answer)
        if path == HEARTBEAT_PATH:
            if self.refuse_tokens or bearer != f"Bearer token-{len(self.enrolments)}":
                return 401, b"{}"
            self.heartbeats.append(msgspec.json.decode(body, type=Heartbeat))
            return 200, b"{}"
        if path == RENEW_PATH:
            self.renewals.append(bearer)
            answer = Token(f"token-{len(self.enrolments)}", self.token_s)
            return self.renew_status, msgspec.json.encode(answer) if self.renew_status == 200 else b"{}"
        if path == RECEIPTS_PATH:
            if bearer != f"Bearer token-{len(self.enrolments)}" or self.receipt_status != 200:
                return (401 if self.receipt_status == 200 else self.receipt_status), b"{}"
            batch = msgspec.json.decode(body, type=ReceiptBatch)
            self.delivered.append(batch)
            return 200, msgspec.json.encode(ReceiptVerdicts((self.verdict,) * len(batch.receipts)))
        if path == SIGNATURES_PATH:
            return self.sign(msgspec.json.decode(body, type=SignaturesRequest))
        return 404, b"{}"

    def sign(self, request: SignaturesRequest) -> tuple[int, bytes]:
        """Sign whatever is asked, for stubs are opaque to agents; tests replace this."""
        self.asked.append(request)
        batch, proofs = self.operator.signed([open_unverified(one.ticket) for one in request.tickets])
        return 200, msgspec.json.encode(SignaturesAnswer(batch, tuple(proofs)))

    async def peer(self, at: int = -1) -> "Peer":
        """The enrolled worker, once it is there."""
        await until(lambda: self.enrolments)
        return Peer(self.enrolments[at])


class Answer:
    """A whole answer: status, headers, and the frames in order."""

    def __init__(self, head: Head) -> None:
        self.status = head.status
        self.headers = {name.decode(): value.decode() for name, value in head.headers.items()}
        self.frames: list[tuple[hop.FrameKind, bytes]] = []
        self.body = b""

    @property
    def data(self) -> bytes:
        return b"".join(payload for kind, payload in self.frames if kind is hop.FrameKind.DATA)

    @property
    def progress(self) -> list[TokenUsage]:
        return [hop.decode_progress(payload) for kind, payload in self.frames if kind is hop.FrameKind.PROGRESS]

    @property
    def trailer(self) -> hop.Trailer:
        kind, payload = self.frames[-1]
        assert kind is hop.FrameKind.TRAILER
        return hop.decode_trailer(payload)

    @property
    def error(self) -> dict[str, Any]:
        return msgspec.json.decode(self.body)["error"]

    @property
    def payloads(self) -> list[bytes]:
        return [event.removeprefix(b"data: ") for event in self.data.split(b"\n\n") if event]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(payload) for payload in self.payloads if payload != b"[DONE]"]

    @property
    def text(self) -> str:
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


class Peer:
    """One enrolled worker, spoken to as a gateway does."""

    def __init__(self, enrolment: EnrolRequest) -> None:
        self.enrolment = enrolment
        self.keyset = Keyset.decode(enrolment.keyset)
        self.digest = keyset_digest(enrolment.keyset)
        host, _, port = enrolment.url.removeprefix("https://").rpartition(":")
        self._address = host, int(port)

    def ticket(self, body: bytes, **changes: Any) -> Ticket:
        fields: dict[str, Any] = {
            "global_id": GLOBAL_ID, "stake": receipt.NO_STAKE, "job_id": new_job_id(SystemClock(), system_random()),
            "attempt": 0, "lease": uuid.UUID(int=1), "price_version": 1, "max_prompt": 4000, "max_completion": 64,
            "not_after": int(time.time()) + 60, "request_digest": plain_request_digest(body),
        }  # fmt: skip
        return Ticket(**{**fields, **changes})

    def sealed(self, ticket: Ticket) -> str:
        return seal_ticket(ticket_key(SECRET, self.digest), ticket)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """A connection whose certificate is the one that the keyset names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address, ssl=context)
        try:
            session = connection.transport.get_extra_info("ssl_object")
            assert _spki_digest(session.getpeercert(binary_form=True)) == self.keyset.tls_spki_sha256
            yield connection
        finally:
            connection.abort()

    def request(self, body: bytes, ticket: str | None, path: str = CHAT.job_path, **headers: str) -> bytes:
        sent = [(b"host", b"worker"), *((name.replace("_", "-").encode(), v.encode()) for name, v in headers.items())]
        if ticket is not None:
            sent.append((hop.TICKET_HEADER.encode(), ticket.encode()))
        return request_bytes(b"POST", path.encode(), sent, body)

    async def post(self, body: bytes, ticket: str | None, **headers: str) -> Answer:
        """A whole exchange with any ticket."""
        async with asyncio.timeout(60), self.connected() as connection:
            connection.send(self.request(body, ticket, **headers))
            return await read_answer(connection)

    async def health(self) -> dict[str, Any]:
        async with asyncio.timeout(60), self.connected() as connection:
            connection.send(request_bytes(b"GET", b"/healthz", [(b"host", b"worker")]))
            await connection.head()
            return msgspec.json.decode(await connection.read_all(4096))

    async def until_idle(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until nothing runs there."""
        began = time.monotonic()
        while (await self.health())["running"]:
            assert time.monotonic() - began < deadline_s, "the slot was not freed in time"
            await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def begun(self, body: dict[str, Any], **changes: Any) -> AsyncIterator["Running"]:
        """A job that runs until the block ends; leaving the block closes the connection."""
        raw = msgspec.json.encode(body)
        ticket = self.ticket(raw, **changes)
        async with asyncio.timeout(60), self.connected() as connection:
            connection.send(self.request(raw, self.sealed(ticket)))
            yield Running(connection, ticket)

    async def chat(self, body: dict[str, Any] | bytes, headers: dict[str, str] | None = None, **changes: Any) -> Answer:
        """A whole exchange with a good ticket; `changes` alter the ticket."""
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await self.post(raw, self.sealed(self.ticket(raw, **changes)), **(headers or {}))


class Running:
    """A job in flight."""

    def __init__(self, connection: Connection, ticket: Ticket) -> None:
        self.connection = connection
        self.ticket = ticket
        self.frames: list[tuple[hop.FrameKind, bytes]] = []
        self._reader = hop.FrameReader()

    async def until_frame(self, kind: hop.FrameKind) -> bytes:
        """Read on to the first frame of this kind."""
        assert (await self.connection.head()).status == 200
        while True:
            for frame, payload in self.frames:
                if frame is kind:
                    return payload
            chunk = await self.connection.read()
            assert chunk, "the answer ended first"
            self.frames += self._reader.feed(chunk)

    async def rest(self) -> Answer:
        answer = await read_answer(self.connection)
        answer.frames = self.frames + answer.frames
        return answer


async def read_answer(connection: Connection) -> Answer:
    answer = Answer(await connection.head())
    if answer.headers.get("content-type") != hop.CONTENT_TYPE:
        answer.body = await connection.read_all(2**20)
        return answer
    reader = hop.FrameReader()
    while chunk := await connection.read():
        answer.frames += reader.feed(chunk)
    assert not reader.pending
    return answer


def check_receipt(peer: Peer, answer: Answer, ticket: Ticket) -> dict[str, Any]:
    """The trailer's receipt verifies and names this ticket; its body."""
    trailer = answer.trailer
    receipt.verify(peer.keyset.receipt_pk, trailer.receipt_head, trailer.receipt_signature)
    head = receipt.ReceiptHead.decode(trailer.receipt_head)
    assert head.ticket_sha256 == hashlib.sha256(ticket.encode()).digest()
    assert head.body_sha256 == receipt.body_digest(trailer.receipt_body)
    assert head.usage == trailer.usage
    body = msgspec.json.decode(trailer.receipt_body)
    assert body["receipt_id"] == str(ticket.job_id)
    return body


def _spki_digest(certificate: bytes) -> bytes:
    public_key = x509.load_der_x509_certificate(certificate).public_key()
    raw = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(raw).digest()
