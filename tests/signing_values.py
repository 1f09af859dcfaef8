"""An operator, its gateway's key and what they sign, for tests to verify and to spoil."""

import time
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.delegation import Delegation, delegate
from cocoon.merkle import Tree, leaf_hash
from cocoon.signed_batch import BatchHead, Proof, SignedBatch


class Operator:
    """An operator with one gateway; `changes` alter the delegation."""

    def __init__(self, network: int, *, now_s: float | None = None, **changes: Any) -> None:
        self.global_id = network
        self.now_s = time.time() if now_s is None else now_s
        self.key = Ed25519PrivateKey.generate()
        self.public = self.key.public_key().public_bytes_raw()
        self.gateway = Ed25519PrivateKey.generate()
        self.members: dict[str, Any] = {
            "global_id": network, "gateway_key": self.gateway.public_key().public_bytes_raw(),
            "not_before": int(self.now_s) - 60, "not_after": int(self.now_s) + 3600,
        }  # fmt: skip
        self.carried = b""
        self.delegate(**changes)

    def delegate(self, **changes: Any) -> None:
        """Replace the delegation."""
        self.carried = delegate(self.key, Delegation(**self.members | changes))

    def signed(
        self, leaves: Sequence[bytes], *, key: Ed25519PrivateKey | None = None, **changes: Any
    ) -> tuple[SignedBatch, list[Proof]]:
        """A signed batch of these leaves; `changes` alter its head, `key` is another signer's."""
        tree = Tree([leaf_hash(leaf) for leaf in leaves])
        members: dict[str, Any] = {
            "global_id": self.global_id, "size": tree.size, "root": tree.root, "signed_ms": int(self.now_s * 1000),
        }  # fmt: skip
        head = BatchHead(**members | changes).encode()
        batch = SignedBatch(head=head, signature=(key or self.gateway).sign(head), delegation=self.carried)
        return batch, [Proof(index=at, path=tree.inclusion(at)) for at in range(tree.size)]
