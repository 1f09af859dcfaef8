"""What the agent refuses, each with the attack; the engine must never hear of it."""

import asyncio
import time

import msgspec
import pytest

from cocoon import hop
from cocoon.clock import SystemClock, system_random
from cocoon.endpoints import CHAT
from cocoon.ids import new_job_id
from cocoon.ticket import seal_ticket, ticket_key
from tests.integration.agent.conftest import Launch
from tests.integration.agent.fake_engine import FakeEngine, Script
from tests.integration.agent.fake_gateway import GLOBAL_ID, SECRET, Answer, FakeGateway, Peer, read_answer, until
from tests.signing_values import Operator

BODY = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
RAW = msgspec.json.encode(BODY)


def _refused(answer: Answer, status: int, code: str) -> bool:
    assert set(answer.error) == {"message", "type", "param", "code"}
    return (answer.status, answer.error["code"]) == (status, code)


async def test_only_an_authentic_ticket_for_exactly_this_job_is_served(peer: Peer, engine: FakeEngine) -> None:
    good = peer.ticket(RAW)
    sealed = peer.sealed(good)
    assert _refused(await peer.post(RAW, None), 401, "ticket_missing")
    assert _refused(await peer.post(RAW, "not a ticket"), 401, "ticket_invalid")
    assert _refused(await peer.post(RAW, sealed[:-4] + "AAAA"), 401, "ticket_invalid")
    assert _refused(await peer.post(RAW, seal_ticket(b"k" * 32, good)), 401, "ticket_invalid")
    # A ticket of the same network for another worker's keyset.
    assert _refused(await peer.post(RAW, seal_ticket(ticket_key(SECRET, b"o" * 32), good)), 401, "ticket_invalid")
    # One bit more allowance, under the old MAC.
    raised = bytearray(sealed.encode())
    raised[90] ^= 1
    assert _refused(await peer.post(RAW, raised.decode()), 401, "ticket_invalid")
    assert _refused(await peer.post(RAW + b" ", sealed), 403, "ticket_mismatch")
    assert _refused(await peer.chat(BODY, not_after=int(time.time()) - 1), 403, "ticket_expired")
    assert _refused(await peer.chat(BODY, global_id=GLOBAL_ID + 1), 403, "ticket_foreign")
    assert _refused(await peer.chat(BODY, stake=b"s" * 32), 403, "ticket_foreign")
    assert _refused(await peer.chat(BODY, max_completion=0), 403, "ticket_exhausted")
    assert engine.requests == []
    # None of the refusals used the good ticket up.
    assert (await peer.post(RAW, sealed)).status == 200


async def test_an_attempt_runs_once_and_another_attempt_of_its_job_may_run(peer: Peer, engine: FakeEngine) -> None:
    job = new_job_id(SystemClock(), system_random())
    assert (await peer.chat(BODY, job_id=job)).status == 200
    assert _refused(await peer.chat(BODY, job_id=job), 409, "ticket_replayed")
    assert _refused(await peer.chat({**BODY, "seed": 1}, job_id=job), 409, "ticket_replayed")
    assert (await peer.chat(BODY, job_id=job, attempt=1)).status == 200
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b"[]", 400, "invalid_request"),
        (b'{"model":"fake"}', 400, "invalid_request"),
        (b'{"model":"fake","messages":3}', 400, "invalid_request"),
        (b'{"model":"fake","messages":[{"role":"user","content":"\xff"}]}', 400, "invalid_request"),
        (b'{"model":"fake","messages":' + b"[" * 5000, 400, "invalid_request"),
        (b'{"model":"fake","messages":[]}', 400, "empty_array"),
        (b'{"model":"fake","messages":[{"role":"user"}],"n":0}', 400, "integer_out_of_range"),
        (b'{"model":"fake","messages":[{"role":"user"}],"n":1000000}', 400, "integer_out_of_range"),
        (b'{"model":"fake","messages":[{"role":"user"}],"max_tokens":-5}', 400, "integer_below_min_value"),
        (b'{"model":"other\\r\\nx-evil: 1","messages":[]}', 404, "model_not_found"),
    ],
)
async def test_bodies_that_are_no_chat_for_this_worker_are_refused(
    peer: Peer, engine: FakeEngine, body: bytes, status: int, code: str
) -> None:
    assert _refused(await peer.chat(body), status, code)
    assert engine.requests == []


async def test_salts_and_paths_are_checked(peer: Peer, engine: FakeEngine) -> None:
    for salt in ("AAAA", "A" * 88, "=" * 32, "ä" * 24):
        answer = await peer.chat(BODY, {"x_cocoon_salt": salt}) if salt.isascii() else None
        assert answer is None or _refused(answer, 400, "bad_salt")
    async with peer.connected() as connection:
        connection.send(peer.request(b"", None, path="/get_server_info"))
        assert (await read_answer(connection)).status == 404
    async with peer.connected() as connection:
        connection.send(b"GET " + CHAT.job_path.encode() + b" HTTP/1.1\r\nhost: w\r\n\r\n")
        assert (await read_answer(connection)).status == 405
    assert engine.seen == [seen for seen in engine.seen if seen.target == "/v1/models"]


