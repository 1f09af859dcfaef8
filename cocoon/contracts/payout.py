"""The payout contract and its children, one per worker (`contracts/src/payout.tolk`, `payout_account.tolk`).

Money leaves only by claim: an epoch's root says what each worker has earned in all, the worker's child what it has had.
"""

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from cocoon import merkle
from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice
from cocoon.contracts.messages import QUERY, Operation, StateInit
from cocoon.contracts.records import ADDRESS, COINS, FLAG, HASH, NO_HASH, REF, TIME, Record, record, uint
from cocoon.errors import MalformedError
from cocoon.money import BASIS_POINTS

CODE = "payout"
ACCOUNT_CODE = "payout_account"
ANCHOR_LOG = 0x43E5A001
LEAF_TAG = b"CPL1"
PATH_HASHES_MAX = 32
"""Hashes of a claim's path: trees have 32-bit sizes."""
_HASHES_PER_CELL = 3
_CUMULATIVE_BYTES = 16


class PayoutConfig(Record, frozen=True):
    """What a payout contract is hashed from. `delay_s` is how long a root is public before it pays."""

    LAYOUT = (ADDRESS, ADDRESS, uint(16), uint(32), HASH, REF)

    operator: Address
    fee_to: Address
    fee_bps: int
    delay_s: int
    salt: bytes
    account_code: Cell


class Roots(Record, frozen=True):
    """The epoch that pays and the one that pays from `pending_at` on; `pending_epoch` 0 is none."""

    LAYOUT = (uint(32), HASH, COINS, uint(32), HASH, COINS, TIME)

    epoch: int
    root: bytes
    total_nano: int
    pending_epoch: int
    pending_root: bytes
    pending_total_nano: int
    pending_at: int


class Anchor(Record, frozen=True):
    """The log's last anchored checkpoint; `acc` is the hash over all of them, one after the other."""

    LAYOUT = (uint(32), HASH, uint(64), HASH, HASH)

    count: int
    origin_hash: bytes
    size: int
    root: bytes
    acc: bytes


class PayoutData(Record, frozen=True):
    """A payout contract's data cell. Amounts are nano, in all since it was deployed."""

    LAYOUT = (COINS, COINS, COINS, record(Roots), record(Anchor), record(PayoutConfig))

    received_nano: int
    paid_nano: int
    fee_withdrawn_nano: int
    roots: Roots
    anchor: Anchor
    config: PayoutConfig

    @staticmethod
    def initial(config: PayoutConfig) -> "PayoutData":
        """The data that a payout contract is deployed with."""
        roots = Roots(0, NO_HASH, 0, 0, NO_HASH, 0, 0)
        return PayoutData(0, 0, 0, roots, Anchor(0, NO_HASH, 0, NO_HASH, NO_HASH), config)

    @property
    def fee_max_nano(self) -> int:
        """What the operator may have taken of what came in."""
        return self.received_nano * self.config.fee_bps // BASIS_POINTS

    def active_root(self, now: int) -> tuple[int, bytes, int]:
        """Epoch, root and total that claims are checked with at `now`: a waiting root that is due counts."""
        roots = self.roots
        if roots.pending_epoch and now >= roots.pending_at:
            return roots.pending_epoch, roots.pending_root, roots.pending_total_nano
        return roots.epoch, roots.root, roots.total_nano


class PayoutAccountData(Record, frozen=True):
    """The data cell of a worker's child."""

    LAYOUT = (ADDRESS, ADDRESS, COINS, COINS, COINS, uint(64))

    payout: Address
    worker: Address
    claimed_nano: int
    owed_nano: int
    in_flight_nano: int
    in_flight_query: int


def payout_init(code: Cell, config: PayoutConfig) -> StateInit:
    """The payout contract of this configuration, as it is deployed."""
    return StateInit(code, PayoutData.initial(config).encode())


def account_init(account_code: Cell, payout: Address, worker: Address) -> StateInit:
    """A worker's child, as its payout contract deploys it."""
    return StateInit(account_code, PayoutAccountData(payout, worker, 0, 0, 0, 0).encode())


class Earnings(msgspec.Struct, frozen=True):
    """What a worker has earned in all, in nano: a leaf of an epoch's tree."""

    worker: Address
    cumulative_nano: int

    def leaf(self) -> bytes:
        """The leaf's bytes: `"CPL1" ‖ wc1 ‖ account32 ‖ cumulative16`."""
        workchain = self.worker.workchain.to_bytes(1, "big", signed=True)
        return LEAF_TAG + workchain + self.worker.account + self.cumulative_nano.to_bytes(_CUMULATIVE_BYTES, "big")


class EpochTree:
    """An epoch's tree: RFC 6962 over leaves in the order of accounts, one for each worker."""

    def __init__(self, earnings: Sequence[Earnings]) -> None:
        self._earnings = sorted(earnings, key=lambda one: (one.worker.account, one.worker.workchain))
        self._index = {one.worker: number for number, one in enumerate(self._earnings)}
        assert len(self._index) == len(self._earnings), "one leaf for each worker"
        self._tree = merkle.Tree([merkle.leaf_hash(one.leaf()) for one in self._earnings])

    @property
    def root(self) -> bytes:
        """The root that `PostRoot` names."""
        return self._tree.root

    @property
    def total_nano(self) -> int:
        """The sum of all leaves."""
        return sum(one.cumulative_nano for one in self._earnings)

    def claim(self, worker: Address, *, query_id: int) -> "Claim":
        """The message that pays a worker of this epoch.

        Raises:
            KeyError: the epoch has no such worker.
        """
        index = self._index[worker]
        proof = ClaimProof(index, self._tree.size, self._tree.inclusion(index))
        return Claim(query_id, worker, self._earnings[index].cumulative_nano, proof.encode())


