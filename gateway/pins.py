"""The manifest that a request insists on: in its body (`provider.model_manifest`), in a header, or sealed for."""

from cocoon.errors import MalformedError
from cocoon.manifest import read_digest
from cocoon.openai import Provider
from gateway.errors import InvalidRequestError

HEADER = "x-cocoon-model-manifest"
PARAM = "provider.model_manifest"


def read_pin(provider: Provider | None, header: str | None, sealed: bytes | None = None) -> bytes | None:
    """The digest that body and header agree on, and what a request was `sealed` for; None when none names one.

    Raises:
        InvalidRequestError: one is no digest, or they differ.
    """
    named = provider.model_manifest if provider is not None else None
    if named is None and header is None:
        return sealed
    pins: set[bytes] = set() if sealed is None else {sealed}
    pins |= {_digest(text, param) for text, param in ((named, PARAM), (header, HEADER)) if text is not None}
    if len(pins) > 1:
        raise InvalidRequestError("The request pins different manifests.", param=PARAM, code="invalid_value")
    return pins.pop()


def _digest(text: str, param: str) -> bytes:
    try:
        return read_digest(text)
    except MalformedError as error:
        raise InvalidRequestError(str(error), param=param, code="invalid_value") from error
