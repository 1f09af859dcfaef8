"""HTTP to an engine: one fresh connection per request.

Engines sit on loopback or next door, where a connection costs a fraction of a millisecond, and llama.cpp closes
kept-alive connections after streams; a pool would add failures and save nothing.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, urlsplit

from cocoon.http1 import Connection, HopError, request_bytes
from workers.agent.engines.ports import EngineError, EngineRefusedError, EngineUnavailableError
from workers.agent.settings import Secret

CONNECT_S = 5.0
PROBE_S = 3.0
ABORT_S = 2.0
SILENCE_S = 300.0
"""Longest wait for the next byte of an answer: a cold prefill of a long prompt fits."""
SMALL_BODY_BYTES_MAX = 4 * 1024 * 1024
_OK = 200


class EngineWire:
    """Requests to one base URL. The key goes into the header and nowhere else."""

    def __init__(self, base_url: str, api_key: Secret | None) -> None:
        self._url: SplitResult = urlsplit(base_url)
        self._host = self._url.hostname or ""
        self._key = api_key
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None

    async def post_stream(
        self,
        path: str,
        body: bytes,
        headers: list[tuple[bytes, bytes]],
        on_abort: Callable[[], Awaitable[None]] | None = None,
    ) -> "WireGeneration":
        """Send a job and wait until the engine has accepted it.

        Raises:
            EngineRefusedError: an HTTP error.
            EngineError: no answer.
        """
        connection = await self._connect()
        try:
            async with asyncio.timeout(SILENCE_S):
                connection.send(self._request(b"POST", path, body, headers))
                head = await connection.head()
                if head.status != _OK:
                    error = await connection.read_all(SMALL_BODY_BYTES_MAX)
                    raise EngineRefusedError(head.status, error, head.headers.get(b"retry-after"))
        except (HopError, TimeoutError) as error:
            connection.abort()
            raise EngineError from error
        except BaseException:
            # Cancelled while the engine was still deciding (a prefill, perhaps): closing is the abort.
            connection.abort()
            if on_abort is not None:
                await asyncio.shield(on_abort())
            raise
        return WireGeneration(connection, on_abort)

    async def call(self, method: bytes, path: str, body: bytes = b"", timeout_s: float = PROBE_S) -> tuple[int, bytes]:
        """A small request: status and body.

        Raises:
            EngineError: no whole answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect()
                try:
                    connection.send(self._request(method, path, body, []))
                    head = await connection.head()
                    return head.status, await connection.read_all(SMALL_BODY_BYTES_MAX)
                finally:
                    connection.abort()
        except (HopError, TimeoutError) as error:
            raise EngineError from error

    async def _connect(self) -> Connection:
        port = self._url.port or (443 if self._tls else 80)
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self._host, port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise EngineUnavailableError from error
        return connection

    def _request(self, method: bytes, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
        sent = [(b"host", self._url.netloc.encode()), (b"accept", b"*/*"), *headers]
        if body:
            sent.append((b"content-type", b"application/json"))
        if self._key is not None:
            sent.append((b"authorization", b"Bearer " + self._key.reveal().encode()))
        return request_bytes(method, (self._url.path + path).encode(), sent, body)


class WireGeneration:
    """A stream on its own connection."""

    def __init__(self, connection: Connection, on_abort: Callable[[], Awaitable[None]] | None) -> None:
        self._connection = connection
        self._on_abort = on_abort
        self._over = False

    async def read(self) -> bytes:
        """More bytes, b"" at the end.

        Raises:
            EngineError: the engine went away, or was silent for too long.
        """
        try:
            async with asyncio.timeout(SILENCE_S):
                chunk = await self._connection.read()
        except (HopError, TimeoutError) as error:
            raise EngineError from error
        if not chunk:
            self._over = True
        return chunk

    async def abort(self) -> None:
        """Close the connection, and tell the engine if closing is not enough."""
        self._connection.abort()
        if self._over:
            return
        self._over = True
        if self._on_abort is not None:
            await self._on_abort()
