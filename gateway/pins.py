"""The manifest that a request insists on: in its body (`provider.model_manifest`) or in a header."""

from cocoon.errors import MalformedError
from cocoon.manifest import read_digest
from cocoon.openai import Provider
from gateway.errors import InvalidRequestError

HEADER = "x-cocoon-model-manifest"
PARAM = "provider.model_manifest"


def read_pin(provider: Provider | None, header: str | None) -> bytes | None:
    """The digest that body and header agree on; None when neither names one.

    Raises:
        InvalidRequestError: one is no digest, or they differ.
    """
    named = provider.model_manifest if provider is not None else None
    if named is None and header is None:
        return None
    pins = {_digest(text, param) for text, param in ((named, PARAM), (header, HEADER)) if text is not None}
    if len(pins) > 1:
        raise InvalidRequestError("Body and header pin different manifests.", param=PARAM, code="invalid_value")
    return pins.pop()


def _digest(text: str, param: str) -> bytes:
    try:
        return read_digest(text)
    except MalformedError as error:
        raise InvalidRequestError(str(error), param=param, code="invalid_value") from error
