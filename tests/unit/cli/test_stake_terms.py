"""What a gateway says of stakes is checked before a key is made or money moves."""

import msgspec
import pytest

from cli.contract import ContractError
from cli.stake_terms import UNBOND_S_ASKED_MAX, Meant, StakeTerms, agreed_terms
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE
from cocoon.enrolment import StakeTermsAnswer
from tests.stake_values import GLOBAL_ID, OPERATOR, OPERATOR_KEY

SAID = StakeTermsAnswer(
    global_id=GLOBAL_ID, operator=str(OPERATOR), operator_key=OPERATOR_KEY.hex(), code_hash=code_of(CODE).hash.hex(),
    unbond_s_min=86_400, bounty_bps_min=1_000,
)  # fmt: skip
OTHER = Address(0, b"\x0a" * 32)


def test_the_networks_terms_are_taken_where_the_owner_says_nothing() -> None:
    wanted = StakeTerms(operator=OPERATOR, operator_key=OPERATOR_KEY, unbond_s=86_400, bounty_bps=1_000)

    assert agreed_terms(SAID, Meant()) == wanted
    assert agreed_terms(SAID, Meant(operator=OPERATOR, operator_key=OPERATOR_KEY, global_id=GLOBAL_ID)) == wanted


def test_an_owner_may_bind_itself_for_longer_and_pay_finders_more() -> None:
    terms = agreed_terms(SAID, Meant(unbond_s=2 * UNBOND_S_ASKED_MAX, bounty_bps=2_000))

    assert (terms.unbond_s, terms.bounty_bps) == (2 * UNBOND_S_ASKED_MAX, 2_000)


def test_a_wallet_that_the_network_does_not_name_is_the_owners_to_name() -> None:
    said = msgspec.structs.replace(SAID, operator=None)

    assert agreed_terms(said, Meant(operator=OTHER)).operator == OTHER
    with pytest.raises(ContractError, match="give --operator"):
        agreed_terms(said, Meant())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"code_hash": "00" * 32}, "another contract"),
        ({"operator": "nowhere"}, "no terms"),
        ({"operator_key": "zz"}, "no terms"),
        ({"operator_key": "11"}, "proves nothing"),
        ({"operator_key": "00" * 32}, "proves nothing"),
        ({"operator_key": "01" + "00" * 31}, "proves nothing"),
        ({"unbond_s_min": UNBOND_S_ASKED_MAX + 1}, "say --unbond"),
        ({"unbond_s_min": -1}, "say --unbond"),
        ({"bounty_bps_min": 2_001}, "2000 basis points"),
    ],
)
def test_terms_that_nobody_should_bond_under_are_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ContractError, match=why):
        agreed_terms(msgspec.structs.replace(SAID, **changes), Meant())


@pytest.mark.parametrize(
    ("meant", "why"),
    [
        (Meant(operator=OTHER), "operator is 0:3333"),
        (Meant(operator_key=b"\x09" * 32), "not the one that you gave"),
        (Meant(global_id=-239), "on the network -3"),
        (Meant(unbond_s=86_399), "before 86400 s"),
        (Meant(bounty_bps=999), "bounty is 1000"),
        (Meant(bounty_bps=2_001), "bounty is 1000"),
    ],
)
def test_terms_that_the_owner_did_not_mean_are_refused(meant: Meant, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        agreed_terms(SAID, meant)
