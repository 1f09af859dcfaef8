"""`/healthz`: the process lives. `/readyz`: it can serve; a load balancer should look at this one."""

from typing import Any

import msgspec
from litestar import Response, get

from gateway.services import Services


@get("/healthz", sync_to_thread=False)
def healthz() -> dict[str, str]:
    """Always 200 while the process runs."""
    return {"status": "ok"}


@get("/readyz", sync_to_thread=False)
def readyz(services: Services) -> Response[dict[str, Any]]:
    """200 when requests can be served now, else 503; the same facts in both cases."""
    live = services.registry.models()
    workers = sum(1 for member in services.registry.members() if services.registry.is_live(member))
    facts: dict[str, Any] = {
        "ready": services.keys.fresh and services.prices.loaded.is_set() and not services.stopping.is_set(),
        "keys_fresh": services.keys.fresh,
        "prices_loaded": services.prices.loaded.is_set(),
        "limits_shared": not services.limiter.alone,
        "stopping": services.stopping.is_set(),
        "workers": workers,
        "models": live,
        "unsettled": services.settler.pending,
        "ledger": msgspec.structs.asdict(services.ledger.facts),
    }
    if services.settings.stakes is not None:
        facts["workers_staked"] = services.registry.covered()
    return Response(facts, status_code=200 if facts["ready"] else 503)
