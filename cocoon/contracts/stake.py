"""The worker's stake (`contracts/src/worker_stake.tolk`; PROTOCOL §4): data, operations, delegations and evidence.

Amounts are nano. What is slashed is decided by bytes alone: two signed heads of one number, or a head above its ticket.
"""

import enum
import struct
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import ACCOUNT_BYTES, Address
from cocoon.cells import Builder, Cell
from cocoon.contracts.messages import QUERY, Operation, StateInit
from cocoon.contracts.payout import ClaimProof
from cocoon.contracts.records import ADDRESS, COINS, HASH, KEY, REF, SIGNATURE, TIME, Record, enumeration, record, uint
from cocoon.delegation import DELEGATION_BYTES, KEY_BYTES, SIGNATURE_BYTES
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError
from cocoon.money import BASIS_POINTS
from cocoon.receipt import HEAD_BYTES
from cocoon.signed_batch import BATCH_HEAD_BYTES, Proof, SignedBatch
from cocoon.ticket import TICKET_BYTES

CODE = "worker_stake"
BOUNTY_BPS_MAX = 2_000
_DELEGATION = struct.Struct(">4s i 32s 32s Q")
_DELEGATION_MAGIC = b"CDL1"


class StakePhase(enum.IntEnum):
    """What a stake's `state` says; slashed is the last."""

    LIVE = 0
    SLASHED = 1


class EvidenceKind(enum.IntEnum):
    """What a slash shows."""

    EQUIVOCATION = 1
    OVER_USE = 2


class StakeConfig(Record, frozen=True):
    """What a stake is hashed from.

    `staked_key` is the worker's and delegates receipt keys, `operator_key` the network's, under which tickets count.
    """

    LAYOUT = (ADDRESS, ADDRESS, (KEY, KEY), uint(32), uint(16), HASH)

    owner: Address
    operator: Address
    staked_key: bytes
    operator_key: bytes
    unbond_s: int
    bounty_bps: int
    salt: bytes


class StakeData(Record, frozen=True):
    """A stake's data cell."""

    LAYOUT = (enumeration(StakePhase, 8), COINS, COINS, TIME, record(StakeConfig))

    phase: StakePhase
    bond_nano: int
    unbonding_nano: int
    unbond_at: int
    config: StakeConfig

    @staticmethod
    def initial(config: StakeConfig) -> "StakeData":
        """The data that a stake is deployed with."""
        return StakeData(StakePhase.LIVE, 0, 0, 0, config)

    @property
    def bounty_nano(self) -> int:
        """What somebody who slashes it now is paid."""
        return (self.bond_nano + self.unbonding_nano) * self.config.bounty_bps // BASIS_POINTS


def stake_init(code: Cell, config: StakeConfig) -> StateInit:
    """The stake of this configuration, as it is deployed."""
    return StateInit(code, StakeData.initial(config).encode())


def delegation_statement(*, global_id: int, stake: bytes, receipt_key: bytes, not_after: int) -> bytes:
    """What a staked key signs to name a receipt key: `"CDL1" ‖ global_id4 ‖ stake32 ‖ receipt_pk32 ‖ not_after8`.

    `stake` is the account of the stake contract, `not_after` Unix seconds.
    """
    if not len(stake) == len(receipt_key) == ACCOUNT_BYTES:
        raise MalformedError("stake and receipt key have 32 bytes")
    return _DELEGATION.pack(_DELEGATION_MAGIC, global_id, stake, receipt_key, not_after)


def delegate_receipt_key(
    staked_key: Ed25519PrivateKey, *, global_id: int, stake: bytes, receipt_key: bytes, not_after: int
) -> bytes:
    """The 64 bytes of such a delegation's signature."""
    return staked_key.sign(
        delegation_statement(global_id=global_id, stake=stake, receipt_key=receipt_key, not_after=not_after)
    )


class Evidence(Record, frozen=True):
    """What all evidence begins with: who stands for the receipt key. What it proves stands in its references."""

    LAYOUT = (SIGNATURE, uint(64), KEY)

    delegation_signature: bytes
    not_after: int
    receipt_key: bytes

    @classmethod
    def named_by(cls, keyset: Keyset) -> "Evidence | None":
        """Who stands for a keyset's receipt key; None of one without a stake."""
        return cls(keyset.delegation, keyset.not_after, keyset.receipt_pk) if keyset.delegation else None

    def equivocation(self, first: tuple[bytes, bytes], second: tuple[bytes, bytes]) -> Cell:
        """Two heads of one number, each with its signature."""
        return Builder().append(self.encode()).ref(signed_head(*first)).ref(signed_head(*second)).end()

    def over_use(
        self, head: tuple[bytes, bytes], ticket: bytes, batch: SignedBatch, proof: Proof, *, size: int
    ) -> Cell:
        """A head with its signature, the ticket that it names, and the proof that the gateway signed that ticket."""
        if len(ticket) != TICKET_BYTES:
            raise MalformedError("not a ticket")
        return (
            Builder()
            .append(self.encode())
            .ref(signed_head(*head))
            .ref(Builder().raw(ticket).end())
            .ref(signed_batch_cell(batch, proof, size=size))
            .end()
        )


def signed_head(head: bytes, signature: bytes) -> Cell:
    """A receipt head of 124 bytes in a cell, its signature in a reference."""
    if len(head) != HEAD_BYTES or len(signature) != SIGNATURE_BYTES:
        raise MalformedError("not a signed head")
    return Builder().raw(head).ref(Builder().raw(signature).end()).end()


def signed_batch_cell(batch: SignedBatch, proof: Proof, *, size: int) -> Cell:
    """A batch's head and a leaf's index; then in references the signature, the gateway's delegation, and the path."""
    if len(batch.head) != BATCH_HEAD_BYTES or len(batch.delegation) != DELEGATION_BYTES:
        raise MalformedError("not a signed batch")
    statement = batch.delegation[KEY_BYTES:-SIGNATURE_BYTES]
    delegation = Builder().raw(statement).ref(Builder().raw(batch.delegation[-SIGNATURE_BYTES:]).end()).end()
    return (
        Builder()
        .raw(batch.head)
        .uint(proof.index, 32)
        .ref(Builder().raw(batch.signature).end())
        .ref(delegation)
        .ref(ClaimProof(proof.index, size, proof.path).encode())
        .end()
    )


class Bond(Operation, frozen=True):
    """Adds exactly `amount_nano` to the bond. Anyone."""

    TAG: ClassVar[int | None] = 0x43E54001
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class RequestUnbond(Operation, frozen=True):
    """Moves part of the bond to what waits; the clock starts again for all of it. The owner only."""

    TAG: ClassVar[int | None] = 0x43E54002
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class Withdraw(Operation, frozen=True):
    """Pays out what has waited long enough. The owner only."""

    TAG: ClassVar[int | None] = 0x43E54003
    LAYOUT = (QUERY,)

    query_id: int


class Slash(Operation, frozen=True):
    """Pays a bounty to the sender and burns the rest, if the evidence holds. Anyone."""

    TAG: ClassVar[int | None] = 0x43E54004
    LAYOUT = (QUERY, enumeration(EvidenceKind, 8), REF)

    query_id: int
    kind: EvidenceKind
    evidence: Cell


class Unbonded(Operation, frozen=True):
    """What the owner receives."""

    TAG: ClassVar[int | None] = 0x43E54101
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class Bounty(Operation, frozen=True):
    """What somebody who slashed receives."""

    TAG: ClassVar[int | None] = 0x43E54102
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class Burn(Operation, frozen=True):
    """What goes to the address of zeros."""

    TAG: ClassVar[int | None] = 0x43E54103
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int
