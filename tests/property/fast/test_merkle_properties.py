"""The tree against RFC 6962's own recursive definitions, written down here once more and independently."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.errors import MalformedError
from cocoon.merkle import (
    EMPTY_ROOT,
    PROOF_HASHES_MAX,
    Tree,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

LEAVES = st.lists(st.binary(max_size=130), max_size=70)


def split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def reference_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, MTH."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + reference_root(leaves[:k]) + reference_root(leaves[k:])).digest()


def reference_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1, PATH."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*reference_path(index, leaves[:k]), reference_root(leaves[k:])]
    return [*reference_path(index - k, leaves[k:]), reference_root(leaves[:k])]


def reference_proof(old: int, leaves: list[bytes], *, whole: bool = True) -> list[bytes]:
    """RFC 6962 §2.1.2, SUBPROOF."""
    if old == len(leaves):
        return [] if whole else [reference_root(leaves)]
    k = split(len(leaves))
    if old <= k:
        return [*reference_proof(old, leaves[:k], whole=whole), reference_root(leaves[k:])]
    return [*reference_proof(old - k, leaves[k:], whole=False), reference_root(leaves[:k])]


def tree_of(leaves: list[bytes]) -> Tree:
    return Tree([leaf_hash(leaf) for leaf in leaves])


def test_the_published_roots_are_ours() -> None:
    """The first leaves of the reference log's own test data (RFC 6962's open implementation)."""
    leaves = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
    leaves.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    assert {size: root_of(leaves[:size]).hex() for size in roots} == roots


@given(LEAVES)
def test_the_root_is_the_recursive_one(leaves: list[bytes]) -> None:
    assert tree_of(leaves).root == reference_root(leaves)


@given(LEAVES.filter(bool), st.data())
def test_every_leaf_has_the_path_of_the_definition_and_it_verifies(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    tree = tree_of(leaves)
    path = tree.inclusion(index)
    assert list(path) == reference_path(index, leaves)
    verify_inclusion(leaves[index], index, len(leaves), path, tree.root)


@given(LEAVES, st.data())
def test_every_older_tree_has_the_proof_of_the_definition_and_it_verifies(
    leaves: list[bytes], data: st.DataObject
) -> None:
    old = data.draw(st.integers(0, len(leaves)))
    tree = tree_of(leaves)
    path = tree.consistency(old)
    assert list(path) == (reference_proof(old, leaves) if old else [])
    verify_consistency(old, len(leaves), path, reference_root(leaves[:old]), tree.root)


@given(LEAVES.filter(bool), st.data())
def test_a_path_proves_no_other_leaf_place_size_or_root(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    tree = tree_of(leaves)
    path = list(tree.inclusion(index))
    leaf, size, root = leaves[index], len(leaves), tree.root
    spoilt: list[tuple[bytes, int, int, list[bytes], bytes]] = [
        (leaf + b"x", index, size, path, root),
        (leaf, index, size, path, bytes(32)),
        (leaf, index, size, [*path, bytes(32)], root),
        (leaf, size, size, path, root),
        (leaf, -1, size, path, root),
    ]
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        spoilt += [
            (leaf, index, size, [*path[:at], hashlib.sha256(path[at]).digest(), *path[at + 1 :]], root),
            (leaf, index, size, path[:at] + path[at + 1 :], root),
            (leaf, index, size, [path[at][:31], *path], root),
        ]
    other = data.draw(st.integers(0, len(leaves) - 1))
    if leaves[other] != leaf:
        spoilt.append((leaf, other, size, path, root))
    for case in spoilt:
        with pytest.raises(MalformedError):
            verify_inclusion(*case)


@given(LEAVES.filter(lambda leaves: len(leaves) > 1), st.data())
def test_a_tree_with_another_past_is_not_consistent(leaves: list[bytes], data: st.DataObject) -> None:
    old = data.draw(st.integers(1, len(leaves) - 1))
    changed = data.draw(st.integers(0, old - 1))
    tree = tree_of(leaves)
    before = [*leaves[:changed], leaves[changed] + b"x", *leaves[changed + 1 : old]]
    path = list(tree.consistency(old))
    for case in (
        (old, path, reference_root(before)),
        (old, [*path, bytes(32)], reference_root(leaves[:old])),
        (old, path[:-1], reference_root(leaves[:old])),
        (old, path, bytes(32)),
        (0, path, EMPTY_ROOT),
    ):
        with pytest.raises(MalformedError):
            verify_consistency(case[0], len(leaves), case[1], case[2], tree.root)
    with pytest.raises(MalformedError):
        verify_consistency(len(leaves), old, path, tree.root, reference_root(leaves[:old]))


def test_a_node_cannot_pass_for_a_leaf() -> None:
    left, right = b"left", b"right"
    two = root_of([left, right])
    forged = leaf_hash(left) + leaf_hash(right)
    with pytest.raises(MalformedError):
        verify_inclusion(forged, 0, 1, (), two)


def test_a_path_longer_than_any_tree_is_not_hashed() -> None:
    with pytest.raises(MalformedError, match="not a path"):
        verify_inclusion(b"", 0, 2**70, [bytes(32)] * (PROOF_HASHES_MAX + 1), bytes(32))
