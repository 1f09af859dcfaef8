"""The exchange against real peers on loopback, well-behaved and hostile, under both event loops and over TLS."""

import asyncio
import contextlib
import datetime as dt
import functools
import inspect
import ipaddress
import pathlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cocoon import http1
from cocoon.http1 import Connection, HopClosedError, HopError, request_bytes

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
GET = request_bytes(b"GET", b"/", [(b"host", b"x")])
DEADLINE_S = 60.0


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*, loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(bounded(test(**arguments)))

    signature = inspect.signature(test)
    parameters = [*signature.parameters.values(), inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", list(LOOPS))(run)


async def bounded(work: Awaitable[None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await work


@contextlib.asynccontextmanager
async def connected(script: Script, tls: pathlib.Path | None = None) -> AsyncIterator[Connection]:
    """A connection to a peer that runs `script`; a failure of the script is raised at the end."""
    failures: list[BaseException] = []
    gone = asyncio.Event()
    gone.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone.clear()
        try:
            await script(reader, writer)
        except (ConnectionError, ssl.SSLError):
            pass
        except Exception as error:  # noqa: BLE001  handed to the test below
            failures.append(error)
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()
            gone.set()

    server_tls = client_tls = None
    if tls is not None:
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(tls)
        client_tls = ssl.create_default_context(cafile=str(tls))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port, ssl=client_tls)
    try:
        yield connection
    finally:
        connection.abort()
        await gone.wait()
        server.close()
        await server.wait_closed()
        assert failures == []


def saying(*pieces: bytes, then_close: bool = True) -> Script:
    """A peer that reads one request, says its pieces one segment at a time, and closes or waits for the end."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if not then_close:
            await reader.read()

    return script


async def poll(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  the transport tells nobody
            await asyncio.sleep(0.001)


async def exchange(connection: Connection, request: bytes = GET) -> tuple[int, bytes]:
    connection.send(request)
    head = await connection.head()
    return head.status, await connection.read_all(1 << 20)


async def test_requests_are_written_whole_with_their_length() -> None:
    raw = request_bytes(b"POST", b"/v1?a=b", [(b"host", b"h"), (b"x-a", b"1")], b"body")

    assert raw == b"POST /v1?a=b HTTP/1.1\r\nhost: h\r\nx-a: 1\r\ncontent-length: 4\r\n\r\nbody"


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\ny: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x\r\ny", b"a"),
        (b"content-length", b"5"),
        (b"Transfer-Encoding", b"chunked"),
    ],
)
async def test_a_header_that_would_inject_or_contradict_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(HopError):
        request_bytes(b"GET", b"/", [header])


@pytest.mark.parametrize("target", [b"/ HTTP/1.1\r\nx: y", b"/a b", b"/\x00", b"/\n"])
async def test_a_target_that_would_inject_is_refused(target: bytes) -> None:
    with pytest.raises(HopError):
        request_bytes(b"GET", target, [])


@on_both_loops
async def test_one_connection_serves_many_requests() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: %d\r\n\r\n" % (number, length) + body)
        await reader.read()

    async with connected(script) as connection:
        for number in range(20):
            body = b"b" * number * 1000
            connection.send(request_bytes(b"POST", b"/", [(b"host", b"x")], body))
            assert not connection.reusable
            head = await connection.head()
            assert head.headers[b"x-number"] == b"%d" % number
            assert await connection.read_all(1 << 20) == body
            assert await connection.read() == b""
            assert connection.reusable


@on_both_loops
async def test_a_chunked_answer_in_single_bytes_is_read_whole_and_its_trailers_are_not_headers() -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nx-late: 1\r\n\r\n"

    async with connected(saying(*(raw[i : i + 1] for i in range(len(raw))), then_close=False)) as connection:
        connection.send(GET)
        head = await connection.head()
        assert await connection.read_all(100) == b"abcde"
        assert head.headers == {b"transfer-encoding": b"chunked"}
        assert connection.reusable


@on_both_loops
async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with connected(saying(b"HTTP/1.1 200 OK\r\n\r\nab", b"cd")) as connection:
        assert await exchange(connection) == (200, b"abcd")
        assert not connection.reusable
        assert await connection.read() == b""


@on_both_loops
async def test_connection_close_is_obeyed() -> None:
    raw = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    async with connected(saying(raw, then_close=False)) as connection:
        assert await exchange(connection) == (200, b"ok")
        assert not connection.reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nx: y\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@on_both_loops
async def test_a_close_before_the_head_is_a_closed_hop(raw: bytes) -> None:
    async with connected(saying(raw)) as connection:
        connection.send(GET)
        with pytest.raises(HopClosedError):
            await connection.head()
        assert not connection.reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
    ],
)
@on_both_loops
async def test_a_close_within_the_body_gives_what_came_and_then_a_closed_hop(raw: bytes) -> None:
    async with connected(saying(raw)) as connection:
        connection.send(GET)
        assert (await connection.head()).status == 200
        assert await connection.read() == b"abc"
        with pytest.raises(HopClosedError):
            await connection.read_all(100)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
    ],
)
@on_both_loops
async def test_garbage_is_not_http(raw: bytes) -> None:
    async with connected(saying(raw, then_close=False)) as connection:
        connection.send(GET)
        with pytest.raises(HopError, match=r"not HTTP"):
            await connection.head()
        await poll(connection.transport.is_closing)
        assert not connection.reusable


@on_both_loops
async def test_garbage_within_the_body_is_not_http() -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    async with connected(saying(raw, then_close=False)) as connection:
        connection.send(GET)
        await connection.head()
        assert await connection.read() == b"abc"
        with pytest.raises(HopError, match="not HTTP"):
            await connection.read()


@on_both_loops
async def test_informational_answers_are_skipped() -> None:
    raw = (
        b"HTTP/1.1 100 Continue\r\nx-early: 1\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok"
    )
    for pieces in ((raw,), tuple(raw[i : i + 7] for i in range(0, len(raw), 7))):
        async with connected(saying(*pieces, then_close=False)) as connection:
            connection.send(GET)
            head = await connection.head()
            assert (head.status, head.headers) == (201, {b"content-length": b"2"})
            assert await connection.read_all(10) == b"ok"
            assert connection.reusable


@pytest.mark.parametrize(
    "extra",
    [
        b"garbage",
        b"\r\n\r\nx",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 5\r\n\r\nwrong",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
@pytest.mark.parametrize("same_segment", [True, False])
@on_both_loops
async def test_bytes_after_an_answer_cost_the_connection_and_never_mix_with_the_answer(
    extra: bytes, *, same_segment: bool
) -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    pieces = (raw + extra,) if same_segment else (raw, extra)
    async with connected(saying(*pieces, then_close=False)) as connection:
        connection.send(GET)
        head = await connection.head()
        await poll(connection.transport.is_closing)
        assert head.status == 200
        assert await connection.read_all(100) == b"ok"
        assert not connection.reusable


@on_both_loops
async def test_bytes_before_any_request_cost_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with connected(script) as connection:
        await poll(lambda: not connection.reusable)


@on_both_loops
async def test_a_peer_that_closes_an_idle_connection_makes_it_unusable() -> None:
    async with connected(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")) as connection:
        assert await exchange(connection) == (200, b"")
        await poll(lambda: not connection.reusable)


def flood(prefix: bytes, unit: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(prefix)
        for _ in range(4096):
            writer.write(unit)
            await writer.drain()
        raise AssertionError("the client swallowed 4 MiB of nothing")

    return script


@pytest.mark.parametrize(
    ("prefix", "unit"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 1019 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1024),
        (b"HTTP/1.1 200 ", b"y" * 1024),
        (b"HTTP/1.1 200 OK\r\n", b"y" * 1024),
        (b"", b"HTTP/1.1 100 Continue\r\nx: " + b"y" * 1000 + b"\r\n\r\n"),
    ],
    ids=["many headers", "long value", "long reason", "long name", "many informational answers"],
)
@on_both_loops
async def test_a_flood_of_head_is_cut(prefix: bytes, unit: bytes) -> None:
    async with connected(flood(prefix, unit)) as connection:
        connection.send(GET)
        with pytest.raises(HopError, match=r"headers are too long|not HTTP"):
            await connection.head()


@pytest.mark.parametrize(
    "prefix",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: ",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n5;x=",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ],
    ids=["trailer value", "chunk extension", "trailers"],
)
@on_both_loops
async def test_a_flood_of_framing_within_the_body_is_cut(prefix: bytes) -> None:
    unit = b"x: " + b"y" * 1019 + b"\r\n" if prefix.endswith(b"0\r\n") else b"y" * 1024
    async with connected(flood(prefix, unit)) as connection:
        connection.send(GET)
        await connection.head()
        assert await connection.read() == b"ok"
        with pytest.raises(HopError, match=r"headers are too long|not HTTP"):
            await connection.read()


@on_both_loops
async def test_a_slow_reader_holds_the_peer_back() -> None:
    size = 32 * 1024 * 1024
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536
        await reader.read()

    async with connected(script) as connection:
        connection.send(GET)
        await connection.head()
        # The peer stands still once the kernel's buffers are full, which is well before the end.
        still_since = 0
        last = -1
        while still_since < 50:
            still_since = still_since + 1 if sent == last else 0
            last = sent
            await asyncio.sleep(0.002)
        assert sent < size
        assert connection._buffered < http1.READ_BUFFER_BYTES_MAX + 512 * 1024
        got = 0
        while chunk := await connection.read():
            got += len(chunk)
        assert got == size
        assert connection.reusable


@on_both_loops
async def test_an_answer_beyond_the_limit_is_cut() -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000
    async with connected(saying(raw, then_close=False)) as connection:
        connection.send(GET)
        await connection.head()
        with pytest.raises(HopError, match="too long"):
            await connection.read_all(999)
        assert not connection.reusable


@on_both_loops
async def test_an_abort_reaches_the_peer_and_ends_a_waiting_reader() -> None:
    seen = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc")
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        seen.set()

    async with connected(script) as connection:
        connection.send(GET)
        assert (await connection.head()).status == 200
        assert await connection.read() == b"abc"
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(refused(connection))
            await asyncio.sleep(0)
            connection.abort()
            connection.abort()
        assert waiting.result() is HopClosedError
        await seen.wait()
        assert await refused(connection) is HopClosedError
        assert not connection.reusable


async def refused(connection: Connection) -> type[Exception] | None:
    try:
        await connection.read()
    except HopError as error:
        return type(error)
    return None


@on_both_loops
async def test_an_abort_while_reading_is_paused_ends_cleanly() -> None:
    size = 8 * 1024 * 1024

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await writer.drain()

    async with connected(script) as connection:
        connection.send(GET)
        await connection.head()
        await poll(lambda: connection._paused)
        connection.abort()
        assert len(await connection.read()) > http1.READ_BUFFER_BYTES_MAX
        assert await refused(connection) is HopClosedError


@on_both_loops
async def test_a_cancelled_reader_leaves_the_answer_readable() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await go_on.wait()
        writer.write(b"ok")
        await reader.read()

    async with connected(script) as connection:
        connection.send(GET)
        await connection.head()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connection.read()
        go_on.set()
        assert await connection.read_all(10) == b"ok"
        assert connection.reusable


@on_both_loops
async def test_an_answer_before_the_request_was_sent_whole_leaves_an_unusable_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await stop.wait()

    stop = asyncio.Event()
    async with connected(script) as connection:
        body = bytes(64 * 1024 * 1024)
        assert await exchange(connection, request_bytes(b"POST", b"/", [], body)) == (413, b"")
        assert not connection.reusable
        stop.set()


@on_both_loops
async def test_an_answer_without_a_body_is_complete_at_once() -> None:
    for raw in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"):
        async with connected(saying(raw, then_close=False)) as connection:
            connection.send(GET)
            await connection.head()
            assert await connection.read() == b""
            assert connection.reusable


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
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
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@on_both_loops
async def test_over_tls_connections_are_kept_held_back_and_aborted(certificate: pathlib.Path) -> None:
    size = 4 * 1024 * 1024
    ended = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
            await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await reader.read()
        ended.set()

    async with connected(script, certificate) as connection:
        assert connection.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        for _ in range(2):
            connection.send(GET)
            await connection.head()
            await poll(lambda: connection._paused)
            got = 0
            while chunk := await connection.read():
                got += len(chunk)
            assert got == size
            assert connection.reusable
        connection.send(GET)
        await connection.head()
        assert await connection.read() == b"ok"
        connection.abort()
        await ended.wait()
        assert await refused(connection) is HopClosedError
