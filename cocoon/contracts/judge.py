"""Judges evidence against a stake as its contract does, so that nobody pays for a message that would be refused.

`assertEquivocation` and `assertOverUse` of `contracts/src/worker_stake.tolk`, by the code that agents and gateways sign
and verify with; the reasons are the contract's exit codes. Two readings are narrower than the chain's: a path has three
hashes in each cell, as `ClaimProof` writes it, and a staked or operator key for which anybody can sign proves nothing
(`Bond` refuses both, before there is anything to slash).
"""

import contextlib
import enum
import hashlib
from collections.abc import Generator

import msgspec

from cocoon.cells import Cell, Slice
from cocoon.contracts.payout import ClaimProof
from cocoon.contracts.stake import EvidenceKind, StakeConfig, delegation_statement
from cocoon.delegation import DELEGATION_BYTES, KEY_BYTES, SIGNATURE_BYTES, open_delegation, verify_signature
from cocoon.errors import MalformedError
from cocoon.merkle import HASH_BYTES
from cocoon.receipt import HEAD_BYTES, HEAD_MAGIC, is_strong_key
from cocoon.signed_batch import BATCH_HEAD_BYTES, BatchHead, Proof, require_leaf
from cocoon.ticket import TICKET_BYTES, Ticket

_BATCH_REFS = 3
_GATEWAY_BYTES = DELEGATION_BYTES - KEY_BYTES - SIGNATURE_BYTES
_GATEWAY_KEY = slice(8, 8 + KEY_BYTES)


class Refusal(enum.IntEnum):
    """Why evidence shows nothing: the contract's exit code."""

    WRONG_SIGNATURE = 104
    WEAK_KEY = 108
    BAD_PROOF = 110
    BAD_EVIDENCE = 111

    @property
    def reason(self) -> str:
        """The same in words."""
        return _REASONS[self]


_REASONS = {
    Refusal.WRONG_SIGNATURE: "something is not signed by the key that should have signed it",
    Refusal.WEAK_KEY: "anybody can sign for one of the keys",
    Refusal.BAD_PROOF: "the ticket is not in the batch that was signed",
    Refusal.BAD_EVIDENCE: "it does not show that the worker of this stake signed what it may not",
}


class Accused(msgspec.Struct, frozen=True, kw_only=True):
    """A stake as its contract knows itself: its network, its account (32 bytes), and two keys of its configuration."""

    global_id: int
    stake: bytes
    staked_key: bytes
    operator_key: bytes

    @classmethod
    def of(cls, stake: bytes, config: StakeConfig, *, global_id: int) -> "Accused":
        """The stake with this account and configuration."""
        return cls(global_id=global_id, stake=stake, staked_key=config.staked_key, operator_key=config.operator_key)


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class _Head(msgspec.Struct, frozen=True):
    """What a verdict needs of a head. Counts that no honest head has (more cached than asked) count like others."""

    signed: bytes
    seq: int
    ticket_sha256: bytes
    prompt: int
    completion: int


def judge(kind: int, evidence: Cell, accused: Accused) -> Refusal | None:
    """Why the contract would refuse this evidence; None where it would slash."""
    try:
        with _else(Refusal.BAD_EVIDENCE):
            match kind:
                case EvidenceKind.EQUIVOCATION:
                    _require_equivocation(Slice(evidence), accused)
                case EvidenceKind.OVER_USE:
                    _require_over_use(Slice(evidence), accused)
                case _:
                    return Refusal.BAD_EVIDENCE
    except _RefusedError as error:
        return error.refusal
    return None


def _require_equivocation(evidence: Slice, accused: Accused) -> None:
    receipt_key = _receipt_key(evidence, accused)
    one, other = _head(evidence, receipt_key, accused), _head(evidence, receipt_key, accused)
    _require(one.seq == other.seq and one.signed != other.signed)


