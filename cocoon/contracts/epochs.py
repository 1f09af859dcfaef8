"""An epoch in public: every wallet's earnings, from which anybody rebuilds the tree whose root the payout contract has.

Whoever has the leaves of the active epoch can have any worker of it paid, with or without the operator
(`contracts/src/payout.tolk`, `Claim`; PROTOCOL §6).
"""

from typing import Literal

import msgspec

from cocoon.addresses import Address
from cocoon.contracts.payout import Earnings, EpochTree
from cocoon.errors import MalformedError

EPOCHS_PATH = "/v1/epochs"
LEAVES_MAX = 1_000_000
COINS_MAX = 2**120 - 1
"""The most that a contract can count (`coins`)."""
EPOCH_MAX = 2**32 - 1


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a wallet (raw form) has earned in all, in nano."""

    wallet: str
    cumulative_nano: int


class EpochLeaves(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All leaves of an epoch of the payout contract at `payout` (raw form); `root` in hexadecimal.

    Believe it only through `tree`, and the root only if the contract has it.
    """

    object: Literal["payout.epoch"] = "payout.epoch"
    payout: str
    epoch: int
    root: str
    total_nano: int
    leaves: tuple[Leaf, ...]

    def tree(self) -> EpochTree:
        """The tree over the leaves.

        Raises:
            MalformedError: it has another root or total, or a leaf that no contract can pay.
        """
        if not 0 < self.epoch <= EPOCH_MAX or not 0 < len(self.leaves) <= LEAVES_MAX:
            raise MalformedError("an epoch has a number and leaves")
        if str(Address.parse(self.payout)) != self.payout:
            raise MalformedError("the payout contract's address is not in its raw form")
        if len({leaf.wallet for leaf in self.leaves}) != len(self.leaves):
            raise MalformedError("a wallet has two leaves")
        if not all(0 <= leaf.cumulative_nano <= COINS_MAX for leaf in self.leaves):
            raise MalformedError("a leaf is no amount")
        tree = EpochTree([_earnings(leaf) for leaf in self.leaves])
        if tree.root.hex() != self.root or tree.total_nano != self.total_nano:
            raise MalformedError("the leaves have another root or total than is said")
        return tree

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "EpochLeaves":
        """What a gateway answered, or a file says.

        Raises:
            MalformedError: something else.
        """
        try:
            return msgspec.json.decode(raw, type=EpochLeaves)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedError(f"not the leaves of an epoch: {error}") from error


def _earnings(leaf: Leaf) -> Earnings:
    wallet = Address.parse(leaf.wallet)
    if str(wallet) != leaf.wallet:
        raise MalformedError("a wallet's address is not in its raw form")
    return Earnings(wallet, leaf.cumulative_nano)
