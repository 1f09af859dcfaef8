"""Headers of an answer: limits, who answered, the receipt's id, and where the time went."""

from gateway.auth import Principal
from gateway.client import Headers
from gateway.exchange import State
from gateway.limits import LimitState
from gateway.sealed import price_headers
from gateway.walk import Walk
from workers.targets import Worker

_STEPS = (
    ("auth", State.RECEIVED, State.AUTHENTICATED),
    ("admit", State.AUTHENTICATED, State.ADMITTED),
    ("route", State.ADMITTED, State.DISPATCHED),
    ("first", State.DISPATCHED, State.RELAYING),
)


def answer_headers(walk: Walk, *, streams: bool) -> Headers:
    """Everything but content type and request id. On a stream kept alive, the worker is not known yet."""
    headers: Headers = []
    if walk.permit is not None:
        headers += limit_headers(walk.permit.state)
    attempt = walk.attempt
    if attempt is not None and (attempt.first_token_s is not None or not streams):
        headers.append((b"x-cocoon-worker", attempt.worker_name.encode()))
        if isinstance(attempt.dispatch.target, Worker):
            headers.append((b"x-cocoon-receipt", walk.name.encode()))
            if attempt.dispatch.target.tee_type != "none":
                headers.append((b"x-cocoon-evidence", attempt.dispatch.target.tee_type.encode()))
            if walk.sealed is not None and walk.admission is not None:
                headers += price_headers(attempt.price, None if streams else attempt.usage(walk.admission.bounds))
            if attempt.salt is not None:
                headers.append((b"x-cocoon-salt", attempt.salt.encode()))
        else:
            headers.append((b"x-cocoon-evidence", b"none"))
    headers.append((b"server-timing", _server_timing(walk)))
    return headers


def limit_headers(state: LimitState) -> Headers:
    """`x-ratelimit-*` for the limits that the key has."""
    headers: Headers = []
    for name, window in ((b"requests", state.requests), (b"tokens", state.tokens)):
        if window is not None:
            headers.append((b"x-ratelimit-limit-" + name, str(window.limit).encode()))
            headers.append((b"x-ratelimit-remaining-" + name, str(window.remaining).encode()))
            headers.append((b"x-ratelimit-reset-" + name, f"{window.reset_s:.3f}s".encode()))
    return headers


def cors_headers(origin: str | None, principal: Principal) -> Headers:
    """CORS for browsers, only for origins that this key names."""
    if origin is None or origin not in principal.cors_origins:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (
            b"access-control-expose-headers",
            b"x-request-id, x-cocoon-receipt, x-cocoon-replayed, x-cocoon-worker, retry-after",
        ),
        (b"vary", b"origin"),
    ]


def _server_timing(walk: Walk) -> bytes:
    entered = walk.exchange.entered
    if State.RELAYING in entered:  # every step was taken
        auth, admit, route, first = ((entered[end] - entered[begin]) * 1000 for _, begin, end in _STEPS)
        return b"auth;dur=%.2f, admit;dur=%.2f, route;dur=%.2f, first;dur=%.2f" % (auth, admit, route, first)
    parts: list[str] = []
    for name, begin, end in _STEPS:
        if begin in entered and end in entered:
            parts.append(f"{name};dur={(entered[end] - entered[begin]) * 1000:.2f}")
    return ", ".join(parts).encode()
