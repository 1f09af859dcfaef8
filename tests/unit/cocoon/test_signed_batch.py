"""What a signed batch proves, and every way of forging one that is refused."""

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.delegation import DELEGATION_S_MAX, open_delegation, operator_of
from cocoon.errors import MalformedError
from cocoon.signed_batch import (
    CLOCKS_S_MAX,
    BatchHead,
    Countersignature,
    Proof,
    SignedBatch,
    open_batch,
    require_leaf,
)
from tests.signing_values import Operator

GLOBAL_ID, NOW = -217, 1_800_000_000.0
LEAVES = [
    b"CTK1" + bytes(121),
    Countersignature(global_id=GLOBAL_ID, head_sha256=b"h" * 32, charge_numerator=7).encode(),
]


def opened(operator: Operator, batch: SignedBatch, *, now_s: float = NOW, **changes: Any) -> BatchHead:
    expected: dict[str, Any] = {"operator_key": operator.public, "global_id": GLOBAL_ID, "now_s": now_s}
    return open_batch(batch, **expected | changes)


def test_every_leaf_of_a_batch_is_proved_to_who_knows_the_operators_key() -> None:
    operator = Operator(GLOBAL_ID, now_s=NOW)
    batch, proofs = operator.signed(LEAVES)
    head = opened(operator, batch)
    for leaf, proof in zip(LEAVES, proofs, strict=True):
        require_leaf(head, leaf, proof)
    assert head.size == 2


@pytest.mark.parametrize(
    ("delegation", "reason"),
    [
        ({"global_id": GLOBAL_ID + 1}, "another network"),
        ({"not_before": int(NOW) + 1}, "not valid now"),
        ({"not_after": int(NOW)}, "not valid now"),
        ({"not_before": int(NOW) - 5, "not_after": int(NOW) - 5 + DELEGATION_S_MAX + 1}, "out of range"),
        ({"not_before": int(NOW) + 5, "not_after": int(NOW) - 5}, "out of range"),
        ({"gateway_key": bytes(32)}, "proves nothing"),
        ({"gateway_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw()}, "does not verify"),
    ],
)  # fmt: skip
def test_a_delegation_that_does_not_hold_signs_nothing(delegation: dict[str, Any], reason: str) -> None:
    operator = Operator(GLOBAL_ID, now_s=NOW, **delegation)
    batch, _ = operator.signed(LEAVES)
    with pytest.raises(MalformedError, match=reason):
        opened(operator, batch)


def test_another_operators_delegation_does_not_count_however_it_is_dressed_up() -> None:
    ours, foreign = Operator(GLOBAL_ID, now_s=NOW), Operator(GLOBAL_ID, now_s=NOW)
    batch, _ = foreign.signed(LEAVES)
    with pytest.raises(MalformedError, match="another operator"):
        opened(ours, batch)
    # Our operator's name on the foreign operator's signature.
    dressed = msgspec.structs.replace(batch, delegation=ours.public + batch.delegation[32:])
    with pytest.raises(MalformedError, match="does not verify"):
        opened(ours, dressed)
    # Our gateway's delegation on the foreign gateway's signature.
    borrowed = msgspec.structs.replace(batch, delegation=ours.carried)
    with pytest.raises(MalformedError, match="does not verify"):
        opened(ours, borrowed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_id": GLOBAL_ID + 1}, "another network"),
        ({"signed_ms": int((NOW - CLOCKS_S_MAX - 1) * 1000)}, "not signed lately"),
        ({"signed_ms": int((NOW + CLOCKS_S_MAX + 1) * 1000)}, "not signed lately"),
    ],
)
def test_a_head_of_another_network_or_time_is_refused(changes: dict[str, Any], reason: str) -> None:
    operator = Operator(GLOBAL_ID, now_s=NOW)
    with pytest.raises(MalformedError, match=reason):
        opened(operator, operator.signed(LEAVES, **changes)[0])


def test_a_foreign_key_or_a_changed_byte_anywhere_is_refused() -> None:
    operator = Operator(GLOBAL_ID, now_s=NOW)
    batch, _ = operator.signed(LEAVES, key=Ed25519PrivateKey.generate())
    with pytest.raises(MalformedError, match="does not verify"):
        opened(operator, batch)
    batch, _ = operator.signed(LEAVES)
    for field in ("head", "signature", "delegation"):
        raw: bytes = getattr(batch, field)
        for at in range(len(raw)):
            spoilt = raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]
            with pytest.raises(MalformedError):
                opened(operator, msgspec.structs.replace(batch, **{field: spoilt}))
        with pytest.raises(MalformedError):
            opened(operator, msgspec.structs.replace(batch, **{field: raw[:-1]}))


def test_a_wrong_path_index_or_leaf_proves_nothing() -> None:
    operator = Operator(GLOBAL_ID, now_s=NOW)
    batch, proofs = operator.signed(LEAVES)
    head = opened(operator, batch)
    wrong = [
        (LEAVES[0], proofs[1]),
        (LEAVES[0], Proof(index=1, path=proofs[0].path)),
        (LEAVES[0], Proof(index=0, path=(bytes(32),))),
        (LEAVES[0], Proof(index=0, path=())),
        (LEAVES[0][:-1] + b"x", proofs[0]),
        # A batch of one whose leaf is the other batch's root.
        (head.root, Proof(index=0, path=())),
    ]
    for leaf, proof in wrong:
        with pytest.raises(MalformedError):
            require_leaf(head, leaf, proof)


@pytest.mark.parametrize("raw", [b"", bytes(152), b"x" * 151])
def test_what_is_no_delegation_batch_or_countersignature_is_refused(raw: bytes) -> None:
    for parse in (operator_of, BatchHead.decode, Countersignature.decode):
        with pytest.raises(MalformedError):
            parse(raw)
    with pytest.raises(MalformedError):
        open_delegation(raw, operator_key=bytes(32), global_id=GLOBAL_ID, now_s=NOW)
