"""Merkle trees as in RFC 6962 and RFC 9162: roots, inclusion and consistency proofs, and their verification.

Leaves are hashed with a 0x00 before them and nodes with a 0x01, so that neither can pass for the other. Pure; the
batches of tickets use it, and so will the transparency log.
"""

import hashlib
import hmac
from collections.abc import Sequence

from cocoon.errors import MalformedError

HASH_BYTES = 32
PROOF_HASHES_MAX = 64
"""No proof of a tree with 64-bit sizes needs more; a longer one is not looked at."""
EMPTY_ROOT = hashlib.sha256().digest()
"""The root of the tree without leaves."""


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf's exact bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of the node above two hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree over given leaf hashes, with every node kept: proofs need no hashing any more.

    A level pairs the hashes of the one below; one that has no partner goes up as it is. That is RFC 6962's split at
    the largest power of two, read from below. The node `i` of level `l` covers the leaves from `i * 2^l` on.
    """

    def __init__(self, leaf_hashes: Sequence[bytes]) -> None:
        self._levels = [list(leaf_hashes)]
        while len(below := self._levels[-1]) > 1:
            level = [node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
            if len(below) % 2:
                level.append(below[-1])
            self._levels.append(level)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The tree's hash."""
        return self._levels[-1][0] if self.size else EMPTY_ROOT

    def inclusion(self, index: int) -> tuple[bytes, ...]:
        """The proof that leaf `index` is in this tree (RFC 9162 §2.1.3.1), lowest hash first."""
        assert 0 <= index < self.size, "a leaf of this tree"
        path: list[bytes] = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index >>= 1
        return tuple(path)

    def consistency(self, old_size: int) -> tuple[bytes, ...]:
        """The proof that the tree of the first `old_size` leaves grew into this one (RFC 9162 §2.1.4.1)."""
        assert 0 <= old_size <= self.size, "a tree grows"
        if old_size in (0, self.size):
            return ()
        level, index = 0, old_size - 1
        # The largest complete subtree at the old tree's right edge: its hash begins the proof, unless it is all of it.
        while index % 2:
            level, index = level + 1, index >> 1
        path = [self._levels[level][index]] if index else []
        for nodes in self._levels[level:-1]:
            sibling = index ^ 1
            if sibling < len(nodes):
                path.append(nodes[sibling])
            index >>= 1
        return tuple(path)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves."""
    return Tree([leaf_hash(leaf) for leaf in leaves]).root


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` is number `index` of the `size` leaves under `root` (RFC 9162 §2.1.3.2).

    Raises:
        MalformedError: it is not, as far as this path shows.
    """
    _require_hashes(path)
    if not 0 <= index < size:
        raise MalformedError("the leaf lies outside of the tree")
    node, last, hashed = index, size - 1, leaf_hash(leaf)
    for sibling in path:
        if last == 0:
            raise MalformedError("the inclusion path is too long")
        if node % 2 or node == last:
            hashed = node_hash(sibling, hashed)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            hashed = node_hash(hashed, sibling)
        node, last = node >> 1, last >> 1
    if last or not hmac.compare_digest(hashed, root):
        raise MalformedError("the inclusion path does not lead to the root")


def verify_consistency(old_size: int, size: int, path: Sequence[bytes], old_root: bytes, root: bytes) -> None:
    """Check that the tree under `root` begins with the leaves of the one under `old_root` (RFC 9162 §2.1.4.2).

    Raises:
        MalformedError: it does not, as far as this path shows.
    """
    _require_hashes(path)
    if not 0 <= old_size <= size:
        raise MalformedError("a tree does not shrink")
    if old_size in (0, size):
        expected = EMPTY_ROOT if old_size == 0 else root
        if path or not hmac.compare_digest(old_root, expected):
            raise MalformedError("the consistency path does not join the roots")
        return
    old, new = _rebuilt(old_size, size, path, old_root)
    if not (hmac.compare_digest(old, old_root) and hmac.compare_digest(new, root)):
        raise MalformedError("the consistency path does not join the roots")


def _rebuilt(old_size: int, size: int, path: Sequence[bytes], old_root: bytes) -> tuple[bytes, bytes]:
    """The roots that a path leads to; an old tree that is a complete one stands in the path for itself."""
    hashes = list(path)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        raise MalformedError("the consistency path is too short")
    node, last = old_size - 1, size - 1
    while node % 2:
        node, last = node >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise MalformedError("the consistency path is too long")
        if node % 2 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise MalformedError("the consistency path is too short")
    return old, new


def _require_hashes(path: Sequence[bytes]) -> None:
    if len(path) > PROOF_HASHES_MAX or any(len(one) != HASH_BYTES for one in path):
        raise MalformedError("not a path of hashes")
