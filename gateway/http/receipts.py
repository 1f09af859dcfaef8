"""`/v1/receipts/{id}`: everything that proves one answer, for the customer that paid. Format: docs/receipts.md."""

import uuid
from typing import Any

import msgspec
from litestar import Controller, Response, get
from litestar.connection import Request

from gateway.http.access import customer_of
from gateway.receipts import ReceiptUnknownError
from gateway.services import Services

PENDING_S = 2
"""A worker delivers some seconds after its answer."""
_PREFIXES = ("chatcmpl-", "cmpl-", "embd-")


class PendingReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt may still come."""

    object: str = "receipt.pending"
    id: str
    status: str = "pending"
    message: str = "The worker has not delivered this receipt yet. Ask again after the seconds in Retry-After."


class ReceiptsController(Controller):
    """Receipts by the id that answers carry in `x-cocoon-receipt` and `x-request-id`."""

    @get(["/v1/receipts/{receipt_id:str}", "/v1/signature/{receipt_id:str}"])
    async def receipt(self, request: Request[Any, Any, Any], services: Services, receipt_id: str) -> Response[bytes]:
        """200 with the bundle, 202 while the worker may still deliver it, 404 for another customer's or none."""
        customer_id = customer_of(request, services).customer_id
        job_id = _job_id(receipt_id)
        bundle = await services.receipts.bundle(customer_id, job_id)
        if bundle is None:
            pending = msgspec.json.encode(PendingReceipt(id=str(job_id)))
            headers = {"retry-after": str(PENDING_S)}
            return Response(pending, status_code=202, headers=headers, media_type="application/json")
        return Response(bundle.encode(), media_type="application/json", headers={"cache-control": "private, no-cache"})


def _job_id(text: str) -> uuid.UUID:
    """The id as answers carry it, also behind the prefix of an OpenAI id."""
    name = next((text.removeprefix(prefix) for prefix in _PREFIXES if text.startswith(prefix)), text)
    try:
        job_id = uuid.UUID(name)
    except ValueError:
        raise ReceiptUnknownError from None
    if str(job_id) != name:
        raise ReceiptUnknownError
    return job_id
