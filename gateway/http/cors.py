"""CORS preflights, and the answer to a method that a path does not have.

A preflight carries no key, so it is answered for any origin that some live key names; whether *this* key may be
used from there is decided when the real request comes.
"""

from collections.abc import Callable

from litestar.types import HTTPScope

from cocoon import openai
from gateway.http.client import ASGIClient

MAX_AGE_S = 600
_REQUEST_HEADERS = b"authorization, content-type, idempotency-key, traceparent, x-cocoon-salt"


async def preflight(
    client: ASGIClient, scope: HTTPScope, method: str, allowed: tuple[str, ...], allows_origin: Callable[[str], bool]
) -> None:
    """Answer anything but an allowed method."""
    methods = ", ".join((*allowed, "OPTIONS")).encode()
    if method != "OPTIONS":
        body = openai.error_json(f"Use {', '.join(allowed)}.", "invalid_request_error", code="method_not_allowed")
        await client.answer([(b"allow", methods)], body, 405)
        return
    headers = [(b"allow", methods), (b"vary", b"origin")]
    origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
    if origin is not None and allows_origin(origin.decode("latin-1")):
        headers += [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", str(MAX_AGE_S).encode()),
        ]
    await client.answer(headers, b"", 204)
