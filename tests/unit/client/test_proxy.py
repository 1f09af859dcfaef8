"""The local endpoint over real loopback sockets, with a gateway in the same process behind it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cocoon_client.proxy.main import ListenError, Proxy, ProxySettings
from cocoon_client.store import Store
from cocoon_client.verification.walk import verify
from tests.fake_network import API_KEY, BASE_URL, MODEL, FakeGateway, error

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "the plaintext"}]}


@contextlib.asynccontextmanager
async def proxied(gateway: FakeGateway, state: Path, **changes: Any) -> AsyncIterator[str]:
    """The base URL of a proxy before this gateway."""
    trust = changes.pop("trust", None) or gateway.trust()
    settings = ProxySettings(**{"base_url": BASE_URL, "port": 0, "state": state, "api_key": API_KEY} | changes)
    async with Proxy(settings, trust, gateway=lambda: gateway).running() as proxy:
        yield f"http://127.0.0.1:{proxy.port}/v1"


async def until(judge: Callable[[], Any], deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not judge():
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.02)


async def post(url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.post(url + "/chat/completions", json={**ASKED, **body}, headers=headers)


async def test_any_openai_client_gets_sealed_answers(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with (
        proxied(gateway, tmp_path) as url,
        openai.AsyncOpenAI(base_url=url, api_key=API_KEY, max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(**ASKED)
        chunks = [chunk async for chunk in await client.chat.completions.create(**ASKED, stream=True)]
        models = await client.models.list()

    assert answer.choices[0].message.content == "a secret answer"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "a secret answer"
    assert [model.id for model in models.data] == [MODEL]
    assert b"plaintext" not in gateway.wire


async def test_the_key_of_the_environment_serves_programs_that_have_none(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path) as url:
        assert (await post(url)).status_code == 200
    assert gateway.requests[-1].headers["authorization"] == f"Bearer {API_KEY}"


async def test_the_receipt_is_fetched_verified_and_kept(tmp_path: Path) -> None:
    gateway, store = FakeGateway(), Store(tmp_path)
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url)
        receipt_id = answer.headers["x-cocoon-receipt"]
        kept = store.load(receipt_id)
        assert kept is not None
        assert kept.opening is not None
        gateway.bundle(kept.opening)
        await until(lambda: store.load(receipt_id).bundle is not None)

    proof = store.load(receipt_id)
    assert proof is not None
    assert verify(proof, gateway.trust()).holds
    assert store.seen(gateway.trust().log_key) is not None


async def test_connections_are_kept_between_requests(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path) as url, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for stream in (True, False, True):
            answer = await client.post(url + "/chat/completions", json={**ASKED, "stream": stream})
            assert answer.status_code == 200
    assert gateway.attestations() == 1


async def test_a_large_request_passes(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url, messages=[{"role": "user", "content": "x" * 3_000_000}])
    assert answer.status_code == 200
    assert len(gateway.workers[0].opened[0].body) > 3_000_000


# Refusals


@pytest.mark.parametrize("path", ["/responses", "/moderations", "/files"])
async def test_what_cannot_be_sealed_is_refused_and_not_sent(path: str, tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path) as url, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        answer = await client.post(url + path, json={"model": MODEL, "input": "the plaintext"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_sealable")
    assert gateway.requests == []


async def test_simulated_workers_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path, trust=gateway.trust(allow_simulated=False)) as url:
        answer = await post(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "not_trusted")
    assert "simulated" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert b"plaintext" not in gateway.wire


async def test_an_error_of_the_gateway_is_passed_on(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.refusing.append(error(402, "insufficient_quota"))
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_quota")


async def test_a_plain_answer_is_a_downgrade(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.refusing.append(httpx.Response(200, json={"choices": []}))
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "downgrade_refused")


async def test_a_stream_that_is_cut_off_ends_with_an_error_and_no_end_mark(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.answering = lambda parts: parts[:-1]
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url, stream=True)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "answer_refused"
    assert "[DONE]" not in answer.text


async def test_a_document_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.answering = lambda parts: parts[:-1]
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "answer_refused")


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}])
async def test_a_page_in_a_browser_cannot_spend_the_key(headers: dict[str, str], tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path) as url:
        answer = await post(url, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert gateway.requests == []


async def test_an_address_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with proxied(gateway, tmp_path) as url:
        port = httpx.URL(url).port
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}: "):
            async with proxied(gateway, tmp_path, port=port):
                pass


def test_an_address_of_other_machines_is_refused(tmp_path: Path) -> None:
    settings = ProxySettings(base_url=BASE_URL, host="0.0.0.0", state=tmp_path)
    with pytest.raises(ListenError, match="other machines"):
        Proxy(settings, FakeGateway().trust())


@pytest.mark.parametrize(
    ("raw", "status"),
    [(b"no request\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", b"413")],
)
async def test_what_is_no_request_is_refused(raw: bytes, status: bytes, tmp_path: Path) -> None:
    async with proxied(FakeGateway(), tmp_path) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(raw)
        first = await reader.readline()
        writer.close()
    assert status in first


async def test_a_program_that_leaves_ends_the_request_at_the_gateway(tmp_path: Path) -> None:
    gateway = Stuck()
    async with proxied(gateway, tmp_path) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        body = json.dumps({**ASKED, "stream": True}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readuntil(b"a ")
        writer.close()
        await asyncio.wait_for(gateway.left.wait(), 60)


class Stuck(FakeGateway):
    """A gateway whose streams never end by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.left = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST":
            response.stream = Endless(response.stream, self.left)
        return response


class Endless(httpx.AsyncByteStream):
    def __init__(self, stream: Any, left: asyncio.Event) -> None:
        self._stream = stream
        self._left = left

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = [piece async for piece in self._stream]
        for piece in pieces[:-5]:
            yield piece
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self._left.set()
