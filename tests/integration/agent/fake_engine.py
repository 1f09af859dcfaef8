"""An engine made of a script, below what a server library allows: slow prefills, deaths, odd dialects.

`FakeEngine` is an async context manager. Its `script` says how the next requests are answered; a request may carry its
own in the member `fake` (which the agent passes through like any unknown member). What was asked is in `requests`.
As a process: `python fake_engine.py PORT` prints its URL.
"""

import asyncio
import contextlib
import json
import sys
from typing import Any, Self

import msgspec

EMBEDDINGS = "/v1/embeddings"


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How one request is answered. Times are seconds.

    `dialect`: `openai`, `llama` (progress, timings, a usage chunk per choice) or `sglang` (usage in every chunk when
    asked, `/abort_request`). `usage`: reported counts instead of the true ones; None means true; () means none at all.
    `die_after`: close the connection after so many tokens, without an end. `events`: answer exactly these payloads.
    `fresh_bytes`: write so many bytes at a time, to cut events anywhere.
    """

    tokens: tuple[str, ...] = ("Hello", " from", " the", " fake", ".")
    dialect: str = "openai"
    prefill_s: float = 0.0
    interval_s: float = 0.0
    prompt: int = 11
    cached: int = 3
    usage: tuple[int, ...] | None = None
    die_after: int | None = None
    done: bool = True
    status: int = 200
    error: Any = None
    retry_after: str | None = None
    events: tuple[str, ...] | None = None
    fresh_bytes: int = 0
    finish: str = "stop"


class Seen:
    """One request. `ended` is None while it runs, then `complete`, `refused`, `died` or `aborted`."""

    def __init__(self, target: str, headers: dict[str, str], raw: bytes) -> None:
        self.target = target
        self.headers = headers
        self.raw = raw
        self.sent = 0
        self.ended: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


class FakeEngine:
    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        self.script = script or Script()
        self.seen: list[Seen] = []
        self.aborted_rids: list[str] = []
        self.port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Seen]:
        """What was asked of the model only, oldest first."""
        return [seen for seen in self.seen if seen.target in ("/v1/chat/completions", "/v1/completions", EMBEDDINGS)]

    @property
    def running(self) -> int:
        return sum(seen.ended is None for seen in self.requests)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def die(self) -> None:
        """Cut everything, as a crash would."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (part.partition(":") for part in lines if part)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(line.split(" ")[1], headers, raw)
        self.seen.append(seen)
        if seen.target in ("/v1/chat/completions", "/v1/completions", EMBEDDINGS):
            return await self._chat(seen, reader, writer)
        if seen.target == "/abort_request":
            self.aborted_rids.append(seen.body["rid"])
        if seen.target.startswith("/v1/loads"):
            _whole(writer, 200, {"loads": [{"num_running_reqs": self.running, "num_waiting_reqs": 2}]})
        else:
            _whole(writer, 200, {"status": "ok", "object": "list", "data": []})
        await writer.drain()
        return True

    async def _chat(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = seen.body
        script = msgspec.convert(body["fake"], Script) if "fake" in body else self.script
        if script.status != 200:
            seen.ended = "refused"
            _whole(writer, script.status, script.error, script.retry_after)
            await writer.drain()
            return True
        async with asyncio.TaskGroup() as group:
            answer = self._embed if seen.target == EMBEDDINGS else self._stream
            work = group.create_task(answer(seen, body, script, writer))

            async def watch() -> None:
                if not await reader.read(1):
                    seen.ended = seen.ended or "aborted"
                    work.cancel()

            watcher = group.create_task(watch())
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await asyncio.wait([work])
            watcher.cancel()
        return False

    async def _embed(self, seen: Seen, body: dict[str, Any], script: Script, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(script.prefill_s)
        if script.die_after is not None:
            seen.ended = "died"
            writer.transport.abort()
            return
        data = [{"object": "embedding", "index": at, "embedding": [0.5, 0.25]} for at in range(_texts(body["input"]))]
        prompt = script.prompt if script.usage is None else script.usage[0]
        usage = {"prompt_tokens": prompt, "total_tokens": prompt}
        _whole(writer, 200, {"object": "list", "model": body["model"], "data": data, "usage": usage})
        await writer.drain()
        seen.ended = "complete"

    async def _stream(self, seen: Seen, body: dict[str, Any], script: Script, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(writer, script.fresh_bytes)
        if script.dialect != "llama":
            wire.head()
        texts = seen.target == "/v1/completions"
        choices = body.get("n", 1) * (_texts(body["prompt"]) if texts else 1)
        progress = script.dialect == "llama" and body.get("return_progress")
        for step in range(4 if script.prefill_s else 0):
            await asyncio.sleep(script.prefill_s / 4)
            if progress:
                wire.head()
                counts = {"total": script.prompt, "cache": script.cached, "processed": script.prompt * (step + 1) // 4}
                await wire.event(
                    _chunk(body, [_choice(0, {"role": "assistant", "content": None})], prompt_progress=counts)
                )
        wire.head()
        if script.events is not None:
            for payload in script.events:
                await wire.payload(payload.encode())
        else:
            await self._tokens(seen, body, script, wire, choices, texts=texts)
        if script.die_after is not None:
            seen.ended = "died"
            writer.transport.abort()
            return
        if script.done:
            await wire.payload(b"[DONE]")
        seen.ended = "complete"
        await wire.end()

    async def _tokens(
        self, seen: Seen, body: dict[str, Any], script: Script, wire: "_Wire", choices: int, *, texts: bool
    ) -> None:
        limit = body.get("max_tokens") or len(script.tokens)
        tokens = script.tokens[:limit]
        finish = script.finish if len(tokens) == len(script.tokens) else "length"
        continuous = script.dialect == "sglang" and body["stream_options"].get("continuous_usage_stats")
        choice = _text if texts else _choice
        for index in range(0 if texts else choices):
            await wire.event(_chunk(body, [_choice(index, {"role": "assistant", "content": ""})]))
        for count, token in enumerate(tokens, 1):
            for index in range(choices):
                if script.die_after is not None and seen.sent >= script.die_after:
                    return
                extra: dict[str, Any] = {}
                if continuous:
                    extra["usage"] = _usage(script, count)
                if script.dialect == "llama" and body.get("timings_per_token"):
                    extra["timings"] = {
                        "cache_n": script.cached, "prompt_n": script.prompt - script.cached, "predicted_n": count,
                    }  # fmt: skip
                await wire.event(_chunk(body, [choice(index, {"content": token})], **extra))
                seen.sent += 1
            await asyncio.sleep(script.interval_s)
        each = len(tokens)
        inside = {"usage": _usage(script, each)} if texts and script.dialect == "llama" else {}
        for index in range(choices):
            await wire.event(_chunk(body, [choice(index, {}, finish)], **inside))
        if inside or script.usage == () or not body.get("stream_options", {}).get("include_usage"):
            return
        prompts = choices // body.get("n", 1)
        for _ in range(choices if script.dialect == "llama" else 1):
            completion = each if script.dialect == "llama" else each * choices
            await wire.event(_chunk(body, [], usage=_usage(script, completion, prompts)))


class _Wire:
    def __init__(self, writer: asyncio.StreamWriter, fresh_bytes: int) -> None:
        self._writer = writer
        self._fresh_bytes = fresh_bytes
        self._begun = False

    def head(self) -> None:
        if not self._begun:
            self._begun = True
            self._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )

    async def event(self, chunk: dict[str, Any]) -> None:
        await self.payload(json.dumps(chunk).encode())

    async def payload(self, payload: bytes) -> None:
        raw = b"data: " + payload + b"\n\n"
        size = self._fresh_bytes or len(raw)
        for at in range(0, len(raw), size):
            piece = raw[at : at + size]
            self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self._writer.drain()
            if self._fresh_bytes:
                await asyncio.sleep(0)

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()


def _chunk(body: dict[str, Any], choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1_700_000_000}
    return {**head, "model": body["model"], "system_fingerprint": "fp_fake", "choices": choices, **extra}


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _text(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}


def _texts(given: Any) -> int:
    return len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1


def _usage(script: Script, completion: int, prompts: int = 1) -> dict[str, Any]:
    prompt, cached, counted = script.usage or (script.prompt * prompts, script.cached * prompts, completion)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": counted,
        "total_tokens": prompt + counted,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _whole(writer: asyncio.StreamWriter, status: int, body: Any, retry_after: str | None = None) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    extra = f"retry-after: {retry_after}\r\n" if retry_after else ""
    writer.write(
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(raw)}\r\n\r\n".encode()
        + raw
    )


async def main() -> None:
    async with FakeEngine(port=int(sys.argv[1])) as engine:
        print(engine.url, flush=True)  # noqa: T201  how a parent process learns the port
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
