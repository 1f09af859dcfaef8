"""What the local endpoint does with a request: seal and open, pass a question on, or say why not.

Chat, completions and embeddings are sealed by `transport`; GET requests pass as they are; everything else is refused.
There is no setting under which a prompt leaves this process in clear.
"""

import asyncio
import ipaddress
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Final

import httpx
import structlog

from cocoon.errors import CocoonError
from cocoon.openai import error_json
from cocoon_client.errors import (
    AttestationUnavailableError,
    BundleUnavailableError,
    ClientError,
    NotSealableError,
)
from cocoon_client.proxy.http import Answer, Request, passed_headers
from cocoon_client.transport import RECEIPT_HEADER

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

PREFIX: Final = "/v1/"
_OK: Final = 200
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_BAD_GATEWAY: Final = 502
_UNAVAILABLE: Final = 503
_READING: Final = frozenset({"GET", "HEAD"})
_JSON: Final = ("content-type", "application/json")
_NO_RETRY: Final = ("x-should-retry", "false")
_DROPPED: Final = frozenset({
    "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip

Finished = Callable[[str, str], Awaitable[None]]
"""Called with receipt id and API key once an answer was given whole."""


class ProxyApp:
    """`client` seals; `base_url` ends in `/v1`. `api_key` is used where a request brings none.

    `local` refuses requests that name another machine than this one.
    """

    def __init__(
        self, client: httpx.AsyncClient, *, base_url: str, api_key: str, local: bool, finished: Finished
    ) -> None:
        self._client = client
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._local = local
        self._finished = finished

    async def __call__(self, request: Request, answer: Answer) -> None:
        """Answer one request; only cancellation (the program left) leaves it."""
        try:
            await self._serve(request, answer)
        except asyncio.CancelledError:
            raise
        except CocoonError as error:
            _log.warning("request_refused", code=error.code, reason=str(error))
            await _fail(answer, _status(error), str(error), error.code)
        except httpx.HTTPError as error:
            _log.warning("gateway_unreachable", error=type(error).__name__)
            await _fail(answer, _BAD_GATEWAY, f"The gateway does not answer: {type(error).__name__}.", "gateway_failed")
        except Exception as error:  # noqa: BLE001  one request's top frame: the others go on
            # Only the type: a message could quote the prompt.
            _log.error("request_crashed", error=type(error).__name__)
            await _fail(answer, 500, "The proxy failed.", "internal_error")

    async def _serve(self, request: Request, answer: Answer) -> None:
        path, _, query = request.target.partition("?")
        if path == "/healthz":
            await answer.send(200, [_JSON], b'{"status":"ok"}')
            return
        if self._local and not _is_local(request):
            message = "This endpoint is for programs of this machine: the Host or Origin header names another one."
            await _fail(answer, _FORBIDDEN, message, "foreign_origin")
            return
        if not path.startswith(PREFIX) or ".." in path:
            await _fail(answer, 404, "There is nothing here; the API is under /v1.", "not_found")
            return
        headers = {name: value for name, value in request.headers.items() if name not in _DROPPED}
        headers["accept-encoding"] = "identity"
        if self._api_key and not headers.get("authorization"):
            headers["authorization"] = f"Bearer {self._api_key}"
        url = self._base_url + "/" + path.removeprefix(PREFIX) + (f"?{query}" if query else "")
        content = None if request.method in _READING else request.body
        async with self._client.stream(request.method, url, headers=headers, content=content) as response:
            await _relay(response, answer)
        receipt_id = response.headers.get(RECEIPT_HEADER)
        if content is not None and response.status_code == _OK and receipt_id:
            await self._finished(receipt_id, headers.get("authorization", "").partition(" ")[2])


def _is_local(request: Request) -> bool:
    """No page that a browser shows may spend this machine's key (DNS rebinding, cross-site requests)."""
    named = [_host(request.headers.get("host", ""))]
    origin = request.headers.get("origin")
    if origin is not None:
        named.append(urllib.parse.urlsplit(origin).hostname or "")
    return all(map(is_loopback, named))


async def _relay(response: httpx.Response, answer: Answer) -> None:
    headers = passed_headers(response.headers.multi_items())
    if "text/event-stream" not in response.headers.get("content-type", ""):
        # Whole before a byte of it is shown: a document has no place to say that it is broken.
        body = b"".join([part async for part in response.aiter_bytes()])
        await answer.send(response.status_code, headers, body)
        return
    await answer.start(response.status_code, headers)
    async for part in response.aiter_bytes():
        await answer.write(part)
    await answer.end()


async def _fail(answer: Answer, status: int, message: str, code: str) -> None:
    """An error in OpenAI's shape; in a stream that has begun, as an event without `[DONE]` behind it."""
    kind = "invalid_request_error" if status < 500 else "api_error"  # noqa: PLR2004  the client's fault or not
    body = error_json(message, kind, code=code)
    if not answer.started:
        await answer.send(status, [_JSON, _NO_RETRY], body)
        return
    await answer.write(b"data: " + body + b"\n\n")
    await answer.end()


def _status(error: CocoonError) -> int:
    match error:
        case NotSealableError():
            return _BAD_REQUEST
        case AttestationUnavailableError() | BundleUnavailableError():
            return _UNAVAILABLE
        case ClientError():
            return _BAD_GATEWAY
        case _:
            return 500


def _host(header: str) -> str:
    return urllib.parse.urlsplit(f"//{header}").hostname or ""


def is_loopback(name: str) -> bool:
    """Whether a host name or address is of this machine alone."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
