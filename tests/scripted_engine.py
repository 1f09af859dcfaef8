"""An OpenAI-compatible engine that does what the prompt says, for faults that no real engine makes on demand.

The last message's content may be a JSON script; anything else means the defaults:
`{"tokens": 5, "first_s": 0, "interval_s": 0, "die_after": null, "status": 200, "retry_after": null, "split": false}`.
Who dies after some tokens dies `interval_s` after the last: leave time enough for that one to have been relayed.
It speaks HTTP/1.1 by hand, because the faults are below what a server library lets one do.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

DEADLINE_S = 60.0


class SeenRequest:
    """One chat request as the engine saw it; `ended` is None while it runs."""

    def __init__(self, target: str, headers: dict[str, str], body: bytes) -> None:
        self.target = target
        self.headers = headers
        self.body = body
        self.sent_tokens = 0
        self.ended: str | None = None
        self.ended_at: float | None = None

    def end(self, how: str) -> None:
        self.ended = how
        self.ended_at = time.monotonic()


class ScriptedEngine:
    """An async context manager; `url` is its OpenAI base URL."""

    def __init__(self, model: str = "scripted", usage: dict[str, Any] | None = None) -> None:
        self.model = model
        self.usage = usage
        self.requests: list[SeenRequest] = []
        self.refuse_with: int | None = None
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.die()

    async def die(self) -> None:
        """Cut every connection and stop listening, as a crash would."""
        if self._server is None:
            return
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        if self._handlers:
            await asyncio.wait(self._handlers)
        self._server = None

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (part.partition(":") for part in lines if part)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                seen = SeenRequest(line.split(" ")[1], headers, body)
                if not await self._answer(seen, reader, writer):
                    return
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            # Cancelled only when the test's loop closes.
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, seen: SeenRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if not seen.target.endswith(("/completions", "/embeddings")):
            writer.write(_plain(200, {"status": "ok", "object": "list", "data": [{"id": self.model}]}))
            return True
        self.requests.append(seen)
        request = json.loads(seen.body)
        script = _script(request)
        if self.refuse_with is not None or script["status"] != 200:
            status = self.refuse_with or script["status"]
            writer.write(_plain(status, script.get("body", {"error": {"message": "scripted", "type": "x"}}), script))
            seen.end("refused")
            return True
        answer = self._embed if seen.target.endswith("/embeddings") else self._generate
        work = asyncio.ensure_future(answer(seen, request, script, writer))
        watch = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, watch):
            task.cancel()
        ended, _ = await asyncio.gather(work, watch, return_exceptions=True)
        if seen.ended is None:
            seen.end("aborted")
        return ended is True

    async def _embed(
        self, seen: SeenRequest, request: dict[str, Any], script: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        await asyncio.sleep(script["first_s"])
        if script["die_after"] is not None:
            seen.end("died")
            writer.transport.abort()
            return False
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        data = [{"object": "embedding", "index": at, "embedding": [0.5, 0.25]} for at in range(len(texts))]
        usage = self.usage or {"prompt_tokens": 10, "total_tokens": 10}
        writer.write(_plain(200, {"object": "list", "model": self.model, "data": data, "usage": usage}))
        await writer.drain()
        seen.end("complete")
        return True

    async def _generate(
        self, seen: SeenRequest, request: dict[str, Any], script: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        stream, bare = bool(request.get("stream")), "prompt" in request
        tokens = min(script["tokens"], request.get("max_tokens") or request.get("max_completion_tokens") or 10**9)
        usage = self.usage or script.get("usage") or {
            "prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens,
            "prompt_tokens_details": {"cached_tokens": 4},
        }  # fmt: skip
        if stream:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.sleep(script["first_s"])
        for index in range(tokens):
            if script["die_after"] is not None and index >= script["die_after"]:
                seen.end("died")
                writer.transport.abort()
                return False
            if stream:
                content = script["text"].replace("{}", str(index))
                delta = {"index": 0, "delta": {"content": content}, "finish_reason": None}
                if bare:
                    delta = {"index": 0, "text": content, "finish_reason": None}
                self._event(writer, {"id": "c", "object": "chat.completion.chunk", "choices": [delta]}, script)
                await writer.drain()
            seen.sent_tokens += 1
            if script["interval_s"]:
                await asyncio.sleep(script["interval_s"])
        if stream:
            last = {"index": 0, "text" if bare else "delta": "" if bare else {}, "finish_reason": "stop"}
            self._event(writer, {"id": "c", "object": "chat.completion.chunk", "choices": [last]}, script)
            if (request.get("stream_options") or {}).get("include_usage"):
                self._event(writer, {"id": "c", "choices": [], "usage": usage}, script)
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            text = "".join(script["text"].replace("{}", str(index)) for index in range(tokens))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            if bare:
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
            answer = {"id": "c", "object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}
            writer.write(_plain(200, answer))
        await writer.drain()
        seen.end("complete")
        return True

    def _event(self, writer: asyncio.StreamWriter, chunk: dict[str, Any], script: dict[str, Any]) -> None:
        raw = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        if script["split"]:
            middle = len(raw) // 2
            writer.write(_chunk(raw[:middle]))
            writer.write(_chunk(raw[middle:]))
        else:
            writer.write(_chunk(raw))


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Poll until `condition` holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold in time"
        await asyncio.sleep(0.01)


def _script(request: dict[str, Any]) -> dict[str, Any]:
    script: dict[str, Any] = {
        "tokens": 5, "first_s": 0, "interval_s": 0, "die_after": None, "status": 200, "retry_after": None,
        "split": False, "text": "t{} ",
    }  # fmt: skip
    given = request.get("prompt", request.get("input"))
    if isinstance(given, list):
        given = given[0]
    content = request["messages"][-1].get("content") if given is None else given
    if isinstance(content, str) and content.startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):
            script |= json.loads(content)
    return script


def _plain(status: int, document: object, script: dict[str, Any] | None = None) -> bytes:
    body = json.dumps(document).encode()
    extra = f"retry-after: {script['retry_after']}\r\n" if script and script["retry_after"] else ""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
