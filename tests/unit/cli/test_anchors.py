"""The log's anchor: read from the payout contract, and compared with the log that is shown."""

import hashlib

import pytest

from billing.ton.chain import ChainUnavailableError
from cli.anchors import NoPayoutContractError, anchor_of
from cocoon.addresses import Address
from cocoon.checkpoints import Checkpoint
from cocoon.contracts.codes import code_of
from cocoon.contracts.payout import ACCOUNT_CODE, CODE, Anchor, PayoutConfig, PayoutData, payout_init
from cocoon.contracts.records import NO_HASH
from cocoon.merkle import Tree, leaf_hash
from cocoon_client.verification.log import Anchored, anchor
from tests.memory_chain import MemoryChain

ORIGIN = "log.example"
OPERATOR = Address(0, bytes([1]) * 32)
CONFIG = PayoutConfig(OPERATOR, OPERATOR, 500, 60, NO_HASH, code_of(ACCOUNT_CODE))
LEAVES = [leaf_hash(bytes([number])) for number in range(12)]


def tree(size: int) -> Tree:
    return Tree(LEAVES[:size])


def shown(size: int, root: bytes | None = None) -> Checkpoint:
    return Checkpoint(origin=ORIGIN, size=size, root=root or tree(size).root)


def anchored(size: int, proof: tuple[bytes, ...] | None = None, *, origin: str = ORIGIN, count: int = 3) -> Anchored:
    return Anchored(count, hashlib.sha256(origin.encode()).digest(), size, tree(size).root, 77, proof)


def contract(last: Anchor) -> tuple[MemoryChain, Address]:
    first = PayoutData.initial(CONFIG)
    data = PayoutData(0, 0, 0, first.roots, last, CONFIG)
    chain, address = MemoryChain(), payout_init(code_of(CODE), CONFIG).address
    chain.put(address, data.encode(), code=code_of(CODE))
    chain.mine()
    return chain, address


async def test_the_anchor_is_what_the_contract_has() -> None:
    chain, address = contract(Anchor(2, b"\x05" * 32, 9, b"\x06" * 32, b"\x07" * 32))

    found = await anchor_of(chain, address)

    assert (found.count, found.origin_hash, found.size, found.root) == (2, b"\x05" * 32, 9, b"\x06" * 32)
    assert found.block_seqno == (await chain.head()).seqno


async def test_another_contract_has_no_anchor() -> None:
    chain, address = contract(Anchor(2, b"\x05" * 32, 9, b"\x06" * 32, b"\x07" * 32))
    chain.put(Address(0, bytes(32)), PayoutData.initial(CONFIG).encode(), code=code_of(ACCOUNT_CODE))
    chain.mine()
    for other in (Address(0, bytes(32)), Address(0, bytes([9]) * 32)):
        with pytest.raises(NoPayoutContractError):
            await anchor_of(chain, other)
    chain.unavailable = True
    with pytest.raises(ChainUnavailableError):
        await anchor_of(chain, address)


@pytest.mark.parametrize(("old", "new"), [(4, 9), (9, 9), (1, 12)])
def test_a_log_that_is_one_with_the_chains_holds(old: int, new: int) -> None:
    proof = tree(new).consistency(old)
    for step in (anchor(shown(new), anchored(old, proof)), anchor(shown(old), anchored(new, proof))):
        assert (step.outcome, step.required) == ("held", True)
        assert "block 77" in step.sentence


def test_a_log_that_was_rewritten_since_its_anchor_is_found_out() -> None:
    rewritten = Tree([leaf_hash(b"another"), *LEAVES[1:9]])

    for last in (anchored(4, rewritten.consistency(4)), anchored(4, ()), anchored(9, ())):
        step = anchor(shown(9, rewritten.root), last)
        assert step.outcome == "failed", last.size


def test_the_anchor_of_another_log_is_none() -> None:
    step = anchor(shown(9), anchored(9, (), origin="other.example"))
    assert (step.outcome, "another log" in step.sentence) == ("failed", True)


def test_what_cannot_be_compared_is_not_shown_and_required_once_the_chain_was_asked() -> None:
    unasked = anchor(shown(9), None)
    steps = [anchor(None, anchored(9)), anchor(shown(9), anchored(4)), anchor(shown(9), anchored(9, count=0))]

    assert (unasked.outcome, unasked.required) == ("not shown", False)
    assert [(step.outcome, step.required) for step in steps] == [("not shown", True)] * 3
