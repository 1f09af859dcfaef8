"""Signatures of webhooks: the specification's own example, and every attack on both verifiers that we hand out."""

import base64
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon.errors import MalformedError
from cocoon.webhooks import secret_text, signed_headers, verify

SECRET = bytes(range(32))
BODY = b'{"type":"balance.low"}'
NOW = 1_700_000_000
DOCUMENT = Path(__file__).parents[3] / "docs" / "alerts.md"
Verifier = Callable[[str, dict[str, str], bytes], str]


def ours(secret: str, headers: dict[str, str], body: bytes) -> str:
    return verify(secret, headers, body, NOW)


def documented(monkeypatch: pytest.MonkeyPatch) -> Verifier:
    """The snippet that receivers are told to copy, at the same time."""
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Verifier] = {}
    exec(code[1], names)
    return names["verified_id"]


@pytest.fixture(params=["ours", "documented"])
def verifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Verifier:
    return ours if request.param == "ours" else documented(monkeypatch)


def test_the_specifications_example() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_authentic_message_is_known_by_its_id(verifier: Verifier) -> None:
    headers = signed_headers(SECRET, "msg_1", NOW - 299, BODY)
    assert verifier(secret_text(SECRET), headers, BODY) == "msg_1"
    # While a secret is replaced, a message carries several signatures.
    several = headers | {"webhook-signature": "v1a,xyz v1,AAAA " + headers["webhook-signature"]}
    assert verifier(secret_text(SECRET), several, BODY) == "msg_1"


@pytest.mark.parametrize("age_s", [301, 86_400, -301])
def test_a_replay_with_its_old_timestamp_is_refused(verifier: Verifier, age_s: int) -> None:
    recorded = signed_headers(SECRET, "msg_1", NOW - age_s, BODY)
    with pytest.raises((ValueError, MalformedError)):
        verifier(secret_text(SECRET), recorded, BODY)
    # Nor does a newer timestamp make it new: it is under the signature.
    with pytest.raises((ValueError, MalformedError)):
        verifier(secret_text(SECRET), recorded | {"webhook-timestamp": str(NOW)}, BODY)


def test_nothing_of_a_message_can_be_exchanged(verifier: Verifier) -> None:
    good = signed_headers(SECRET, "msg_1", NOW, BODY)
    mac = good["webhook-signature"].removeprefix("v1,")
    attacks = [
        (good, BODY + b" "),
        (good | {"webhook-id": "msg_2"}, BODY),
        (good | {"webhook-timestamp": str(NOW + 1)}, BODY),
        (good | {"webhook-signature": ""}, BODY),
        (good | {"webhook-signature": "v1,"}, BODY),
        (good | {"webhook-signature": f"v0,{mac}"}, BODY),
        (good | {"webhook-signature": mac}, BODY),
        (good | {"webhook-signature": "v1," + mac[:-4] + "AAA="}, BODY),
        (good | {"webhook-signature": "v1,\u00e9"}, BODY),
        (signed_headers(bytes(32), "msg_1", NOW, BODY), BODY),
    ]
    for headers, body in attacks:
        with pytest.raises((ValueError, MalformedError)):
            verifier(secret_text(SECRET), headers, body)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_message_without_a_header_is_refused(missing: str) -> None:
    headers = signed_headers(SECRET, "msg_1", NOW, BODY)
    del headers[missing]
    with pytest.raises(MalformedError):
        ours(secret_text(SECRET), headers, BODY)
