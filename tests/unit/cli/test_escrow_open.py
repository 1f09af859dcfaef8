"""`cocoon escrow open` before any money moves: with a gateway that is played, and no chain."""

from pathlib import Path

import pytest

from cli.contract import ContractError
from cli.escrow_gateway import Gateway, Terms
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE
from cocoon_client.escrow_file import EscrowFile, read_escrow_file
from tests.escrow_command import Done, run

CLIENT = "0:" + "08" * 32
TERMS = Terms(
    global_id=-3, operator="0:" + "04" * 32, payout="0:" + "05" * 32, operator_key="00" * 32,
    code_hash=code_of(CODE).hash.hex(), challenge_s_min=600,
)  # fmt: skip


def opened(path: Path, *arguments: str, api_key: str = "sk-cocoon-key") -> Done:
    options = ("--file", str(path), "--client", CLIENT, "--amount", "5", *arguments)
    return run("open", *options, COCOON_BASE_URL="http://127.0.0.1:9/v1", COCOON_API_KEY=api_key)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that registers every escrow, and says so."""
    monkeypatch.setattr(Gateway, "terms", lambda _: TERMS)
    monkeypatch.setattr(Gateway, "register", lambda _, escrow: str(escrow.address))


@pytest.mark.usefixtures("gateway")
def test_what_a_gateway_refuses_leaves_no_file_behind_that_would_be_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "escrow.json"

    def refuse(_: Gateway, escrow: EscrowFile) -> str:
        raise ContractError(f"the gateway refused (403): {escrow.network} is not for you")

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "register", refuse)
        refused = opened(path)
    assert (refused.returncode, "-3 is not for you" in refused.stderr, path.exists()) == (1, True, False)

    again = opened(path)
    assert (again.returncode, "ton://transfer/" in again.stdout) == (0, True), again.stderr
    assert read_escrow_file(path).network == -3
    more = opened(path)
    assert (more.returncode, "cocoon escrow top-up" in more.stderr) == (2, True)


def test_without_an_api_key_it_says_which_variable_to_set(tmp_path: Path) -> None:
    done = opened(tmp_path / "escrow.json", api_key="")

    assert (done.returncode, "set COCOON_API_KEY" in done.stderr) == (1, True), done.stderr


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize("half", [("--delegated",), ("--allow-max", "1"), ("--delegated", "--allow-max", "0")])
def test_an_allowance_that_would_allow_nothing_is_refused(half: tuple[str, ...], tmp_path: Path) -> None:
    done = opened(tmp_path / "escrow.json", *half)

    assert (done.returncode, "go together" in done.stderr) == (2, True)
    assert opened(tmp_path / "escrow.json", "--delegated", "--allow-max", "1").returncode == 0
