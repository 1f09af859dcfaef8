"""Connections: kept, checked, pinned, given up; above all, no upstream is made to do a job twice."""

import asyncio
import functools
import inspect
import pathlib
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cocoon import hop
from cocoon.clock import ManualClock
from cocoon.http1 import Connection, HopClosedError
from cocoon.receipt import ReceiptHead
from cocoon.usage import TokenUsage
from tests.integration.transport.peers import Peer, Served, a_certificate, a_job, serving
from tests.scripted_engine import until
from workers import connections as module
from workers.connections import Connections, IdentityError, Route, spki_sha256
from workers.transport import Batch, RefusedError, Transport, TransportError

ANSWER = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
USAGE = TokenUsage(prompt=3, completion=2)


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*, loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(asyncio.wait_for(test(**arguments), 100))

    parameters = [*inspect.signature(test).parameters.values()]
    parameters.append(inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", list(LOOPS))(run)


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, bytes]:
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    return path, a_certificate(path)


def frames(usage: TokenUsage = USAGE, finish_reason: str = "stop", data: bytes = b"{}") -> bytes:
    head = ReceiptHead(
        global_id=-3, stake=bytes(32), seq=0, ticket_sha256=bytes(32), body_sha256=bytes(32), usage=USAGE
    )
    trailer = hop.Trailer(
        usage=usage, finish_reason=finish_reason, receipt_head=head.encode(), receipt_signature=bytes(64),
        receipt_body=b"",
    )  # fmt: skip
    return hop.data_frame(data) + hop.trailer_frame(trailer)


async def whole(transport: Transport, *arguments: Any) -> Batch:
    answer = await transport.open(*arguments)
    try:
        batch = await answer.next()
        while batch.end is None:
            batch = await answer.next()
        return batch
    finally:
        answer.close()


async def keep_answering(peer: Peer) -> None:
    while True:
        await peer.request()
        peer.answer(ANSWER)


async def agent(peer: Peer) -> None:
    while True:
        await peer.request()
        peer.begin(hop.CONTENT_TYPE)
        peer.chunk(frames())
        peer.end()


@on_both_loops
async def test_a_connection_is_used_again_while_it_is_young() -> None:
    clock = ManualClock()
    transport = Transport(clock, allow_private=True)
    async with serving(keep_answering) as served:
        for wait_s, connections in ((0, 1), (1, 1), (3.5, 1), (4.5, 2)):
            clock.advance(wait_s)
            await whole(transport, served.upstream(), a_job())
            assert served.connections == connections
        transport.close()


