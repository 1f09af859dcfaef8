"""Evidence against a worker's stake, good and bad, as `tests/vectors/ton/slash.json` has it.

The contract's tests judge every case (`contracts/tests/stake.test.mjs`), the unit tests compare the file with
what this makes. `python -m tests.slash_evidence` prints the file anew. All keys are derived from their names, for
tests, never for anything else.
"""

import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.cells import Builder, Cell, write_boc
from cocoon.contracts.stake import Evidence, EvidenceKind, delegate_receipt_key, signed_batch_cell, signed_head
from cocoon.delegation import DELEGATION_S_MAX, Delegation, delegate
from cocoon.merkle import Tree, leaf_hash, node_hash
from cocoon.receipt import ReceiptHead
from cocoon.signed_batch import BatchHead, Proof, SignedBatch
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage

NETWORK = -3
OTHER_NETWORK = -239
DAY_S = 86_400
SIGNED_S = 1_795_000_000
NOT_BEFORE, NOT_AFTER = SIGNED_S - DAY_S, SIGNED_S + DAY_S
RECEIPT_KEY_NOT_AFTER = SIGNED_S + 6 * 3600
IDENTITY = b"\x01" + bytes(31)
WRONG_SIGNATURE, WEAK_KEY, BAD_PROOF, BAD_EVIDENCE = 104, 108, 110, 111
EQUIVOCATION, OVER_USE = EvidenceKind.EQUIVOCATION, EvidenceKind.OVER_USE


def digest(name: str) -> bytes:
    return hashlib.sha256(f"slash test: {name}".encode()).digest()


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest(name))


def public(name: str) -> bytes:
    return key(name).public_key().public_bytes_raw()


STAKE = digest("stake")
"""The account at which the tests put the stake's contract; `digest("another stake")` is not it."""


class Case(msgspec.Struct, frozen=True):
    """Evidence and the contract's exit code: 0 where it is slashed."""

    name: str
    kind: int
    exit: int
    evidence: Cell


def a_head(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "global_id": NETWORK, "stake": STAKE, "seq": 41, "ticket_sha256": hashlib.sha256(a_ticket()).digest(),
        "body_sha256": digest("body"), "usage": TokenUsage(prompt=1_000, cached=10, completion=500),
    }  # fmt: skip
    return ReceiptHead(**fields | changes).encode()


def a_ticket(**changes: Any) -> bytes:
    job = uuid.UUID(bytes=digest("job")[:16])
    fields: dict[str, Any] = {
        "global_id": NETWORK, "stake": STAKE, "job_id": job, "attempt": 1, "lease": job, "price_version": 3,
        "max_prompt": 1_000, "max_completion": 500, "not_after": SIGNED_S + 60, "request_digest": digest("request"),
    }  # fmt: skip
    return Ticket(**fields | changes).encode()


def signed(head: bytes, signer: str = "receipt") -> tuple[bytes, bytes]:
    return head, key(signer).sign(head)


def named(signer: str = "staked", *, receipt_key: bytes | None = None, **changes: Any) -> Evidence:
    """The staked key names the receipt key; `changes` alter what it signed, not what the evidence says."""
    named_key = public("receipt") if receipt_key is None else receipt_key
    statement: dict[str, Any] = {
        "global_id": NETWORK, "stake": STAKE, "receipt_key": named_key, "not_after": RECEIPT_KEY_NOT_AFTER,
    }  # fmt: skip
    return Evidence(delegate_receipt_key(key(signer), **statement | changes), RECEIPT_KEY_NOT_AFTER, named_key)


def signed_again(head: bytes, signer: str = "receipt") -> tuple[bytes, bytes]:
    """Another valid signature over the same bytes: Ed25519 with another nonce (RFC 8032, 5.1.6, `r` chosen freely)."""
    hashed = hashlib.sha512(digest(signer)).digest()
    secret = int.from_bytes(hashed[:32], "little") & ((1 << 254) - 8) | 1 << 254
    nonce = int.from_bytes(digest("nonce"), "little") % _ORDER
    commitment = _encoded(_multiplied(nonce, _BASE))
    challenge = int.from_bytes(hashlib.sha512(commitment + public(signer) + head).digest(), "little") % _ORDER
    return head, commitment + ((nonce + challenge * secret) % _ORDER).to_bytes(32, "little")


_FIELD = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _FIELD) % _FIELD
_BASE = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)


def _added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    k = _D * a[0] * b[0] * a[1] * b[1]
    return (
        (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, -1, _FIELD) % _FIELD,
        (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, _FIELD) % _FIELD,
    )


