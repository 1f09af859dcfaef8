"""`GET /v1/attestation`: evidence of a model's workers, for whoever wants to verify it."""

import re
from typing import Any

import msgspec
from litestar import Controller, Response, get
from litestar.connection import Request

from gateway.errors import InvalidRequestError, ModelUnknownError
from gateway.http.access import customer_of
from gateway.services import Services

_NONCE = re.compile(r"[0-9a-fA-F]{64}")


class AttestationController(Controller):
    """Evidence, bytes in base64; whoever relies on it judges it under a policy of their own."""

    @get(["/v1/attestation", "/v1/attestation/report"])
    async def show(
        self, request: Request[Any, Any, Any], services: Services, model: str, nonce: str | None = None
    ) -> Response[bytes]:
        """Up to eight workers' evidence for `nonce` (64 hexadecimal digits), else what they enrolled with."""
        principal = customer_of(request, services)
        offered = services.prices.book.offer(model, principal.customer_id) is not None
        if not offered or (principal.allowed_models and model not in principal.allowed_models):
            raise ModelUnknownError(f"The model {model[:128]!r} does not exist.")
        if nonce is not None and _NONCE.fullmatch(nonce) is None:
            raise InvalidRequestError("A nonce is 64 hexadecimal digits.", param="nonce")
        asked = None if nonce is None else bytes.fromhex(nonce)
        shown = await services.desk.shown(model, principal.key_id, asked)
        return Response(
            msgspec.json.encode(shown), media_type="application/json", headers={"cache-control": "no-store"}
        )
