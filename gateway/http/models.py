"""`GET /v1/models` and `/v1/models/{id}`: what can be bought now, in OpenAI's shape with our additions."""

from typing import Any

from litestar import Controller, get
from litestar.connection import Request

from billing.pricing import ModelOffer
from gateway.errors import ModelUnknownError
from gateway.http.access import customer_of
from gateway.services import Services
from workers.registry import Registry


class ModelsController(Controller):
    """Models visible to the key."""

    path = "/v1/models"

    @get()
    async def list_models(self, request: Request[Any, Any, Any], services: Services) -> dict[str, Any]:
        """Every model that has a price and that the key may use."""
        principal = customer_of(request, services)
        allowed = principal.allowed_models
        offers = services.prices.book.offers(principal.customer_id)
        offers = [offer for offer in offers if not allowed or offer.model in allowed]
        return {"object": "list", "data": [_shown(offer, services.registry) for offer in offers]}

    @get("/{model:path}")
    async def get_model(self, request: Request[Any, Any, Any], services: Services, model: str) -> dict[str, Any]:
        """One model; its name may contain slashes."""
        name = model.removeprefix("/")
        principal = customer_of(request, services)
        allowed = principal.allowed_models
        offer = services.prices.book.offer(name, principal.customer_id)
        if offer is None or (allowed and name not in allowed):
            raise ModelUnknownError(f"The model {name[:128]!r} does not exist.")
        return _shown(offer, services.registry)


def _shown(offer: ModelOffer, registry: Registry) -> dict[str, Any]:
    price, tee_types = offer.price.as_charged(), registry.tee_types(offer.model)
    return {
        "id": offer.model,
        "object": "model",
        "created": 0,
        "owned_by": "cocoon",
        "context_length": offer.context_tokens,
        "media_max": dict(offer.media_max),
        "endpoints": list(registry.endpoints(offer.model)),
        "workers": sum(tee_types.values()),
        "tee_types": tee_types,
        "model_manifests": registry.manifests(offer.model),
        "pricing": {
            "asset": price.asset.value,
            "version": price.version,
            "prompt_nano_per_mtok": price.prompt,
            "cached_prompt_nano_per_mtok": price.cached,
            "completion_nano_per_mtok": price.completion,
        },
    }
