"""An epoch in public: what is believed of its leaves."""

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.addresses import Address
from cocoon.contracts.epochs import COINS_MAX, EpochLeaves, Leaf
from cocoon.contracts.payout import Earnings, EpochTree, require_claim
from cocoon.errors import MalformedError

PAYOUT = "0:" + "a1" * 32


def wallet(name: str) -> Address:
    return Address(0, hashlib.sha256(name.encode()).digest())


def published(earned: dict[str, int], **changes: Any) -> EpochLeaves:
    tree = EpochTree([Earnings(wallet(name), nano) for name, nano in earned.items()])
    said = EpochLeaves(
        payout=PAYOUT, epoch=3, root=tree.root.hex(), total_nano=tree.total_nano,
        leaves=tuple(Leaf(str(wallet(name)), nano) for name, nano in earned.items()),
    )  # fmt: skip
    return msgspec.structs.replace(said, **changes)


@given(st.dictionaries(st.text(max_size=8), st.integers(0, 10**15), min_size=1, max_size=20))
def test_from_its_leaves_anybody_makes_every_claim_that_the_root_allows(earned: dict[str, int]) -> None:
    said = published(earned)
    read = EpochLeaves.decode(said.encode())
    assert read == said
    tree = read.tree()
    for name, nano in earned.items():
        claim = tree.claim(wallet(name), query_id=1)
        assert (claim.worker, claim.cumulative_nano) == (wallet(name), nano)
        require_claim(claim, bytes.fromhex(said.root))


def _with(place: int, **changes: Any) -> dict[str, Any]:
    leaves = list(published({"ann": 5, "ben": 7}).leaves)
    leaves[place] = msgspec.structs.replace(leaves[place], **changes)
    return {"leaves": tuple(leaves)}


@pytest.mark.parametrize(
    "changes",
    [
        _with(0, cumulative_nano=6), _with(0, wallet=str(wallet("eve"))), _with(1, wallet=str(wallet("ann"))),
        _with(0, cumulative_nano=-1), _with(0, cumulative_nano=COINS_MAX + 1), _with(0, wallet="ann"),
        _with(0, wallet=str(wallet("ann")).upper()),
        {"leaves": ()}, {"root": "00" * 32}, {"root": ""}, {"total_nano": 13}, {"epoch": 0}, {"epoch": 2**32},
        {"payout": "a1" * 32},
    ],
)  # fmt: skip
def test_leaves_that_are_not_those_of_the_root_are_not_believed(changes: dict[str, Any]) -> None:
    published({"ann": 5, "ben": 7}).tree()
    with pytest.raises(MalformedError):
        published({"ann": 5, "ben": 7}, **changes).tree()


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"object": "payout.epoch"}'])
def test_what_is_no_epoch_is_named_as_such(raw: bytes) -> None:
    with pytest.raises(MalformedError, match="not the leaves of an epoch"):
        EpochLeaves.decode(raw)
