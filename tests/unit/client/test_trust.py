"""Trust files, and the published proof that every client can be tried with."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attestation.policy import load_policy
from cocoon_client.errors import NotSealableError, TrustError
from cocoon_client.plan import plan_request
from cocoon_client.trust import Trust, read_trust
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.walk import verify
from tests.fake_network import machine

VECTOR = json.loads((Path(__file__).parents[2] / "vectors/proof.json").read_text())


def proof_of_vector() -> tuple[Proof, Trust]:
    raw = json.dumps(VECTOR["proof"], separators=(",", ":"), ensure_ascii=False).encode()
    policy = load_policy(VECTOR["policy"].encode(), pinned_sha256=bytes.fromhex(VECTOR["policy_sha256"]))
    trust = Trust(
        policy=policy, network=VECTOR["network"], allow_simulated=True, log_key=VECTOR["log_key"],
        operator_key=bytes.fromhex(VECTOR["operator_key"]),
    )  # fmt: skip
    return Proof.decode(raw), trust


def test_the_published_proof_holds_at_any_later_time() -> None:
    report = verify(*proof_of_vector())
    assert report.holds, report.in_words()
    assert {step.name: step.outcome for step in report.steps} == VECTOR["steps"]


def test_the_published_commitments_are_what_salt_request_and_answer_make() -> None:
    proof, _ = proof_of_vector()
    assert proof.opening is not None
    opening = proof.opening
    shown = [opening.request.decode(), opening.answer.decode(), opening.salt.hex()]
    assert shown == [VECTOR["request"], VECTOR["answer"], VECTOR["salt"]]
    assert [one.hex() for one in opening.commitments()] == [VECTOR["c_req"], VECTOR["c_resp"]]


def trust_file(folder: Path, **changes: Any) -> Path:
    raw = machine().policy_toml()
    (folder / "policy.toml").write_bytes(raw)
    members = {
        "version": 1, "network": -3, "policy": "policy.toml", "policy_sha256": hashlib.sha256(raw).hexdigest(),
        "operator_key": "ab" * 32,
    } | changes  # fmt: skip
    path = folder / "trust.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in members.items()))
    return path


def test_a_trust_file_is_read_beside_its_policy(tmp_path: Path) -> None:
    path = trust_file(tmp_path)
    path.write_text(path.read_text() + '[manifests]\n"some/model" = "' + "cd" * 32 + '"\n')
    trust = read_trust(path)
    assert (trust.network, trust.operator_key, trust.allow_simulated) == (-3, b"\xab" * 32, False)
    assert trust.manifests == {"some/model": b"\xcd" * 32}
    assert trust.deployment.production


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policy_sha256": "00" * 32}, "not the pinned one"),
        ({"policy": "missing.toml"}, "cannot be read"),
        ({"version": 2}, "not a trust file"),
        ({"allow_simulated": True}, "unknown field"),
        ({"operator_key": "xyz"}, "not a trust file"),
    ],
)
def test_a_trust_file_that_is_not_one_is_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=why):
        read_trust(trust_file(tmp_path, **changes))


def test_a_missing_trust_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"nowhere\.toml"):
        read_trust(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "not valid JSON"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{"role":"user"}],"n":99}', "n must lie"),
        (b'{"model":"m","messages":[{"role":"user"}],"provider":{"model_manifest":"zz"}}', "hex"),
        (b'{"model":"m","messages":[{"role":"user"}],"provider":{"model_manifest":"%s"}}' % (b"ee" * 32), "pins"),
    ],
)
def test_a_request_that_cannot_be_sealed_says_why(body: bytes, why: str) -> None:
    with pytest.raises(NotSealableError, match=why):
        plan_request("/v1/chat/completions", body, {"m": b"\xcd" * 32})
