"""Amounts on the command line, where money would move."""

import pytest

from tests.escrow_command import cocoon

SOMEBODY = "0:" + "ab" * 32


@pytest.mark.parametrize(
    "command",
    [
        ("escrow", "open", "--file", "e", "--base-url", "http://127.0.0.1:9/v1", "--client", SOMEBODY, "--amount"),
        ("escrow", "top-up", "--file", "e", "--amount"),
        ("worker", "stake", "open", "--key-file", "k", "--config-file", "c", "--amount"),
        ("worker", "stake", "top-up", "--config-file", "c", "--amount"),
        ("worker", "stake", "unbond", "--config-file", "c", "--amount"),
        ("orgs", "move", "deposit", "acme", "--reason", "none"),
        ("chain", "faucet", SOMEBODY),
        ("chain", "wallet", "words"),
    ],
)
@pytest.mark.parametrize("amount", ["0", "0.000000000", "1.0000000001", "1e9", "much"])
def test_what_is_no_amount_to_move_is_refused_before_anything_is_done(command: tuple[str, ...], amount: str) -> None:
    done = cocoon(*command, amount)

    assert (done.returncode, "must be above zero" in done.stderr or "not an amount" in done.stderr) == (2, True)