@on_both_loops
async def test_an_upstream_that_closed_while_idle_is_not_written_to() -> None:
    seen: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            peer, _ = listening.accept()
            with peer:
                seen.append(peer.recv(65536))
                peer.sendall(b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))

    transport = Transport(ManualClock(), allow_private=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        work = asyncio.get_running_loop().run_in_executor(None, serve, listening)
        served = Served()
        served.port = listening.getsockname()[1]
        answer = await transport.open(served.upstream(), a_job())
        await answer.next()
        kept = answer._connection  # type: ignore[attr-defined]
        answer.close()
        if kept.reusable:
            # The close arrives while the loop is busy, so that the loop has not been told when the next request goes.
            news = select.poll()
            news.register(kept.transport.get_extra_info("socket").fileno(), select.POLLIN)
            assert news.poll(5000)
        await whole(transport, served.upstream(), a_job())
        await work
        assert [request.count(b"POST") for request in seen] == [1, 1]
        transport.close()


@on_both_loops
async def test_a_request_that_an_upstream_may_have_seen_is_not_sent_again() -> None:
    async def dies(peer: Peer) -> None:
        await peer.request()
        peer.answer(ANSWER)
        await peer.request()

    transport = Transport(ManualClock(), allow_private=True)
    async with serving(dies) as served:
        await whole(transport, served.upstream(), a_job())
        with pytest.raises(HopClosedError):
            await transport.open(served.upstream(), a_job())
        assert len(served.requests) == 2
        transport.close()


@on_both_loops
async def test_an_agent_gets_the_ticket_again_when_a_kept_connection_closes(pinned: tuple[pathlib.Path, bytes]) -> None:
    path, pin = pinned

    async def closes(peer: Peer) -> None:
        await peer.request()
        peer.begin(hop.CONTENT_TYPE)
        peer.chunk(frames())
        peer.end()
        if served.connections == 1:
            await peer.request()

    transport = Transport(ManualClock(), allow_private=True)
    async with serving(closes, path) as served:
        for _ in range(2):
            assert (await whole(transport, served.worker(pin), a_job())).end is not None
        assert (served.connections, len(served.requests)) == (2, 3)
        transport.close()


@on_both_loops
async def test_another_key_than_the_enrolled_one_hears_nothing(pinned: tuple[pathlib.Path, bytes]) -> None:
    path, pin = pinned
    transport = Transport(ManualClock(), allow_private=True)
    async with serving(agent, path) as served:
        await whole(transport, served.worker(pin), a_job())
        # The kept connection of the right key is no way around: routes are told apart by their pins.
        for _ in range(2):
            with pytest.raises(IdentityError):
                await transport.open(served.worker(bytes(32)), a_job())
        assert len(served.requests) == 1
        transport.close()


@on_both_loops
async def test_a_private_address_is_refused_when_it_is_resolved_to(pinned: tuple[pathlib.Path, bytes]) -> None:
    path, pin = pinned
    transport = Transport(ManualClock(), allow_private=False)
    async with serving(agent, path) as served:
        with pytest.raises(TransportError, match="not permitted"):
            await transport.open(served.worker(pin, host="localhost"), a_job())
        assert served.requests == []


@on_both_loops
async def test_nobody_there_and_no_name_are_unreachable() -> None:
    transport = Transport(ManualClock(), allow_private=True)
    async with serving(agent) as served:
        target = served.upstream()
    with pytest.raises(TransportError):
        await transport.open(target, a_job())
    with pytest.raises(TransportError):
        await transport.open(served.upstream(host="a" * 64 + ".example"), a_job())


@on_both_loops
async def test_giving_up_during_the_tls_handshake_leaves_no_connection(pinned: tuple[pathlib.Path, bytes]) -> None:
    _, pin = pinned
    gone = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.gone()
        gone.set()

    transport = Transport(ManualClock(), allow_private=True)
    async with serving(silent) as served:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await transport.open(served.worker(pin), a_job())
        await gone.wait()
        assert transport._connections._kept == {}


@on_both_loops
async def test_giving_up_while_waiting_for_the_head_aborts_new_and_kept_connections() -> None:
    gone: list[int] = []

    async def stalls(peer: Peer) -> None:
        while True:
            await peer.request()
            if len(served.requests) in {1, 3}:
                await peer.gone()
                gone.append(len(served.requests))
                return
            peer.answer(ANSWER)

    transport = Transport(ManualClock(), allow_private=True)
    async with serving(stalls) as served:

        async def give_up() -> None:
            """Once the target has the request: a limit in seconds could strike before that, and nobody would hear."""
            number = len(served.requests) + 1
            asking = asyncio.create_task(whole(transport, served.upstream(), a_job()))
            await until(lambda: len(served.requests) == number)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
            await until(lambda: number in gone)

        await give_up()
        await whole(transport, served.upstream(), a_job())
        await give_up()
        assert served.connections == 2
        transport.close()


@on_both_loops
async def test_routes_that_are_no_longer_used_are_forgotten_with_their_connections() -> None:
    clock = ManualClock()
    transport = Transport(clock, allow_private=True)
    async with serving(keep_answering) as old, serving(keep_answering) as new:
        await whole(transport, old.upstream(), a_job())
        clock.advance(module.IDLE_S_MAX + 1)
        await whole(transport, new.upstream(), a_job())
        kept = transport._connections._kept
        assert [route.port for route in kept] == [new.port]
        transport.close()


async def test_a_peer_without_an_address_any_more_is_unreachable() -> None:
    class Left:
        def get_extra_info(self, name: str) -> None:
            return None

    connection = Connection()
    connection._transport = Left()  # type: ignore[assignment]
    with pytest.raises(TransportError, match="left"):
        Connections(ManualClock(), allow_private=True)._check_peer(connection, bytes(32))


def test_a_certificate_with_a_key_that_nobody_can_read_is_not_the_enrolled_one(
    pinned: tuple[pathlib.Path, bytes],
) -> None:
    der = x509.load_pem_x509_certificate(pinned[0].read_bytes()).public_bytes(Encoding.DER)
    curve = bytes.fromhex("2a8648ce3d030107")
    assert curve in der
    for broken in (der.replace(curve, bytes.fromhex("2a8648ce3d03017f")), der[:-1], b""):
        with pytest.raises(IdentityError):
            spki_sha256(broken)


@on_both_loops
async def test_an_error_body_is_read_up_to_a_limit_and_its_connection_kept_only_when_whole() -> None:
    async def refuses(peer: Peer) -> None:
        while True:
            size = 100 if len(served.requests) == 0 else 300 * 1024
            await peer.request()
            peer.answer(b"e" * size, 500, retry_after="9" * 400)

    transport = Transport(ManualClock(), allow_private=True)
    async with serving(refuses) as served:
        for body in (b"e" * 100, b""):
            with pytest.raises(RefusedError) as refused:
                await transport.open(served.upstream(), a_job())
            assert (refused.value.status, refused.value.body) == (500, body)
            # A number of four hundred digits is infinite as a float, and nobody can wait for that.
            assert refused.value.retry_after_s == 3600
        assert (served.connections, len(served.requests)) == (1, 2)
        assert not any(transport._connections._kept[Route("127.0.0.1", served.port, tls=False, pin=None)])
