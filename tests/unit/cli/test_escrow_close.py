"""Closing together: only the operator's signature for this escrow and this amount is taken, and only what is meant."""

from collections.abc import Sequence
from typing import Any

import click
import msgspec
import pytest

from cli.contract import ContractError
from cli.escrow_close import AGREE_S_MAX, Agreed, accept, agree
from cli.escrow_gateway import CloseAnswer, Gateway
from cocoon.clock import ManualClock
from cocoon.contracts.escrow import CloseTerms, EscrowData
from cocoon_client.escrow_file import EscrowFile
from tests.escrow_values import KEY, OPERATOR_KEY, escrow_config

ESCROW = EscrowFile(network=-3, config=escrow_config(), seed=KEY.private_bytes_raw())
OWED = 300
PENDING = CloseAnswer(cumulative=None, signature=None)
DATA = msgspec.structs.replace(EscrowData.initial(ESCROW.config), deposited_nano=1_000, settled_nano=100)


def terms(**changes: Any) -> CloseTerms:
    fields = {"global_id": -3, "escrow": ESCROW.address, "epoch": ESCROW.config.epoch, "cumulative_nano": OWED}
    return CloseTerms(**{**fields, **changes})


def answer(signed: CloseTerms, key: Any = OPERATOR_KEY) -> CloseAnswer:
    """What a gateway shows: always for 300 nano, whatever was signed."""
    return CloseAnswer(cumulative=OWED, signature=signed.sign(key).hex())


class PlayedGateway(Gateway):
    """Gives these answers, and then the last one again and again."""

    def __init__(self, *answers: CloseAnswer) -> None:
        super().__init__("http://nowhere", "sk-unused")
        self.answers: Sequence[CloseAnswer] = answers
        self.asked = 0
        self.withdrawn = 0

    def ask_close(self, escrow: EscrowFile) -> CloseAnswer:
        assert escrow is ESCROW
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]

    def withdraw_close(self, escrow: EscrowFile) -> None:
        assert escrow is ESCROW
        self.withdrawn += 1


def asked(gateway: PlayedGateway) -> Agreed:
    clock = ManualClock()
    return agree(ESCROW, gateway, clock, clock.advance)


def test_the_operators_signature_is_waited_for() -> None:
    gateway = PlayedGateway(PENDING, PENDING, answer(terms()))
    agreed = asked(gateway)
    assert (agreed.terms, gateway.asked, gateway.withdrawn) == (terms(), 3, 0)
    agreed.terms.verify(ESCROW.config.operator_key, agreed.signature)


def test_an_operator_that_signs_nothing_is_not_waited_for_for_ever() -> None:
    gateway = PlayedGateway(PENDING)
    with pytest.raises(ContractError, match="nothing in time"):
        asked(gateway)
    assert gateway.withdrawn == 1
    assert gateway.asked <= AGREE_S_MAX + 2


@pytest.mark.parametrize(
    "forged",
    [
        answer(terms(cumulative_nano=OWED - 1)),
        answer(terms(epoch=2)),
        answer(terms(global_id=-239)),
        answer(terms(escrow=escrow_config().client)),
        answer(terms(), KEY),
        CloseAnswer(cumulative=OWED, signature="00" * 64),
        CloseAnswer(cumulative=OWED, signature="zz"),
    ],
    ids=["amount", "epoch", "network", "escrow", "key", "zeros", "nonsense"],
)
def test_what_the_operator_did_not_sign_for_this_escrow_is_refused(forged: CloseAnswer) -> None:
    with pytest.raises(ContractError, match="not signed by the operator"):
        asked(PlayedGateway(forged))


@pytest.mark.parametrize("nano", [99, 1_001])
def test_an_amount_that_the_contract_would_not_take_is_not_sent(nano: int) -> None:
    with pytest.raises(ContractError, match="would not take"):
        accept(Agreed(terms(cumulative_nano=nano), b""), DATA, None, ask=False)


def test_more_than_the_owner_meant_is_refused_and_less_is_asked_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agreed = Agreed(terms(), b"")
    with pytest.raises(ContractError, match="more than"):
        accept(agreed, DATA, OWED - 1, ask=False)
    accept(agreed, DATA, OWED, ask=False)
    assert "whatever you answer" not in capsys.readouterr().err
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    with pytest.raises(click.Abort):
        accept(agreed, DATA, OWED, ask=True)
    assert "nothing is served on the escrow any more, whatever you answer" in capsys.readouterr().err
