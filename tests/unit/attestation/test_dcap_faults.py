"""The library that verifies quotes may say or do anything; none of it is acceptance."""

import json
from typing import Any

import dcap_qvl
import msgspec
import pytest

from attestation.findings import Code
from attestation.tdx.dcap import family_of
from attestation.tdx.quote import parse_quote
from cocoon.errors import MalformedError
from tests.attested import scene
from tests.unit.attestation.test_certificates import LEAF


class PanicException(BaseException):
    pass


class Claims:
    def __init__(self, document: Any) -> None:
        self.document = document

    def to_json(self) -> str:
        return json.dumps(self.document)


def saying(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    class Verifier:
        def __init__(self, root: bytes) -> None:
            assert root

        def verify_with_policy(self, *_: Any) -> Any:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", Verifier)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (PanicException("index out of bounds"), Code.QUOTE_INVALID),
        (ValueError("something that nobody has read before"), Code.QUOTE_INVALID),
        (ValueError("TCB status OutOfDate is not acceptable"), Code.TCB_UNACCEPTABLE),
        (Claims({}), Code.QUOTE_INVALID),
        (Claims({"tcb": {"status": "UpToDate"}}), Code.QUOTE_INVALID),
        (Claims([]), Code.QUOTE_INVALID),
    ],
)
def test_whatever_the_library_does_instead_of_verifying_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, outcome: Any, code: Code
) -> None:
    saying(monkeypatch, outcome)

    assert scene().refusal() == code


@pytest.mark.parametrize("status", ["OutOfDate", "Revoked", "uptodate", ""])
def test_a_library_that_lets_another_status_pass_does_not_decide(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    platform = {"pck": {"ppid": [1] * 16, "fmspc": [0] * 6}}
    tcb = {"status": status, "advisory_ids": [], "eval_data_number": 20}
    saying(monkeypatch, Claims({"tcb": tcb, "platform": platform}))

    assert scene().refusal() == Code.TCB_UNACCEPTABLE


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        scene().verdict()


def test_a_certificate_that_names_no_family_is_malformed() -> None:
    quote = parse_quote(scene().evidence.quote)

    with pytest.raises(MalformedError):
        family_of(msgspec.structs.replace(quote, pck_chain=(LEAF,)))
