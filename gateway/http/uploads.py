"""A refusal reaches its sender: what is left of a refused upload is read before the answer ends the connection.

A connection that closes over bytes nobody read is reset, and a reset may overtake the answer (RFC 9293 §3.6.1).
"""

import asyncio
import contextlib

from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

DISCARD_BYTES_MAX = 1024 * 1024
DISCARD_S_MAX = 5.0
"""How much of a refused upload is taken in. Who sends more, or slower, may not hear why it was refused."""
_REFUSALS = 400


def read_before_refusing(app: ASGIApp) -> ASGIApp:
    """Middleware for routes that refuse some requests before they have read them."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        upload = _Upload(receive)

        async def send_after_upload(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= _REFUSALS:
                await upload.discard()
            await send(message)

        await app(scope, upload.receive, send_after_upload)

    return wrapped


class _Upload:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def receive(self) -> ReceiveMessage:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message["more_body"]
        return message

    async def discard(self) -> None:
        left = DISCARD_BYTES_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S_MAX):
                while self._more and left > 0:
                    message = await self.receive()
                    if message["type"] == "http.request":
                        left -= len(message["body"])
