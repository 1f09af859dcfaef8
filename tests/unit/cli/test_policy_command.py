"""`cocoon policy`: what a gateway will rely on, before it does."""

import hashlib
from pathlib import Path

from click.testing import CliRunner

from cli.main import main
from tests.attested import machine


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["policy", *arguments])
    return result.exit_code, result.output


def test_a_policy_is_pinned_and_a_simulated_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(machine().policy_toml(images=("one", "two")))
    code, output = run("check", str(path))
    assert code == 0
    assert f"COCOON_POLICY_SHA256={hashlib.sha256(path.read_bytes()).hexdigest()}" in output
    assert "SIMULATED" in output


def test_a_draining_release_is_shown_and_a_policy_without_another_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    text = machine().policy_toml(images=("one", "two")).decode()
    path.write_text(text.replace('name = "one"\n', 'name = "one"\ndraining = true\n'))
    code, output = run("show", str(path))
    states = {line.split()[1]: "draining" in line for line in output.splitlines() if "release" in line}
    assert (code, states) == (0, {"one": True, "two": False, "simulated-snp": False})
    assert "No release is in service" not in run("check", str(path))[1]
    path.write_text(text.replace('tee = "', 'draining = true\ntee = "'))
    assert "No release is in service" in run("check", str(path))[1]


def test_what_is_no_policy_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    for text, reason in (
        ("", "missing required field"),
        ("version = ", "Invalid"),
        (machine().policy_toml().decode().replace("draining", "drain") + "\n[surprise]\n", "unknown field"),
        ("x" * 300_000, "too long"),
    ):
        path.write_text(text)
        code, output = run("check", str(path))
        assert code == 1, output
        assert reason in output
    assert run("check", str(tmp_path / "absent"))[0] == 2
