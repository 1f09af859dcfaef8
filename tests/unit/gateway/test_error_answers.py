"""Every operating error has an answer: its status, OpenAI's shape, when to try again, and nothing of our insides."""

import importlib
import json
import pkgutil
import uuid
from typing import Any

import pytest

import billing
import cocoon
import gateway
import workers
from billing.ceilings import AllowanceExhaustedError, VoucherDemand, VoucherRequiredError
from cocoon.errors import CocoonError
from gateway.errors import InvalidRequestError, UpstreamRefusedError
from gateway.http.errors import STATUS, error_answer, error_event
from gateway.idempotency import NotReplayableError
from gateway.limits import LimitState, LimitWindow, RateLimitedError, SpendLimitError
from workers.errors import WorkersBusyError

INTERNAL = {
    # Roots, never raised themselves.
    "AuthError", "BillingError", "CocoonError", "EscrowError", "GatewayError", "WorkersError",
    # Caught on their way: by the attempts, the relay, the settler, or the handler of heartbeats.
    "AttemptBusyError", "AttemptFailedError", "HeartbeatBusUnavailableError", "HopClosedError", "HopError",
    "IdentityError", "MalformedError", "ModelNotFoundError", "RefusedError", "TransportError",
    # Books that contradict what we asked of them: our mistake, and nothing that a client could do better.
    "DuplicateRecordError", "HoldClosedError", "RecordRefusedError", "UnknownCustomerError",
    # Between the journal and its leases; the settler and the recovery judge them.
    "LeaseActiveError", "LeaseExhaustedError", "LeaseLostError",
    # Between the limiter and what it asks; a request is told in the limiter's own words.
    "SlicesUnavailableError", "SpendUnavailableError",
    # A request's own judgement of its fields, which admission passes on as an `InvalidRequestError`.
    "FieldError",
    # Start-up and commands; the gateway does not serve then.
    "MigrationError", "NotSuspendedError", "SettingsError",
    # Of weights, which only agents and commands hold against a manifest.
    "ManifestMismatchError",
    # Of sealed requests, which only clients and agents open.
    "ReplayedError", "UnopenableError",
    # Between the biller and the chain; no request waits for that.
    "ChainContradictionError", "ForeignContractError", "OtherPayoutError", "PayoutError", "TurnLostError",
    # Between the gateway and the receivers of alerts.
    "WebhookAddressError", "WebhookFailedError",
}  # fmt: skip
DETAILS = {"escrow": f"0:{'ab' * 32}", "epoch": 3, "cumulative": 70, "usage_root": "01" * 32}
SECRET = "/srv/secret.py line 7"


def error_classes() -> set[type[CocoonError]]:
    for package in (billing, cocoon, gateway, workers):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.startswith("workers.agent"):
                importlib.import_module(module.name)
    found: set[type[CocoonError]] = set()
    waiting: list[type[CocoonError]] = [CocoonError]
    while waiting:
        cls = waiting.pop()
        found.add(cls)
        waiting += cls.__subclasses__()
    return {cls for cls in found if cls.__module__.split(".")[0] in {"billing", "cocoon", "gateway", "workers"}
            and not cls.__module__.startswith("workers.agent")}  # fmt: skip


def made(cls: type[CocoonError]) -> CocoonError:
    if issubclass(cls, RateLimitedError):
        state = LimitState(tokens=LimitWindow(5, 0, 12.0))
        return cls("The key's limit is reached.", retry_after_s=1.2, scope="tokens", state=state)
    if issubclass(cls, UpstreamRefusedError):
        return UpstreamRefusedError(400, b"{}")
    if issubclass(cls, WorkersBusyError):
        return cls(2.5)
    if issubclass(cls, NotReplayableError):
        return cls(uuid.UUID(int=1))
    if issubclass(cls, VoucherRequiredError):
        return cls(VoucherDemand(escrow=f"0:{'ab' * 32}", epoch=3, cumulative_nano=70, usage_root=bytes([1]) * 32))
    if issubclass(cls, AllowanceExhaustedError):
        return cls(90)
    arguments: dict[str, Any] = {"AttemptBusyError": (1.0,), "RefusedError": (500, b"", None)}
    arguments["InvalidRequestError"] = ("bad",)
    arguments["LiteserverBehindError"] = (f"0:{'ab' * 32}", 9, 6)
    return cls(*arguments.get(cls.__name__, ()))


