"""Evidence is the same in Python and on the chain: the contract judges what this code makes, and both agree."""

import hashlib
import json
from pathlib import Path

import pytest

from cocoon import receipt
from cocoon.cells import Cell, Slice, read_boc
from cocoon.contracts.payout import ClaimProof
from cocoon.contracts.stake import EvidenceKind, delegation_statement
from cocoon.delegation import verify_signature
from cocoon.errors import MalformedError
from cocoon.receipt import ReceiptHead
from cocoon.signed_batch import BatchHead, Proof, SignedBatch, open_batch, require_leaf
from cocoon.ticket import Ticket
from tests import slash_evidence
from tests.slash_evidence import NETWORK, STAKE, Case, public

FILE = json.loads((Path(__file__).parents[2] / "vectors/ton/slash.json").read_text())
CASES = slash_evidence.cases()


def test_the_file_is_what_this_code_makes() -> None:
    assert slash_evidence.document() == FILE


def test_names_are_not_used_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_our_own_checks_agree_with_the_contract(case: Case) -> None:
    evidence = read_boc(
        bytes.fromhex(next(one["evidence_boc_hex"] for one in FILE["cases"] if one["name"] == case.name))
    )

    assert holds(case.kind, evidence) == (case.exit == 0)


def test_a_second_signature_of_the_same_head_verifies() -> None:
    head = slash_evidence.a_head()
    _, first = slash_evidence.signed(head)
    _, second = slash_evidence.signed_again(head)

    assert first != second
    receipt.verify(public("receipt"), head, second)


def holds(kind: int, evidence: Cell) -> bool:
    """What the agents' and gateways' own code thinks of evidence, with none of the contract's."""
    try:
        if kind == EvidenceKind.EQUIVOCATION:
            require_equivocation(evidence)
        elif kind == EvidenceKind.OVER_USE:
            require_over_use(evidence)
        else:
            return False
    except MalformedError:
        return False
    return True


def require(fact: bool) -> None:
    if not fact:
        raise MalformedError("the evidence shows nothing")


def receipt_key_of(source: Slice) -> bytes:
    signature, not_after, receipt_key = source.raw(64), source.uint(64), source.raw(32)
    statement = delegation_statement(global_id=NETWORK, stake=STAKE, receipt_key=receipt_key, not_after=not_after)
    verify_signature(public("staked"), statement, signature)
    return receipt_key


def head_of(cell: Cell, receipt_key: bytes) -> tuple[bytes, ReceiptHead]:
    source = Slice(cell)
    raw, signature = source.raw(124), Slice(source.ref()).raw(64)
    receipt.verify(receipt_key, raw, signature)
    head = ReceiptHead.decode(raw)
    require((head.global_id, head.stake) == (NETWORK, STAKE))
    return raw, head


def require_equivocation(evidence: Cell) -> None:
    source = Slice(evidence)
    receipt_key = receipt_key_of(source)
    (first, one), (second, other) = head_of(source.ref(), receipt_key), head_of(source.ref(), receipt_key)
    source.end()
    require(one.seq == other.seq and first != second)


def require_over_use(evidence: Cell) -> None:
    source = Slice(evidence)
    _, head = head_of_named(source)
    ticket_cell = Slice(source.ref())
    raw = ticket_cell.raw(125)
    ticket_cell.end()
    ticket = Ticket.decode(raw)
    require(hashlib.sha256(raw).digest() == head.ticket_sha256)
    require((ticket.global_id, ticket.stake) == (NETWORK, STAKE))
    require_issued(raw, source.ref())
    source.end()
    require(head.usage.prompt > ticket.max_prompt or head.usage.completion > ticket.max_completion)


def head_of_named(source: Slice) -> tuple[bytes, ReceiptHead]:
    receipt_key = receipt_key_of(source)
    return head_of(source.ref(), receipt_key)


def require_issued(ticket: bytes, cell: Cell) -> None:
    source = Slice(cell)
    raw, index = source.raw(52), source.uint(32)
    signature, named, proof = Slice(source.ref()).raw(64), Slice(source.ref()), ClaimProof.decode(source.ref())
    carried = public("operator") + named.raw(56) + Slice(named.ref()).raw(64)
    batch = SignedBatch(head=raw, signature=signature, delegation=carried)
    signed_s = BatchHead.decode(raw).signed_ms / 1000
    head = open_batch(batch, operator_key=public("operator"), global_id=NETWORK, now_s=signed_s)
    require((proof.index, proof.size) == (index, head.size))
    require_leaf(head, ticket, Proof(index, proof.path))
