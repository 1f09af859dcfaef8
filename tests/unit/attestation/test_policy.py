"""Policies: pinned, explicit, and never trusting simulated and real roots at once."""

import hashlib
import pathlib
import re
from collections.abc import Callable

import pytest

from attestation.policy import VENDOR_ROOTS, Deployment, Policy, PolicyError, load_policy
from attestation.simulation.tee import SimulatedTEE, SimulationRefusedError
from attestation.verdict import Verdict
from tests.attested import DEVELOPMENT, machine, scene

TEXT = machine().policy_toml().decode()
INTEL = next(iter(VENDOR_ROOTS["intel"]))
INTEL_ROOT = f'[[roots]]\nuse = "tdx"\nkind = "intel"\nsha256 = "{INTEL}"\n'


def loaded(text: str) -> Policy:
    raw = text.encode()
    return load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())


def test_a_policy_is_the_pinned_one_or_none() -> None:
    raw = TEXT.encode()

    with pytest.raises(PolicyError):
        load_policy(raw + b"\n", pinned_sha256=hashlib.sha256(raw).digest())
    with pytest.raises(PolicyError):
        load_policy(raw, pinned_sha256=b"")
    assert load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest()).sha256 == hashlib.sha256(raw).digest()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "[unknown]\n",
        lambda text: "sha256 = 1\n" + text,
        lambda text: text.replace("version = 1", "version = 2"),
        lambda text: text.replace('kind = "simulated"', 'kind = "intel"', 1),
        lambda text: text.replace(machine().platform.root_sha256, INTEL),
        lambda text: text.replace("[[releases]]", f"{INTEL_ROOT}[[releases]]", 1),
        lambda text: text.replace('"simulated-snp"', '"simulated"'),
        lambda text: text.replace("tcb_evaluation_min = 20", 'tcb_evaluation_min = 20\ntcb_grace = ["OutOfDate"]'),
        lambda text: text.replace("tcb_evaluation_min = 20", "tcb_evaluation_min = 20\ntcb_grace_seconds = 60"),
        lambda text: text.replace(
            "tcb_evaluation_min = 20", 'tcb_evaluation_min = 20\ntcb_grace = ["Revoked"]\ntcb_grace_seconds = 60'
        ),
        lambda text: text.replace("tcb_evaluation_min = 20", ""),
        lambda text: text.replace('mrtd = "', 'mrtd = "0'),
        lambda text: text.replace('"unproven"', '"proven"'),
        lambda text: "\x00" + text,
        lambda text: "x = " + "[" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused(change: Callable[[str], str]) -> None:
    assert change(TEXT) != TEXT
    with pytest.raises(PolicyError):
        loaded(change(TEXT))


@pytest.mark.parametrize(
    ("environment", "global_id", "production"),
    [
        ("development", -3, False), (None, -3, True), ("", -3, True), ("dev", -3, True), ("Development", -3, True),
        ("production", -3, True), ("development", -239, True),
    ],
)  # fmt: skip
def test_anything_but_development_is_production(environment: str | None, global_id: int, production: bool) -> None:
    assert Deployment(environment, global_id).production is production


@pytest.mark.parametrize("deployment", [Deployment(None, -3), Deployment("development", -239)])
def test_a_simulated_tee_does_not_start_in_production(deployment: Deployment) -> None:
    with pytest.raises(SimulationRefusedError):
        SimulatedTEE(bytes(32), machine="worker", deployment=deployment)


def test_a_seed_has_its_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SimulatedTEE(b"short", machine="worker", deployment=DEVELOPMENT)


def test_a_seed_always_gives_the_same_policy() -> None:
    again = SimulatedTEE(bytes(32), machine="another", deployment=DEVELOPMENT, gpus=1)

    assert again.policy_toml() == machine().policy_toml()
    assert SimulatedTEE(b"\x01" * 32, machine="x", deployment=DEVELOPMENT, gpus=1).policy_toml() != again.policy_toml()


def test_a_verdict_cannot_contradict_itself() -> None:
    verdict = scene().verdict()
    facts = {"policy": "p", "policy_sha256": b"", "judged_at": 0, "notes": ()}

    with pytest.raises(ValueError, match="accepted exactly"):
        Verdict(accepted=False, tee_type="tdx", simulated=False, reasons=(), **facts)
    with pytest.raises(ValueError, match="accepted exactly"):
        Verdict(accepted=True, tee_type="tdx", simulated=False, reasons=verdict.notes, **facts)
    with pytest.raises(ValueError, match="says so"):
        Verdict(accepted=True, tee_type="tdx", simulated=True, reasons=(), **facts)


def test_a_verdict_says_what_it_says_in_words() -> None:
    refused = scene().asked(nonce=bytes(32)).verdict()

    assert scene().verdict().in_words().startswith("accepted: tdx-simulated under policy simulated")
    assert "no hardware protects anything [simulated]" in scene().verdict().in_words()
    assert (
        "refused because the statement does not carry the nonce that was given [nonce_mismatch]" in refused.in_words()
    )


def test_the_policy_in_the_documentation_is_one() -> None:
    page = (pathlib.Path(__file__).parents[3] / "docs" / "attestation.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    policy = loaded(text)

    assert not policy.simulated
    assert [release.name for release in policy.releases] == ["worker-1.0-h100"]
