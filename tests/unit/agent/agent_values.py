"""Values that the agent's unit tests share."""

import uuid
from typing import Any

import msgspec

from cocoon.endpoints import CHAT, Endpoint
from cocoon.receipt import NO_STAKE
from cocoon.ticket import Ticket, plain_request_digest
from workers.agent.engines.ports import Dialect, EngineCall

LLAMA = Dialect(injected={"prompt_progress": "return_progress", "timings": "timings_per_token"}, usage_per_choice=True)
CHAT_BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SETTINGS = {
    "COCOON_GATEWAY_URL": "http://127.0.0.1:8080",
    "COCOON_WORKER_KEY": "wk-cocoon-" + "A" * 43,
    "COCOON_OPERATOR_KEY": "d7" * 32,
    "HOME": "/nonexistent",
}


def call(body: dict[str, Any] | bytes, completion_max: int = 10, endpoint: Endpoint = CHAT) -> EngineCall:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return EngineCall(
        body=raw, endpoint=endpoint, request=endpoint.decode(raw), completion_max=completion_max, rid="chatcmpl-1-0",
        traceparent=None,
    )  # fmt: skip


def ticket(number: int = 1, **changes: Any) -> Ticket:
    fields: dict[str, Any] = {
        "global_id": -217, "stake": NO_STAKE, "job_id": uuid.UUID(int=number), "attempt": 0,
        "lease": uuid.UUID(int=9), "price_version": 1, "max_prompt": 100, "max_completion": 10,
        "not_after": 2**40, "request_digest": plain_request_digest(b"body"),
    }  # fmt: skip
    return Ticket(**{**fields, **changes})


def chunk(*choices: dict[str, Any], **extra: Any) -> bytes:
    return msgspec.json.encode({"id": "c", "object": "chat.completion.chunk", "choices": list(choices), **extra})


def choice(index: int = 0, finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