def _require_over_use(evidence: Slice, accused: Accused) -> None:
    head = _head(evidence, _receipt_key(evidence, accused), accused)
    source, batch = Slice(evidence.ref()), Slice(evidence.ref())
    raw = source.raw(TICKET_BYTES)
    _require(not (evidence.refs_left or source.bits_left))
    _require(hashlib.sha256(raw).digest() == head.ticket_sha256)
    _require_issued(raw, batch, accused)
    ticket = Ticket.decode(raw)
    _require((ticket.global_id, ticket.stake) == (accused.global_id, accused.stake))
    _require(head.prompt > ticket.max_prompt or head.completion > ticket.max_completion)


def _receipt_key(evidence: Slice, accused: Accused) -> bytes:
    signature, not_after, receipt_key = evidence.raw(SIGNATURE_BYTES), evidence.uint(64), evidence.raw(KEY_BYTES)
    _require(not evidence.bits_left)
    _require(is_strong_key(receipt_key), Refusal.WEAK_KEY)
    statement = delegation_statement(
        global_id=accused.global_id, stake=accused.stake, receipt_key=receipt_key, not_after=not_after
    )
    _require_signed(accused.staked_key, statement, signature)
    return receipt_key


def _head(evidence: Slice, receipt_key: bytes, accused: Accused) -> _Head:
    cell = evidence.ref()
    source = Slice(cell)
    signed = source.raw(HEAD_BYTES)
    _require(not source.bits_left)
    _require_signed(receipt_key, signed, _signature(source))
    source = Slice(cell)
    magic, global_id, stake = source.raw(len(HEAD_MAGIC)), source.sint(32), source.raw(HASH_BYTES)
    _require((magic, global_id, stake) == (HEAD_MAGIC, accused.global_id, accused.stake))
    seq, ticket_sha256, _body = source.uint(64), source.raw(HASH_BYTES), source.raw(HASH_BYTES)
    prompt, _cached, completion = source.uint(32), source.uint(32), source.uint(32)
    return _Head(signed, seq, ticket_sha256, prompt, completion)


def _require_issued(ticket: bytes, batch: Slice, accused: Accused) -> None:
    """That a gateway of the operator has signed a batch with this ticket in it."""
    _require(batch.refs_left == _BATCH_REFS)
    raw, index = batch.raw(BATCH_HEAD_BYTES), batch.uint(32)
    _require(not batch.bits_left)
    signature, named = _signature(batch), Slice(batch.ref())
    statement, by_operator = named.raw(_GATEWAY_BYTES), _signature(named)
    _require(not named.bits_left)
    _require_signed(accused.operator_key, statement, by_operator)
    _require(is_strong_key(statement[_GATEWAY_KEY]), Refusal.WEAK_KEY)
    head = BatchHead.decode(raw)
    delegation = open_delegation(
        accused.operator_key + statement + by_operator, operator_key=accused.operator_key,
        global_id=accused.global_id, now_s=head.signed_ms / 1000,
    )  # fmt: skip
    _require_signed(delegation.gateway_key, raw, signature)
    _require(head.global_id == accused.global_id)
    with _else(Refusal.BAD_PROOF):
        proof = ClaimProof.decode(batch.ref())
        _require((proof.index, proof.size) == (index, head.size), Refusal.BAD_PROOF)
        require_leaf(head, ticket, Proof(index, proof.path))


def _signature(source: Slice) -> bytes:
    cell = Slice(source.ref())
    signature = cell.raw(SIGNATURE_BYTES)
    _require(not cell.bits_left)
    return signature


def _require(fact: bool, refusal: Refusal = Refusal.BAD_EVIDENCE) -> None:  # noqa: FBT001  one fact each
    if not fact:
        raise _RefusedError(refusal)


def _require_signed(key: bytes, message: bytes, signature: bytes) -> None:
    with _else(Refusal.WRONG_SIGNATURE):
        verify_signature(key, message, signature)


@contextlib.contextmanager
def _else(refusal: Refusal) -> Generator[None]:
    """What is malformed in here is refused for this reason."""
    try:
        yield
    except MalformedError as error:
        raise _RefusedError(refusal) from error
