"""A pin is never lost, misread, or chosen between."""

import pytest

from cocoon.openai import Provider
from gateway.errors import InvalidRequestError
from gateway.pins import read_pin

ONE, OTHER = "01" * 32, "02" * 32


def test_body_and_header_pin_the_same() -> None:
    assert read_pin(None, None) is None
    assert read_pin(Provider(), None) is None
    for provider, header in ((Provider(model_manifest=ONE), None), (None, ONE), (Provider(model_manifest=ONE), ONE)):
        assert read_pin(provider, header) == bytes.fromhex(ONE)


def test_what_a_request_is_sealed_for_is_a_pin() -> None:
    sealed = bytes.fromhex(ONE)
    assert read_pin(None, None, sealed) == read_pin(None, ONE, sealed) == sealed
    with pytest.raises(InvalidRequestError):
        read_pin(None, OTHER, sealed)


@pytest.mark.parametrize(
    ("body", "header"), [(ONE, OTHER), ("", None), (None, ""), (ONE.upper().replace("0", "A"), None), (None, ONE + "0")]
)
def test_a_pin_that_cannot_be_followed_is_refused(body: str | None, header: str | None) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_pin(Provider(model_manifest=body), header)
    assert refused.value.reason == "invalid_value"
