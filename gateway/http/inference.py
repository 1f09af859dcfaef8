"""What is asked of models: raw ASGI handlers, because middlewares cost these paths 40 % of their throughput."""

import asyncio

from litestar.types import HTTPScope, Receive, Send

from cocoon.endpoints import Endpoint
from gateway.errors import OverloadedError
from gateway.http.bodies import BodyRoom
from gateway.http.client import ASGIClient
from gateway.http.cors import preflight
from gateway.http.errors import SEALED_TYPE
from gateway.pipeline import Pipeline
from gateway.walk import Call

SALT_BYTES_MAX = 128
_TRACEPARENT_BYTES_MAX = 128
_MAX_PRICE_CHARS_MAX = 64
_MANIFEST_CHARS_MAX = 65


async def serve_inference(
    pipeline: Pipeline, endpoint: Endpoint, room: BodyRoom, scope: HTTPScope, receive: Receive, send: Send
) -> None:
    """One exchange: the pipeline between one request and one answer."""
    client = ASGIClient(scope, receive, send, room, pipeline.alarms)
    method = str(scope["method"])
    if method != "POST":
        await preflight(client, scope, method, ("POST",), pipeline.allows_origin)
        return
    task = asyncio.current_task()
    assert task is not None, "a handler runs in a task"
    pipeline.live.enter(task)
    try:
        await pipeline.serve(call_of(endpoint, scope), client)
    except asyncio.CancelledError:
        # The drain time is over; the exchange has been settled as broken.
        await client.fail(OverloadedError("The gateway is stopping."))
        return
    finally:
        client.close()
        pipeline.live.leave(task)
    if not client.read:
        await client.discard_body()


def call_of(endpoint: Endpoint, scope: HTTPScope) -> Call:
    """What the pipeline needs of the request's headers; over-long values are ignored, not cut."""
    authorization: bytes | None = None
    origin = traceparent = salt = max_price = manifest = None
    idempotency_key: bytes | None = None
    sealed = False
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"traceparent" and len(value) <= _TRACEPARENT_BYTES_MAX:
            traceparent = value.decode("latin-1")
        elif name == b"x-cocoon-salt" and len(value) <= SALT_BYTES_MAX:
            salt = value.decode("latin-1")
        elif name == b"idempotency-key":
            # Sent twice it is one list, as any field of HTTP is (RFC 9110, section 5.2).
            idempotency_key = value if idempotency_key is None else idempotency_key + b", " + value
        elif name == b"content-type":
            sealed = value == SEALED_TYPE
        elif name == b"x-cocoon-max-price":
            # Cut, not ignored: a limit that cannot be read must be refused.
            max_price = value[:_MAX_PRICE_CHARS_MAX].decode("latin-1")
        elif name == b"x-cocoon-model-manifest":
            # Cut, it is refused as malformed: a pin must never be lost.
            manifest = value[:_MANIFEST_CHARS_MAX].decode("latin-1")
    return Call(
        endpoint=endpoint, authorization=authorization, origin=origin, traceparent=traceparent, salt=salt,
        max_price=max_price, manifest=manifest, path=scope["path"], idempotency_key=idempotency_key, sealed=sealed,
    )  # fmt: skip
