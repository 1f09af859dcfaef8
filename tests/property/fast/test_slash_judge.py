"""The judge of evidence: good evidence is good as it is and in no other way, and nothing makes the judge fail."""

from hypothesis import given
from hypothesis import strategies as st

from cocoon.cells import Cell
from cocoon.contracts.judge import Accused, judge
from cocoon.contracts.stake import EvidenceKind
from tests import slash_evidence
from tests.slash_evidence import NETWORK, STAKE, Case, public

ACCUSED = Accused(global_id=NETWORK, stake=STAKE, staked_key=public("staked"), operator_key=public("operator"))
GOOD = [case for case in slash_evidence.cases() if not case.exit]
KINDS = st.sampled_from([0, EvidenceKind.EQUIVOCATION, EvidenceKind.OVER_USE, 3])


def cells(cell: Cell) -> int:
    return 1 + sum(cells(ref) for ref in cell.refs)


def flipped(cell: Cell, number: int, bit: int) -> Cell:
    """The same with one bit of its `number`th cell changed; parents come first."""
    data = bytearray(cell.data)
    if not number:
        bit %= cell.bits
        data[bit // 8] ^= 0x80 >> bit % 8
        return Cell(bytes(data), cell.bits, cell.refs)
    refs, left = list(cell.refs), number - 1
    for place, ref in enumerate(cell.refs):
        if left < cells(ref):
            refs[place] = flipped(ref, left, bit)
            break
        left -= cells(ref)
    return Cell(cell.data, cell.bits, tuple(refs))


@given(st.sampled_from(GOOD), st.data())
def test_no_bit_of_good_evidence_can_be_another(case: Case, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, cells(case.evidence) - 1))
    altered = flipped(case.evidence, number, data.draw(st.integers(0, 1022)))

    assert judge(case.kind, altered, ACCUSED) is not None


@given(st.sampled_from(GOOD), st.binary(min_size=32, max_size=32), st.sampled_from(["stake", "staked_key"]))
def test_good_evidence_says_nothing_of_another_stake(case: Case, other: bytes, member: str) -> None:
    accused = Accused(**{**{name: getattr(ACCUSED, name) for name in ACCUSED.__struct_fields__}, member: other})

    assert judge(case.kind, case.evidence, accused) is not None


TREES = st.recursive(
    st.binary(max_size=127).map(lambda raw: Cell(raw, len(raw) * 8)),
    lambda below: st.builds(
        lambda raw, refs: Cell(raw, len(raw) * 8, tuple(refs)), st.binary(max_size=127), st.lists(below, max_size=4)
    ),
    max_leaves=8,
)


@given(KINDS, TREES)
def test_anything_else_is_refused(kind: int, evidence: Cell) -> None:
    assert judge(kind, evidence, ACCUSED) is not None
