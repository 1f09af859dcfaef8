"""`cocoon verify` and `cocoon proxy` from outside: options, words, exit status."""

import hashlib
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli.main import main
from cocoon_client.openai import SealingClient
from cocoon_client.store import Store
from cocoon_client.verification.proof import Proof
from tests.fake_network import API_KEY, BASE_URL, MODEL, NETWORK, FakeGateway, machine


class Scene:
    """A gateway's answer, its proof in a file, and a trust file."""

    def __init__(self, folder: Path) -> None:
        self.gateway = FakeGateway()
        self.state = folder / "state"
        self.trust = folder / "trust.toml"
        (folder / "policy.toml").write_bytes(machine().policy_toml())
        keys = self.gateway.trust()
        self.trust.write_text(
            f"""\
version = 1
network = {NETWORK}
policy = "policy.toml"
policy_sha256 = "{hashlib.sha256(machine().policy_toml()).hexdigest()}"
operator_key = "{keys.operator_key.hex()}"
log_key = "{keys.log_key}"
"""
        )
        client = SealingClient(keys, transport=self.gateway)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a prompt"}]}
        client.post(BASE_URL + "/chat/completions", json=body, headers={"authorization": f"Bearer {API_KEY}"})
        opening = client.kept.newest
        assert opening is not None
        self.proof = Proof(bundle=self.gateway.bundle(opening), opening=opening)
        self.file = folder / "proof.json"
        self.file.write_bytes(self.proof.encode())

    def verify(self, *arguments: Any) -> Result:
        fixed = ["--trust", self.trust, "--state", self.state]
        return CliRunner().invoke(main, ["verify", *map(str, [*fixed, *arguments])])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_whole_proof_is_verified_in_words(scene: Scene) -> None:
    result = scene.verify(scene.file, "--allow-simulated")
    assert result.exit_code == 0, result.output
    assert "held       ticket" in result.output
    assert "VERIFIED: every required step holds." in result.output
    assert "SIMULATED" in result.output


def test_simulated_evidence_needs_to_be_allowed(scene: Scene) -> None:
    result = scene.verify(scene.file)
    assert result.exit_code == 1
    assert "failed     evidence" in result.output
    assert "this client allows no simulated evidence" in result.output
    assert "NOT VERIFIED" in result.output


def test_an_altered_proof_is_not_verified(scene: Scene) -> None:
    assert scene.proof.bundle is not None
    bundle = msgspec.structs.replace(scene.proof.bundle, signature=bytes(64))
    scene.file.write_bytes(Proof(bundle=bundle, opening=scene.proof.opening).encode())
    result = scene.verify(scene.file, "--allow-simulated")
    assert result.exit_code == 1
    assert "failed     receipt signature" in result.output


def test_programs_get_json(scene: Scene) -> None:
    result = scene.verify(scene.file, "--allow-simulated", "--json")
    report = msgspec.json.decode(result.output)
    assert (result.exit_code, report["holds"], report["simulated"]) == (0, True, True)


def test_a_receipt_of_the_proxy_is_verified_by_its_id_and_saved(scene: Scene, tmp_path: Path) -> None:
    Store(scene.state).save(scene.proof)
    saved = tmp_path / "saved.json"
    result = scene.verify(scene.proof.receipt_id, "--allow-simulated", "--save", saved)
    assert result.exit_code == 0, result.output
    assert Proof.decode(saved.read_bytes()) == scene.proof
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    nowhere = scene.verify(scene.proof.receipt_id, "--allow-simulated", "--save", tmp_path / "missing" / "saved.json")
    assert (nowhere.exit_code, "cannot be written: No such file" in nowhere.output) == (1, True)


def test_an_unknown_receipt_says_what_to_do(scene: Scene) -> None:
    result = scene.verify(scene.proof.receipt_id)
    assert (result.exit_code, "--base-url" in result.output) == (1, True)
    result = scene.verify("no-such-thing")
    assert (result.exit_code, "neither a file nor a receipt id" in result.output) == (1, True)


def test_a_gateway_that_is_away_is_an_error_in_one_line(scene: Scene) -> None:
    result = scene.verify(scene.proof.receipt_id, "--base-url", "http://127.0.0.1:9/v1", "--wait", "0")
    assert (result.exit_code, "does not answer" in result.output) == (1, True)


def test_nothing_is_verified_without_trust(scene: Scene) -> None:
    result = CliRunner().invoke(main, ["verify", str(scene.file)])
    assert (result.exit_code, "say what to trust" in result.output) == (1, True)


def test_another_policy_than_the_pinned_one_is_refused(scene: Scene) -> None:
    (scene.trust.parent / "policy.toml").write_bytes(machine().policy_toml() + b"# altered\n")
    result = scene.verify(scene.file, "--allow-simulated")
    assert (result.exit_code, "not the pinned one" in result.output) == (1, True)


def test_the_options_can_say_it_all(scene: Scene) -> None:
    keys = scene.gateway.trust()
    options = [
        "--policy", scene.trust.parent / "policy.toml", "--network", NETWORK, "--allow-simulated",
        "--operator-key", keys.operator_key.hex(), "--log-key", keys.log_key, "--state", scene.state,
    ]  # fmt: skip
    result = CliRunner().invoke(main, ["verify", str(scene.file), *map(str, options)])
    assert result.exit_code == 0, result.output


def test_the_proxy_refuses_to_listen_for_other_machines(scene: Scene) -> None:
    arguments = ["proxy", "--base-url", BASE_URL, "--host", "0.0.0.0", "--trust", str(scene.trust)]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "other machines" in result.output) == (1, True)