def _multiplied(scalar: int, point: tuple[int, int]) -> tuple[int, int]:
    result = (0, 1)
    for bit in f"{scalar:b}":
        result = _added(result, result)
        result = _added(result, point) if bit == "1" else result
    return result


def _encoded(point: tuple[int, int]) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def equivocations() -> Iterator[Case]:
    """Of two heads with one number."""
    first, second = a_head(), a_head(body_sha256=digest("another body"))

    def case(name: str, exit_code: int, one: tuple[bytes, bytes], other: tuple[bytes, bytes], by: Evidence) -> Case:
        return Case(name, EQUIVOCATION, exit_code, by.equivocation(one, other))

    def both(name: str, exit_code: int, signer: str = "receipt", **changes: Any) -> Case:
        other = a_head(**changes | {"body_sha256": digest("another body")})
        return case(name, exit_code, signed(a_head(**changes), signer), signed(other, signer), named())

    yield case("two heads of one number", 0, signed(first), signed(second), named())
    yield case("two heads that differ in what was used", 0, signed(first), signed(a_head(usage=TokenUsage())), named())
    yield case("the same head twice", BAD_EVIDENCE, signed(first), signed(first), named())
    yield case("the same head with two signatures", BAD_EVIDENCE, signed(first), signed_again(first), named())
    yield case("heads of two numbers", BAD_EVIDENCE, signed(first), signed(a_head(seq=42)), named())
    elsewhere = signed(a_head(stake=digest("another stake")))
    yield case("a head of another stake", BAD_EVIDENCE, signed(first), elsewhere, named())
    yield both("heads of another stake", BAD_EVIDENCE, stake=digest("another stake"))
    yield both("heads of another network", BAD_EVIDENCE, global_id=OTHER_NETWORK)
    yield both("heads signed by a foreign key", WRONG_SIGNATURE, "foreign")
    yield case("one head signed by a foreign key", WRONG_SIGNATURE, signed(first), signed(second, "foreign"), named())
    yield case("a signature of the other head", WRONG_SIGNATURE, signed(first), (second, signed(first)[1]), named())
    for name, by in (
        ("a receipt key that a foreign key has named", named("foreign")),
        ("a receipt key that names itself", named("receipt")),
        ("a receipt key named for another stake", named(stake=digest("another stake"))),
        ("a receipt key named for another network", named(global_id=OTHER_NETWORK)),
        ("a receipt key named until another time", named(not_after=RECEIPT_KEY_NOT_AFTER + 1)),
        ("another receipt key than was named", named(receipt_key=public("foreign"))),
    ):
        yield case(name, WRONG_SIGNATURE, signed(first), signed(second), by)
    weak = named(receipt_key=IDENTITY)
    yield case("a receipt key for which anybody signs", WEAK_KEY, (first, IDENTITY + bytes(32)), signed(second), weak)
    yield from _misshapen_equivocations(signed(first), signed(second))


def _misshapen_equivocations(first: tuple[bytes, bytes], second: tuple[bytes, bytes]) -> Iterator[Case]:
    whole = named().equivocation(first, second)
    alone = Builder().append(named().encode()).ref(signed_head(*first)).end()
    short = Builder().append(named().encode()).ref(signed_head(*first)).ref(_cut(signed_head(*second))).end()
    longer = Builder().append(signed_head(*second)).uint(0, 1).end()
    long = Builder().append(named().encode()).ref(signed_head(*first)).ref(longer).end()
    unsigned = Builder().append(named().encode()).ref(signed_head(*first)).ref(Builder().raw(second[0]).end()).end()
    yield Case("one head alone", EQUIVOCATION, BAD_EVIDENCE, alone)
    yield Case("a head that is cut short", EQUIVOCATION, BAD_EVIDENCE, short)
    yield Case("a head that goes on", EQUIVOCATION, BAD_EVIDENCE, long)
    yield Case("a head without a signature", EQUIVOCATION, BAD_EVIDENCE, unsigned)
    yield Case("more than two heads need", EQUIVOCATION, BAD_EVIDENCE, Builder().append(whole).uint(0, 1).end())
    yield Case("nothing", EQUIVOCATION, BAD_EVIDENCE, Builder().end())
    yield Case("two heads under another kind", OVER_USE, BAD_EVIDENCE, whole)
    yield Case("an unknown kind", 3, BAD_EVIDENCE, whole)
    yield Case("no kind", 0, BAD_EVIDENCE, whole)


