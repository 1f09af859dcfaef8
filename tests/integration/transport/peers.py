"""Targets that do exactly what a test says, over plain TCP or TLS, and jobs for them."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import pathlib
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cocoon.endpoints import CHAT
from cocoon.enrolment import ServedModel
from workers.connections import spki_sha256
from workers.targets import Upstream, Worker, upstream_id_of
from workers.transport import Job

MODEL = "scripted"
BODY = b'{"model":"scripted","messages":[],"max_tokens":5}'
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection as the target sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: "Served") -> None:
        self._reader = reader
        self._writer = writer
        self._served = served

    async def request(self) -> bytes:
        """The next request's body. Raises IncompleteReadError when there is none."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        body = await self._reader.readexactly(length)
        self._served.requests.append(body)
        return body

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        """A whole answer of known length; header names have their dashes as underscores."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.send(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body)

    def begin(self, content_type: str = "text/event-stream") -> None:
        self.send(f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode())

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Return when the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def close(self) -> None:
        self._writer.close()


class Served:
    """A listening target and what it has seen."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []
        self.failures: list[BaseException] = []

    def upstream(self, **changes: Any) -> Upstream:
        members: dict[str, Any] = {
            "upstream_id": upstream_id_of("u"), "name": "u", "host": "127.0.0.1", "port": self.port, "tls": False,
            "path": "/v1", "models": {MODEL: MODEL}, "context_tokens": 100, "capacity": 8,
        }  # fmt: skip
        return Upstream(**{**members, **changes})

    def worker(self, pin: bytes, **changes: Any) -> Worker:
        members: dict[str, Any] = {
            "worker_id": uuid.UUID(int=7), "name": "w", "url": f"https://127.0.0.1:{self.port}", "host": "127.0.0.1",
            "port": self.port, "models": (ServedModel(id=MODEL, context_tokens=100),), "capacity": 8, "engine": "x",
            "tee_type": "none", "keyset": b"", "keyset_digest": bytes(32), "boot_id": b"", "tls_spki_sha256": pin,
            "receipt_pk": bytes(32), "not_before": 0, "not_after": 2**31,
        }  # fmt: skip
        return Worker(**{**members, **changes})


@contextlib.asynccontextmanager
async def serving(script: Script, certificate: pathlib.Path | None = None) -> AsyncIterator[Served]:
    """A target that runs `script` on each connection; what a script asserts is raised at the end."""
    served = Served()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        served.connections += 1
        try:
            await script(Peer(reader, writer, served))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError):
            pass
        except Exception as error:  # noqa: BLE001  handed to the test below
            served.failures.append(error)
        finally:
            writer.transport.abort()
            tasks.discard(task)

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, limit=2**26)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks))
    if served.failures:
        raise served.failures[0]


def a_job(**changes: Any) -> Job:
    members: dict[str, Any] = {
        "job_id": uuid.UUID(int=1), "endpoint": CHAT, "model": MODEL, "body": BODY, "stream": False,
        "show_usage": False, "asks_maximum": True, "max_completion": 5, "ticket": "ticket",
        "stub": "stub", "salt": None, "traceparent": None,
    }  # fmt: skip
    return Job(**{**members, **changes})


def a_certificate(path: pathlib.Path) -> bytes:
    """Write a key and its certificate to `path`; the pin of the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return spki_sha256(made.public_bytes(serialization.Encoding.DER))
