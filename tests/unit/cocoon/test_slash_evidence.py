"""Evidence is the same in Python and on the chain: the contract judges what this code makes, and both agree."""

import json
from pathlib import Path

import pytest

from cocoon import receipt
from cocoon.cells import read_boc
from cocoon.contracts.judge import Accused, judge
from tests import slash_evidence
from tests.slash_evidence import NETWORK, STAKE, Case, public

FILE = json.loads((Path(__file__).parents[2] / "vectors/ton/slash.json").read_text())
CASES = slash_evidence.cases()
ACCUSED = Accused(global_id=NETWORK, stake=STAKE, staked_key=public("staked"), operator_key=public("operator"))


def test_the_file_is_what_this_code_makes() -> None:
    assert slash_evidence.document() == FILE


def test_names_are_not_used_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_our_judge_says_what_the_contract_says(case: Case) -> None:
    evidence = read_boc(
        bytes.fromhex(next(one["evidence_boc_hex"] for one in FILE["cases"] if one["name"] == case.name))
    )

    assert judge(case.kind, evidence, ACCUSED) == (case.exit or None)


def test_a_second_signature_of_the_same_head_verifies() -> None:
    head = slash_evidence.a_head()
    _, first = slash_evidence.signed(head)
    _, second = slash_evidence.signed_again(head)

    assert first != second
    receipt.verify(public("receipt"), head, second)
