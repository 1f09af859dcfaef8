"""What can be wrong with a request, as the pipeline sees it. Status codes are `gateway/http/errors.py`'s business."""

from typing import ClassVar

from cocoon.errors import CocoonError


class GatewayError(CocoonError):
    """The root of the gateway's operating errors."""

    code: ClassVar[str] = "gateway_error"


class InvalidRequestError(GatewayError):
    """The request is malformed."""

    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.reason = code


class BodyTooLargeError(GatewayError):
    """The body is larger than the gateway accepts."""

    code: ClassVar[str] = "body_too_large"


class BodyTimeoutError(GatewayError):
    """The body did not arrive in time."""

    code: ClassVar[str] = "body_timeout"
    transient: ClassVar[bool] = True


class ModelUnknownError(GatewayError):
    """The model does not exist."""

    code: ClassVar[str] = "model_not_found"


class ManifestUnknownError(GatewayError):
    """No worker has enrolled with this model manifest."""

    code: ClassVar[str] = "manifest_not_found"


class ModelForbiddenError(GatewayError):
    """This API key may not use the model."""

    code: ClassVar[str] = "model_not_allowed"


class PriceLimitError(GatewayError):
    """Nobody serves the model at the price that the request allows."""

    code: ClassVar[str] = "max_price_too_low"


class UpstreamRefusedError(GatewayError):
    """The engine refused the request for a reason that lies in the request; when `sealed`, only the client reads it."""

    code: ClassVar[str] = "invalid_request"

    def __init__(self, status: int, body: bytes, *, sealed: bool = False) -> None:
        super().__init__("the engine refused the request")
        self.status = status
        self.body = body
        self.sealed = sealed


class AnswerBrokenError(GatewayError):
    """The worker broke off before the answer was complete; nothing is charged."""

    code: ClassVar[str] = "worker_failed"
    transient: ClassVar[bool] = True


class AnswerTimeoutError(GatewayError):
    """The worker did not answer in time; nothing is charged."""

    code: ClassVar[str] = "worker_timeout"
    transient: ClassVar[bool] = True


class OverloadedError(GatewayError):
    """The gateway is at its limit; try again shortly."""

    code: ClassVar[str] = "overloaded"
    transient: ClassVar[bool] = True