class ClaimProof(msgspec.Struct, frozen=True):
    """Where a leaf stands and the hashes beside its way to the root, lowest first.

    In cells: `index:uint32 size:uint32 count:uint8`, then the hashes, three in each cell, continued in a reference.
    """

    index: int
    size: int
    path: tuple[bytes, ...]

    def encode(self) -> Cell:
        """The cell that `Claim` refers to."""
        if len(self.path) > PATH_HASHES_MAX:
            raise MalformedError("the path is too long")
        groups = [self.path[at : at + _HASHES_PER_CELL] for at in range(0, len(self.path), _HASHES_PER_CELL)] or [()]
        below: Cell | None = None
        for number in range(len(groups) - 1, -1, -1):
            builder = Builder()
            if number == 0:
                builder.uint(self.index, 32).uint(self.size, 32).uint(len(self.path), 8)
            for one in groups[number]:
                builder.raw(one)
            below = (builder if below is None else builder.ref(below)).end()
        assert below is not None, "there is a first cell"
        return below

    @classmethod
    def decode(cls, cell: Cell) -> "ClaimProof":
        """The proof in a cell.

        Raises:
            MalformedError: cut short, too long, or with more in it.
        """
        source = Slice(cell)
        index, size, left = source.uint(32), source.uint(32), source.uint(8)
        if left > PATH_HASHES_MAX:
            raise MalformedError("the path is too long")
        path: list[bytes] = []
        while True:
            here = min(left, _HASHES_PER_CELL)
            path.extend(source.raw(merkle.HASH_BYTES) for _ in range(here))
            left -= here
            if not left:
                source.end()
                return cls(index, size, tuple(path))
            following = source.ref()
            source.end()
            source = Slice(following)


def require_claim(claim: "Claim", root: bytes) -> None:
    """Check a claim against an epoch's root, as the contract does.

    Raises:
        MalformedError: the proof does not show it.
    """
    proof = ClaimProof.decode(claim.proof)
    merkle.verify_inclusion(
        Earnings(claim.worker, claim.cumulative_nano).leaf(), proof.index, proof.size, proof.path, root
    )


class Fund(Operation, frozen=True):
    """What an escrow sends when it settles. Anyone."""

    TAG: ClassVar[int | None] = 0x43E52001
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class PostRoot(Operation, frozen=True):
    """Names the next epoch's root and what it adds up to. The operator only."""

    TAG: ClassVar[int | None] = 0x43E52002
    LAYOUT = (QUERY, uint(32), HASH, COINS)

    query_id: int
    epoch: int
    root: bytes
    total_nano: int


class Claim(Operation, frozen=True):
    """Pays a worker what it has earned and not had. Anyone."""

    TAG: ClassVar[int | None] = 0x43E52003
    LAYOUT = (QUERY, ADDRESS, COINS, REF)

    query_id: int
    worker: Address
    cumulative_nano: int
    proof: Cell


class Pay(Operation, frozen=True):
    """What a child answers: pay this much; `again` where a payment came back before. Only the child."""

    TAG: ClassVar[int | None] = 0x43E52004
    LAYOUT = (QUERY, ADDRESS, COINS, FLAG, ADDRESS)

    query_id: int
    worker: Address
    amount_nano: int
    again: bool
    excess_to: Address


class WithdrawFee(Operation, frozen=True):
    """Sends the operator's fee to its address, within `fee_max_nano`. The operator only."""

    TAG: ClassVar[int | None] = 0x43E52005
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class PostAnchor(Operation, frozen=True):
    """Anchors a checkpoint of the log: its size only grows. The operator only."""

    TAG: ClassVar[int | None] = 0x43E52006
    LAYOUT = (QUERY, HASH, uint(64), HASH)

    query_id: int
    origin_hash: bytes
    size: int
    root: bytes


class Payment(Operation, frozen=True):
    """What a worker receives."""

    TAG: ClassVar[int | None] = 0x43E52101
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class FeePayment(Operation, frozen=True):
    """What the operator's address receives."""

    TAG: ClassVar[int | None] = 0x43E52102
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class AnchorLogged(Record, frozen=True):
    """The external message that an anchor leaves in the block."""

    TAG: ClassVar[int | None] = ANCHOR_LOG
    LAYOUT = (uint(32), HASH, uint(64), HASH, HASH)

    count: int
    origin_hash: bytes
    size: int
    root: bytes
    acc: bytes


class Due(Operation, frozen=True):
    """To a child: what its worker has earned in all, and who is sent what is left. Only from the payout contract."""

    TAG: ClassVar[int | None] = 0x43E53001
    LAYOUT = (QUERY, COINS, ADDRESS)

    query_id: int
    cumulative_nano: int
    excess_to: Address


class Restore(Operation, frozen=True):
    """To a child: a payment came back."""

    TAG: ClassVar[int | None] = 0x43E53002
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class Done(Operation, frozen=True):
    """To a child: the payment is on its way."""

    TAG: ClassVar[int | None] = 0x43E53003
    LAYOUT = (QUERY,)

    query_id: int
