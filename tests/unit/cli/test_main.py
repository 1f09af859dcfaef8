"""The command's front door: what it imports, what it says, how it fails."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cli.lazy import LazyGroup, Subcommand
from cli.main import SUBCOMMANDS, main
from cocoon.errors import CocoonError

HEAVY = ("asyncpg", "billing", "gateway", "granian", "litestar", "redis")


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules that `cocoon ARGUMENTS` has imported when it ends."""
    script = (
        "import sys\n"
        "from cli.main import main\n"
        "try:\n"
        f"    main({list(arguments)!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_help_names_every_subcommand_and_imports_none() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    assert [name for name in SUBCOMMANDS if f"  {name} " not in output] == []
    assert modules_after("--help") & set(HEAVY) == set()


def test_the_worker_loads_nothing_of_the_gateway() -> None:
    loaded = modules_after("worker", "--help")
    assert loaded & set(HEAVY) == set()
    assert "workers" in loaded


@pytest.mark.parametrize("name", ["proxy", "verify"])
def test_the_client_loads_nothing_of_gateway_or_worker(name: str) -> None:
    loaded = modules_after(name, "--help")
    assert loaded & {*HEAVY, "audit", "openai", "workers"} == set()
    assert "cocoon_client" in loaded


def test_every_subcommand_exists_and_has_help() -> None:
    for name in SUBCOMMANDS:
        result = CliRunner().invoke(main, [name, "--help"])
        assert (name, result.exit_code) == (name, 0), result.output


def test_version_is_the_installed_one() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, "cocoon 0.1.0\n")


def test_an_unknown_subcommand_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["gatewya"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="litestar")

    monkeypatch.setattr("importlib.import_module", missing)
    result = CliRunner().invoke(LazyGroup(subcommands={"x": Subcommand("cli.x", "X.", "gateway")}), ["x"])
    assert result.exit_code == 1
    assert "'litestar': pip install 'cocoon-network[gateway]'" in result.output


def test_a_module_of_ours_that_is_missing_is_a_bug_and_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    group = LazyGroup(subcommands={"x": Subcommand("cli.no_such_module", "X.", "gateway")})
    assert isinstance(CliRunner().invoke(group, ["x"]).exception, ModuleNotFoundError)


def test_an_operating_error_is_one_line_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenError(CocoonError):
        """It broke."""

        code = "broke"

    class Module:
        @click.command("x")
        @staticmethod
        def command() -> None:
            """Fail."""
            raise BrokenError

    monkeypatch.setattr("importlib.import_module", lambda name: Module)
    result = CliRunner().invoke(LazyGroup(subcommands={"x": Subcommand("cli.x", "X.", "gateway")}), ["x"])
    assert (result.exit_code, result.output) == (1, "Error: It broke. [broke]\n")