async def test_a_body_over_the_limit_is_refused_by_its_name_before_it_is_sent(peer: Peer) -> None:
    ticket = peer.sealed(peer.ticket(b""))
    async with peer.connected() as connection:
        head = f"POST {CHAT.job_path} HTTP/1.1\r\nhost: w\r\n{hop.TICKET_HEADER}: {ticket}\r\n"
        connection.send(f"{head}content-length: {20 * 1024 * 1024 + 1}\r\n\r\n".encode())
        answer = await read_answer(connection)
    assert _refused(answer, 413, "body_too_large")
    assert str(20 * 1024 * 1024) in answer.error["message"]


async def test_a_chunked_body_over_the_limit_is_cut_off(peer: Peer) -> None:
    ticket = peer.sealed(peer.ticket(b""))
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    async with peer.connected() as connection:
        head = f"POST {CHAT.job_path} HTTP/1.1\r\nhost: w\r\n{hop.TICKET_HEADER}: {ticket}\r\n"
        connection.send(f"{head}transfer-encoding: chunked\r\n\r\n".encode() + piece * 21)
        assert _refused(await read_answer(connection), 413, "body_too_large")


async def test_an_upload_that_ends_early_is_not_taken_for_whole(peer: Peer, engine: FakeEngine) -> None:
    ticket = peer.sealed(peer.ticket(RAW))
    async with peer.connected() as connection:
        head = f"POST {CHAT.job_path} HTTP/1.1\r\nhost: w\r\n{hop.TICKET_HEADER}: {ticket}\r\n"
        connection.send(f"{head}content-length: {len(RAW) + 10}\r\n\r\n".encode() + RAW)
        await asyncio.sleep(0)
    assert (await peer.post(RAW, ticket)).status == 200
    assert len(engine.requests) == 1


async def test_never_more_than_the_capacity_is_in_flight(launch: Launch, engine: FakeEngine) -> None:
    peer = await (await launch(COCOON_ENGINE=engine.url, COCOON_WORKER_CAPACITY=2)).peer()
    engine.script = Script(tokens=("x",) * 60, interval_s=0.2)
    peak = 0

    async def one(_: int) -> int:
        nonlocal peak
        async with peer.begun(BODY) as job:
            status = (await job.connection.head()).status
            peak = max(peak, engine.running)
            return status

    async with peer.begun(BODY) as first, peer.begun(BODY) as second:
        for job in (first, second):
            await job.until_frame(hop.FrameKind.DATA)
        busy = await peer.chat(BODY)
        assert _refused(busy, 503, "worker_busy")
        assert busy.headers["retry-after"] == "1"
        statuses = await asyncio.gather(*(one(at) for at in range(6)))
        assert statuses == [503] * 6
    await peer.until_idle()
    engine.script = Script()
    assert (await peer.chat(BODY)).status == 200
    assert (peak, max(seen.sent for seen in engine.requests) > 0) == (2, True)


async def test_an_engine_that_is_away_makes_the_agent_refuse_and_report_no_capacity(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    peer = await (await launch(COCOON_ENGINE=engine.url)).peer()
    await engine.die()
    answer = await peer.chat(BODY)
    assert answer.status in (502, 503)
    await until(lambda: gateway.heartbeats[-1].capacity == 0)
    answer = await peer.chat(BODY)
    assert _refused(answer, 503, "engine_unavailable")
    async with FakeEngine(port=engine.port):
        await until(lambda: gateway.heartbeats[-1].capacity == 4)
        assert (await peer.chat(BODY)).status == 200


async def test_without_signatures_for_its_tickets_the_agent_works_for_a_few_and_then_for_none(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    signing = gateway.sign
    gateway.sign = lambda request: (503, b"{}")
    peer = await (await launch(COCOON_ENGINE=engine.url, COCOON_UNSIGNED_MAX=3)).peer()
    for _ in range(3):
        assert (await peer.chat(BODY)).status == 200
    refused = await peer.chat(BODY)
    assert _refused(refused, 503, "tickets_unsigned")
    assert refused.headers["retry-after"] == "1"
    assert len(engine.requests) == 3
    gateway.sign = signing
    await until(lambda: gateway.asked)
    assert len(gateway.asked[-1].tickets) == 3
    assert (await _when_signed(peer)).status == 200


async def _when_signed(peer: Peer) -> Answer:
    end = time.monotonic() + 20
    while (answer := await peer.chat(BODY)).status == 503:
        assert time.monotonic() < end, "the signatures did not help"
        await asyncio.sleep(0.02)
    return answer


async def test_signatures_of_a_foreign_operator_do_not_help(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    pinned = Operator(GLOBAL_ID)
    agent = await launch(COCOON_ENGINE=engine.url, COCOON_UNSIGNED_MAX=1, COCOON_OPERATOR_KEY=pinned.public.hex())
    peer = await agent.peer()
    assert (await peer.chat(BODY)).status == 200
    await until(lambda: gateway.asked)
    await until(lambda: "another operator" in agent.output)
    assert _refused(await peer.chat(BODY), 503, "tickets_unsigned")
    gateway.operator = pinned
    assert (await _when_signed(peer)).status == 200
