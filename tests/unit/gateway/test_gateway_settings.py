"""Settings are read once and completely; what cannot be used stops the start-up with its name and without its value."""

import json
from pathlib import Path
from typing import Any

import pytest

from cocoon.canonical import base64url
from gateway.settings import Settings, SettingsError, read_settings
from tests.signing_values import Operator

OPERATOR = Operator(-3)
GOOD = {
    "COCOON_GATEWAY_KEY": OPERATOR.gateway.private_bytes_raw().hex(),
    "COCOON_GATEWAY_DELEGATION": base64url(OPERATOR.carried),
    "COCOON_DATABASE_URL": "postgresql://u:db-password@h/d",
    "COCOON_REDIS_URL": "redis://:redis-password@h",
    "COCOON_NETWORK_SECRET": "ab" * 32,
}
UPSTREAM: dict[str, Any] = {"name": "engine", "url": "http://h:1/v1", "models": {"m": "n"}, "context_tokens": 8}


def read(**changes: str) -> Settings:
    return read_settings({**GOOD, **changes})


def upstreams(*entries: dict[str, Any]) -> str:
    return json.dumps([{**UPSTREAM, **entry} for entry in entries])


def test_little_must_be_said_and_nothing_said_means_production() -> None:
    settings = read()
    assert settings.production
    assert not settings.allow_private_workers
    assert settings.upstreams == ()
    assert settings.bodies_bytes_max >= settings.body_bytes_max
    assert read(COCOON_ENV="development").production is False


def test_stakes_may_return_within_a_day_on_the_development_chain_only() -> None:
    settings = read()
    assert (settings.stake_unbond_s_min, settings.stake_bounty_bps_min) == (86_400, 1_000)
    assert read(COCOON_STAKE_UNBOND_S_MIN="604800", COCOON_GLOBAL_ID="-239").stake_unbond_s_min == 604_800
    assert read(COCOON_STAKE_UNBOND_S_MIN="60", COCOON_ENV="development").stake_unbond_s_min == 60
    for elsewhere in ({}, {"COCOON_ENV": "development", "COCOON_GLOBAL_ID": "-239"}):
        with pytest.raises(SettingsError, match="COCOON_STAKE_UNBOND_S_MIN"):
            read(COCOON_STAKE_UNBOND_S_MIN="60", **elsewhere)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_missing_is_named(name: str) -> None:
    for value in ({}, {name: ""}):
        with pytest.raises(SettingsError, match=name):
            read_settings({key: text for key, text in GOOD.items() if key != name} | value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COCOON_GATEWAY_KEY", "ab"), ("COCOON_GATEWAY_KEY", "zz" * 32), ("COCOON_GATEWAY_DELEGATION", "AAAA"),
        ("COCOON_GATEWAY_DELEGATION", "no base64url"),
        ("COCOON_NETWORK_SECRET", "ab"), ("COCOON_NETWORK_SECRET", "zz" * 32), ("COCOON_ENV", "prod"),
        ("COCOON_ALLOW_PRIVATE_WORKERS", "yes"), ("COCOON_DRAIN_S", "soon"), ("COCOON_DRAIN_S", "nan"),
        ("COCOON_DRAIN_S", "-1"), ("COCOON_FIRST_BYTE_S", "0"), ("COCOON_REQUEST_S_MAX", "inf"),
        ("COCOON_BODY_BYTES_MAX", "1"), ("COCOON_EXCHANGES_MAX", "0"), ("COCOON_GLOBAL_ID", "1e12"),
        ("COCOON_STAKE_BOUNTY_BPS_MIN", "2001"), ("COCOON_STAKE_UNBOND_S_MIN", "-1"),
        ("COCOON_LOG_KEY", "ab"), ("COCOON_LOG_KEY", "zz" * 32), ("COCOON_LOG_ORIGIN", "two words"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read(**{name: value})


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "two\r\nx-evil: 1"}, {"name": ""}, {"name": "é"}, {"models": {}}, {"context_tokens": 0},
        {"capacity": 0}, {"api_key": "se cret"}, {"api_key": "se\ncret"}, {"surprise": 1}, {"models": ["m"]},
    ],
)  # fmt: skip
def test_an_upstream_that_cannot_be_used_is_refused_without_showing_its_key(entry: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="COCOON_UPSTREAMS") as refused:
        read(COCOON_UPSTREAMS=upstreams({}, {"name": "other", "api_key": "se-cret", **entry}))
    assert "cret" not in str(refused.value)