def _cut(head: Cell) -> Cell:
    return Builder().raw(head.data[:-1]).ref(head.refs[0]).end()


class Issued:
    """Three tickets in a batch that a gateway signed, the second one ours; `changes` spoil it."""

    def __init__(self, ticket: bytes, *, operator: str = "operator", gateway: str = "gateway", **changes: Any) -> None:
        self.leaves = [a_ticket(attempt=2), ticket, a_ticket(attempt=3)]
        self.tree = Tree([leaf_hash(leaf) for leaf in self.leaves])
        delegation: dict[str, Any] = {
            "global_id": NETWORK, "gateway_key": public("gateway"), "not_before": NOT_BEFORE, "not_after": NOT_AFTER,
        }  # fmt: skip
        head: dict[str, Any] = {
            "global_id": NETWORK, "size": 3, "root": self.tree.root, "signed_ms": SIGNED_S * 1000,
        }  # fmt: skip
        delegation |= {name: changes.pop(name) for name in tuple(changes) if name in delegation and name != "global_id"}
        delegation["global_id"] = changes.pop("delegated_network", NETWORK)
        raw = BatchHead(**head | changes).encode()
        self.batch = SignedBatch(
            head=raw, signature=key(gateway).sign(raw), delegation=delegate(key(operator), Delegation(**delegation))
        )

    def evidence(
        self, head: tuple[bytes, bytes], ticket: bytes, *, at: int = 1, size: int = 3, by: Evidence | None = None
    ) -> Cell:
        return (by or named()).over_use(head, ticket, self.batch, Proof(at, self.tree.inclusion(at)), size=size)


def over_uses() -> Iterator[Case]:
    """Of a head above its ticket."""
    above = signed(a_head(usage=TokenUsage(prompt=1_001, completion=500)))
    issued = Issued(a_ticket())

    def case(
        name: str, exit_code: int, head: tuple[bytes, bytes] = above, ticket: bytes | None = None, **options: Any
    ) -> Case:
        raw = a_ticket() if ticket is None else ticket
        spoiled = {option: options.pop(option) for option in ("at", "size", "by") if option in options}
        batch = options.pop("issued", None) or Issued(raw, **options)
        return Case(name, OVER_USE, exit_code, batch.evidence(head, raw, **spoiled))

    def about(name: str, ticket: dict[str, Any], **head: Any) -> Case:
        """Head and ticket that belong together and speak of something else."""
        raw = a_ticket(**ticket)
        usage = TokenUsage(prompt=1_001, completion=500)
        fields = {"usage": usage, "ticket_sha256": hashlib.sha256(raw).digest()} | head
        return case(name, BAD_EVIDENCE, signed(a_head(**fields)), raw)

    def used(prompt: int, completion: int) -> tuple[bytes, bytes]:
        return signed(a_head(usage=TokenUsage(prompt=prompt, completion=completion)))

    yield case("one prompt token above the ticket", 0)
    yield case("one completion token above the ticket", 0, used(1, 501))
    yield case("all that a head can say", 0, used(2**32 - 1, 2**32 - 1))
    yield case("a batch signed in the delegation's first millisecond", 0, signed_ms=NOT_BEFORE * 1000)
    yield case("a batch signed in the delegation's last millisecond", 0, signed_ms=NOT_AFTER * 1000 - 1)
    yield case("usage at the maxima", BAD_EVIDENCE, used(1_000, 500))
    yield case("no usage", BAD_EVIDENCE, used(0, 0))
    yield case("a ticket that the head does not name", BAD_EVIDENCE, ticket=a_ticket(max_prompt=1))
    yield about("a ticket of another stake", {"stake": digest("another stake")})
    yield about("a ticket of another network", {"global_id": OTHER_NETWORK})
    yield about("a head above its ticket of another stake", {}, stake=digest("another stake"))
    yield about("a head above its ticket of another network", {}, global_id=OTHER_NETWORK)
    yield case("a ticket that is not in the batch", BAD_PROOF, issued=Issued(a_ticket(attempt=9)))
    yield case("another place in the batch", BAD_PROOF, at=0)
    yield case("another size than the batch has", BAD_PROOF, size=4)
    yield case("a batch signed by another key", WRONG_SIGNATURE, gateway="foreign")
    yield case("a batch of another network", BAD_EVIDENCE, global_id=OTHER_NETWORK)
    yield case("a batch of another root", BAD_PROOF, root=digest("root"))
    yield case("a gateway that a foreign key has named", WRONG_SIGNATURE, operator="foreign")
    yield case("a gateway named for another network", BAD_EVIDENCE, delegated_network=OTHER_NETWORK)
    yield case("a batch signed when the delegation had ended", BAD_EVIDENCE, signed_ms=NOT_AFTER * 1000)
    yield case("a batch signed before the delegation began", BAD_EVIDENCE, signed_ms=NOT_BEFORE * 1000 - 1)
    yield case("a delegation that is as long as it may be", 0, not_after=NOT_BEFORE + DELEGATION_S_MAX)
    yield case("a delegation that is too long", BAD_EVIDENCE, not_after=NOT_BEFORE + DELEGATION_S_MAX + 1)
    yield case("a delegation that ends before it begins", BAD_EVIDENCE, not_after=NOT_BEFORE - 1)
    yield case("a gateway key for which anybody signs", WEAK_KEY, gateway_key=IDENTITY)
    yield case("a head above its ticket signed by a foreign key", WRONG_SIGNATURE, signed(above[0], "foreign"))
    yield case("a ticket used by a receipt key that a foreign key has named", WRONG_SIGNATURE, by=named("foreign"))
    yield from _misshapen_over_uses(above, issued)
    yield _longest_path(above)


