"""The few ASGI shapes that the agent uses, and its plain answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cocoon.sealed import CONTENT_TYPE as SEALED_TYPE
from workers.agent import refusals
from workers.agent.refusals import Refusal, RefusedError

Scope = Mapping[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES_MAX = 20 * 1024 * 1024
BODY_S_MAX = 60.0
_TOO_LARGE = refusals.body_too_large(BODY_BYTES_MAX)


class GatewayGoneError(Exception):
    """The gateway closed the connection."""


def header(scope: Scope, name: str) -> str | None:
    """A request header's value; None when it is absent, given twice, or not ASCII."""
    wanted = name.encode()
    found: list[bytes] = [value for key, value in scope["headers"] if key == wanted]
    return found[0].decode() if len(found) == 1 and found[0].isascii() else None


async def read_body(scope: Scope, receive: Receive, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole request body.

    Raises:
        RefusedError: larger than `bytes_max`, or slower than `BODY_S_MAX`.
        GatewayGoneError: the upload ended early.
    """
    announced = header(scope, "content-length") or "0"
    if not announced.isdigit() or int(announced) > bytes_max:
        raise RefusedError(_TOO_LARGE)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S_MAX):
            while True:
                message = await receive()
                # A disconnect has no `more_body` either: taken for an end, it would pass off half a body as whole.
                if message["type"] == "http.disconnect":
                    raise GatewayGoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > bytes_max:
                    raise RefusedError(_TOO_LARGE)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise RefusedError(refusals.SLOW_BODY) from error


async def send_refusal(send: Send, refusal: Refusal, *, body_read: bool) -> None:
    """The OpenAI-shaped error; the connection is given up when part of a request may still be on it."""
    headers = [] if refusal.retry_after is None else [(b"retry-after", refusal.retry_after.encode())]
    if not body_read:
        headers.append((b"connection", b"close"))
    await send_json(send, refusal.status, refusal.body(), headers)


async def send_sealed_refusal(send: Send, refusal: Refusal, body: bytes) -> None:
    """A refusal whose words are for the client alone; the gateway sees its status."""
    await _send_whole(send, refusal.status, SEALED_TYPE.encode(), body, [])


async def send_json(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """One whole JSON answer."""
    await _send_whole(send, status, b"application/json", body, headers)


async def _send_whole(
    send: Send, status: int, content_type: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    sent = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})