def test_two_upstreams_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="same name"):
        read(COCOON_UPSTREAMS=upstreams({}, {"url": "http://other/v1"}))
    with pytest.raises(SettingsError, match="COCOON_UPSTREAMS"):
        read(COCOON_UPSTREAMS="{")


def test_secrets_do_not_show_themselves() -> None:
    shown = repr(read(COCOON_UPSTREAMS=upstreams({"api_key": "up-password"})))
    for secret in ("db-password", "redis-password", "up-password", "abab"):
        assert secret not in shown


def test_only_development_may_do_without_the_operators_delegation_and_never_with_half_of_it() -> None:
    unsigned = {name: value for name, value in GOOD.items() if not name.startswith("COCOON_GATEWAY_")}
    settings = read_settings({**unsigned, "COCOON_ENV": "development"})
    assert (settings.gateway_key, settings.delegation) == (None, None)
    for env in ("production", ""):
        with pytest.raises(SettingsError, match="COCOON_GATEWAY_KEY"):
            read_settings({**unsigned, "COCOON_ENV": env})
    half = {**unsigned, "COCOON_GATEWAY_KEY": GOOD["COCOON_GATEWAY_KEY"], "COCOON_ENV": "development"}
    with pytest.raises(SettingsError, match="COCOON_GATEWAY_DELEGATION"):
        read_settings(half)


def test_the_log_has_a_name_and_a_key_of_the_network_unless_it_is_given_its_own() -> None:
    log = read(COCOON_GLOBAL_ID="-239").log
    assert log.origin == "cocoon-log/-239"
    assert log.seed.reveal() == read().log.seed.reveal()
    assert log.seed.reveal() != read(COCOON_NETWORK_SECRET="cd" * 32).log.seed.reveal()
    assert log.seed.reveal() not in repr(log)
    own = read(COCOON_LOG_KEY="12" * 32, COCOON_LOG_ORIGIN="log.example/cocoon").log
    assert (own.origin, own.seed.reveal()) == ("log.example/cocoon", "12" * 32)


def test_a_policy_is_pinned_and_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(b"version = 1")
    pinned = {"COCOON_POLICY_FILE": str(path), "COCOON_POLICY_SHA256": "ab" * 32}
    assert read(**pinned).attestation.policy == b"version = 1"
    assert read().attestation.policy is None
    for changes, name in (
        ({"COCOON_POLICY_FILE": str(path)}, "go together"),
        ({"COCOON_POLICY_SHA256": "ab" * 32}, "go together"),
        ({**pinned, "COCOON_POLICY_FILE": str(tmp_path / "absent")}, "COCOON_POLICY_FILE"),
        ({**pinned, "COCOON_POLICY_SHA256": "ab"}, "COCOON_POLICY_SHA256"),
        ({**pinned, "COCOON_SIMULATED_SEED": "zz"}, "COCOON_SIMULATED_SEED"),
        ({**pinned, "COCOON_RIMS": str(path)}, "COCOON_RIMS"),
        ({"COCOON_EVIDENCE_REQUIRED": "1"}, "COCOON_EVIDENCE_REQUIRED"),
    ):
        with pytest.raises(SettingsError, match=name):
            read(**changes)


def test_stakes_are_asked_for_where_a_unit_of_them_is_named() -> None:
    assert read().stakes is None
    assert read(COCOON_STAKE_PER_UNIT_NANO="0", COCOON_AUDIT_WINDOW_S="60").stakes is None
    named = read(COCOON_STAKE_PER_UNIT_NANO="2000000000").stakes
    assert named is not None
    assert (named.unit_nano, named.window_s) == (2 * 10**9, 86_400)
    for name, value in (("COCOON_STAKE_PER_UNIT_NANO", "-1"), ("COCOON_AUDIT_WINDOW_S", "1")):
        with pytest.raises(SettingsError, match=name):
            read(**{name: value})