def _misshapen_over_uses(head: tuple[bytes, bytes], issued: Issued) -> Iterator[Case]:
    proof = Proof(1, issued.tree.inclusion(1))
    batch = signed_batch_cell(issued.batch, proof, size=3)
    ticket = Builder().raw(a_ticket()).end()

    def of(ticket_cell: Cell, batch_cell: Cell) -> Cell:
        return Builder().append(named().encode()).ref(signed_head(*head)).ref(ticket_cell).ref(batch_cell).end()

    moved = Builder().raw(issued.batch.head).uint(0, 32).ref(batch.refs[0]).ref(batch.refs[1]).ref(batch.refs[2]).end()
    pathless = Builder().raw(issued.batch.head).uint(1, 32).ref(batch.refs[0]).ref(batch.refs[1]).end()
    alone = Builder().append(named().encode()).ref(signed_head(*head)).ref(ticket).end()
    longer = of(Builder().raw(a_ticket()).uint(0, 8).end(), batch)
    yield Case("another index beside the batch", OVER_USE, BAD_PROOF, of(ticket, moved))
    yield Case("a batch without a path", OVER_USE, BAD_EVIDENCE, of(ticket, pathless))
    yield Case("a ticket without a batch", OVER_USE, BAD_EVIDENCE, alone)
    yield Case("a ticket that is too long", OVER_USE, BAD_EVIDENCE, longer)
    more = Builder().append(of(ticket, batch)).ref(ticket).end()
    yield Case("more than a ticket and its batch", OVER_USE, BAD_EVIDENCE, more)
    yield Case("a head above its ticket under another kind", EQUIVOCATION, BAD_EVIDENCE, of(ticket, batch))
    yield Case("a head above its ticket under an unknown kind", 3, BAD_EVIDENCE, of(ticket, batch))


def _longest_path(head: tuple[bytes, bytes]) -> Case:
    """32 hashes, all but the last on the left: what costs the contract most."""
    size, index = 2**32 - 1, 2**31 - 1
    path = tuple(digest(f"hash {level}") for level in range(32))
    root = leaf_hash(a_ticket())
    for sibling in path[:-1]:
        root = node_hash(sibling, root)
    batch = Issued(a_ticket(), size=size, root=node_hash(root, path[-1])).batch
    evidence = named().over_use(head, a_ticket(), batch, Proof(index, path), size=size)
    return Case("the longest path that there is", OVER_USE, 0, evidence)


def cases() -> list[Case]:
    makers: tuple[Callable[[], Iterator[Case]], ...] = (equivocations, over_uses)
    return [case for make in makers for case in make()]


def document() -> dict[str, Any]:
    """What the file says."""
    names = ("staked", "operator", "gateway", "receipt", "foreign")
    return {
        "source": "PROTOCOL 2 and 4; python -m tests.slash_evidence",
        "warning": "keys of tests, derived from their names: never use them",
        "global_id": NETWORK,
        "stake_hex": STAKE.hex(),
        "keys": {name: {"secret_hex": digest(name).hex(), "public_hex": public(name).hex()} for name in names},
        "cases": [
            {
                "name": one.name,
                "kind": int(one.kind),
                "exit": one.exit,
                "evidence_boc_hex": write_boc(one.evidence).hex(),
            }
            for one in cases()
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(document(), indent=1) + "\n")