def test_every_error_is_mapped_or_known_to_be_internal() -> None:
    unmapped = {cls.__name__ for cls in error_classes() if not any(base in STATUS for base in cls.__mro__)}
    assert unmapped - {"UpstreamRefusedError"} == INTERNAL


def test_every_mapped_error_is_openais_shape_and_transient_ones_say_when_to_try_again() -> None:
    for cls in error_classes():
        answer = error_answer(made(cls))
        error = json.loads(answer.body)["error"]
        own = set(DETAILS) if isinstance(made(cls), VoucherRequiredError) else set[str]()
        assert set(error) == {"message", "type", "param", "code"} | own
        assert error["message"]
        if answer.status != 500:
            assert (b"retry-after" in dict(answer.headers)) == cls.transient, cls
        assert error_event(made(cls)).endswith(b"\n\n")


def test_a_missing_voucher_is_demanded_in_full_and_an_empty_allowance_says_when() -> None:
    demand = error_answer(made(VoucherRequiredError))
    error = json.loads(demand.body)["error"]
    assert (demand.status, error["code"], error["type"]) == (402, "voucher_required", "insufficient_quota")
    assert {name: error[name] for name in DETAILS} == DETAILS
    allowance = error_answer(made(AllowanceExhaustedError))
    assert (allowance.status, dict(allowance.headers)[b"retry-after"]) == (402, b"90")
    assert json.loads(allowance.body)["error"]["code"] == "allowance_exhausted"


def test_an_internal_error_says_nothing_of_our_insides() -> None:
    for cls in error_classes():
        if not any(base in STATUS for base in cls.__mro__) and cls.__name__ not in {
            "AttemptBusyError", "RefusedError", "UpstreamRefusedError",
        }:  # fmt: skip
            answer = error_answer(cls(SECRET))
            assert answer.status == 500
            assert SECRET.encode() not in answer.body
    for name in ("OverloadedError", "LedgerUnavailableError", "KeysStaleError"):
        cls = next(cls for cls in error_classes() if cls.__name__ == name)
        assert SECRET.encode() not in error_answer(cls(SECRET)).body


@pytest.mark.parametrize(
    ("wait_s", "told"), [(0.0, b"1"), (1.0, b"1"), (1.2, b"2"), (2.5, b"3"), (4.000001, b"5"), (float("inf"), b"3600")]
)
def test_nobody_is_told_to_come_back_too_early(wait_s: float, told: bytes) -> None:
    assert dict(error_answer(WorkersBusyError(wait_s)).headers)[b"retry-after"] == told


def test_a_limit_shows_its_windows_and_a_key_its_scheme() -> None:
    headers = dict(error_answer(made(RateLimitedError)).headers)
    assert headers[b"x-ratelimit-limit-tokens"] == b"5"
    invalid = InvalidRequestError("bad", param="messages[0].content", code="invalid_type")
    assert json.loads(error_answer(invalid).body)["error"]["param"] == "messages[0].content"


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (422, b'{"object":"error","message":"flat","code":422}', ("flat", "422")),
        (400, b'{"error":{"message":"nested","code":"c"}}', ("nested", "c")),
        (499, b"<html>\xff", ("The engine refused the request.", None)),
        (400, b"[" * 100_000, ("The engine refused the request.", None)),
    ],
)
def test_an_engines_refusal_keeps_its_words_in_our_shape(status: int, body: bytes, shown: tuple[str, str]) -> None:
    answer = error_answer(UpstreamRefusedError(status, body))
    error = json.loads(answer.body)["error"]
    assert answer.status == (status if status in {400, 404, 413, 415, 422} else 400)
    assert (error["message"], error["code"]) == shown


def test_who_has_spent_all_is_told_to_come_back_when_the_period_is_over_and_clients_do_not_try_by_themselves() -> None:
    state = LimitState()
    answer = error_answer(SpendLimitError("spent", retry_after_s=86_399.2, scope="spend_day", state=state))

    assert answer.status == 429
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    headers = dict(answer.headers)
    assert headers[b"retry-after"] == b"86400"
    assert headers[b"x-should-retry"] == b"false"
