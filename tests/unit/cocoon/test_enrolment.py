import uuid
from typing import Any

import msgspec
import pytest

from cocoon.enrolment import EnrolAnswer, EnrolRequest, Heartbeat, ServedModel


def request(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "keyset": b"{}",
        "url": "https://127.0.0.1:1",
        "name": "worker-1",
        "models": [{"id": "org/Model-1.5:q4", "context_tokens": 2048}],
        "capacity": 2,
        "engine": "xllamacpp",
    }
    return msgspec.json.encode(fields | changes)


def test_an_enrolment_comes_back() -> None:
    decoded = msgspec.json.decode(request(), type=EnrolRequest)

    assert decoded.models == (ServedModel("org/Model-1.5:q4", 2048),)
    assert decoded.tee_type == "none"
    assert msgspec.json.decode(msgspec.json.encode(decoded), type=EnrolRequest) == decoded


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a" * 65},
        {"name": "a\n"},
        {"name": "a\r\nx-evil: 1"},
        {"name": "\u0430"},
        {"name": "-a"},
        {"models": []},
        {"models": [{"id": "m\n", "context_tokens": 1}]},
        {"models": [{"id": 'm"', "context_tokens": 1}]},
        {"models": [{"id": "m m", "context_tokens": 1}]},
        {"models": [{"id": "m", "context_tokens": 0}]},
        {"models": [{"id": "m", "context_tokens": 2**31}]},
        {"models": [{"id": "m", "context_tokens": 1}] * 65},
        {"capacity": 0},
        {"capacity": 4097},
        {"capacity": True},
        {"url": "h" * 257},
        {"engine": "e" * 65},
        {"surplus": 1},
    ],
)
def test_an_enrolment_that_could_inject_or_exhaust_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(request(**changes), type=EnrolRequest)


@pytest.mark.parametrize("changes", [{"running": -1}, {"queued": -1}, {"capacity": 4097}, {"running": 0.5}, {"x": 1}])
def test_an_impossible_heartbeat_is_refused(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"running": 0, "queued": 0, "capacity": 1}
    assert msgspec.json.decode(msgspec.json.encode(fields), type=Heartbeat) == Heartbeat(0, 0, 1)

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(fields | changes), type=Heartbeat)


def test_an_answer_comes_back() -> None:
    answer = EnrolAnswer(worker_id=uuid.UUID(int=7), token="t", token_seconds=60, ticket_key=bytes(32), global_id=-3)

    assert msgspec.json.decode(msgspec.json.encode(answer), type=EnrolAnswer) == answer
