"""The client escrow (`contracts/src/client_escrow.tolk`; PROTOCOL §6): configuration, data, operations, vouchers.

Amounts are nano, times Unix seconds of the chain. A voucher's `cumulative` never resets; a key of zeros means that
there is none.
"""

import enum
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Cell
from cocoon.contracts.messages import QUERY, Operation, StateInit
from cocoon.contracts.records import (
    ADDRESS,
    COINS,
    HASH,
    KEY,
    NO_HASH,
    REF,
    SIGNATURE,
    TIME,
    Record,
    enumeration,
    is_usable_key,
    record,
    sign_cell,
    sint,
    uint,
)
from cocoon.delegation import verify_signature
from cocoon.errors import MalformedError

CODE = "client_escrow"
VOUCHER_TAG = 0x43564331
CLOSE_TAG = 0x43434331


class EscrowPhase(enum.IntEnum):
    """What an escrow's `state` says; closed is the last."""

    OPEN = 0
    CLOSING = 1
    CLOSED = 2


class Signer(enum.IntEnum):
    """Which of an escrow's keys signed a voucher: the client's session key, or the operator's under the allowance."""

    SESSION = 0
    OPERATOR = 1


class EscrowConfig(Record, frozen=True):
    """What an escrow is hashed from, so that its address is its terms.

    `voucher_key` signs session vouchers, `operator_key` delegated ones and co-signed closes; one may be zeros, not
    both. The allowance fills by `allow_rate_nano` a second up to `allow_max_nano`.
    """

    LAYOUT = (ADDRESS, ADDRESS, (ADDRESS, KEY, KEY), uint(32), uint(32), COINS, COINS, (HASH,))

    client: Address
    operator: Address
    payout: Address
    voucher_key: bytes
    operator_key: bytes
    challenge_s: int
    epoch: int
    allow_max_nano: int
    allow_rate_nano: int
    salt: bytes

    def require_usable(self) -> None:
        """Check what the contract checks before it takes a first top-up.

        Raises:
            MalformedError: no key at all, one key in both places, or one under which anything verifies.
        """
        # One key in both places would let the operator's signature pass for the client's.
        keys = [key for key in (self.voucher_key, self.operator_key) if key != NO_HASH]
        if self.voucher_key == self.operator_key or not all(is_usable_key(key) for key in keys):
            raise MalformedError("an escrow needs a key, and keys that prove something each for itself")


class EscrowData(Record, frozen=True):
    """An escrow's data cell."""

    LAYOUT = (enumeration(EscrowPhase, 8), COINS, COINS, COINS, COINS, TIME, TIME, HASH, record(EscrowConfig))

    phase: EscrowPhase
    deposited_nano: int
    settled_nano: int
    owed_nano: int
    allow_at_nano: int
    allow_time: int
    close_requested_at: int
    usage_root: bytes
    config: EscrowConfig

    @staticmethod
    def initial(config: EscrowConfig) -> "EscrowData":
        """The data that an escrow is deployed with."""
        return EscrowData(EscrowPhase.OPEN, 0, 0, 0, config.allow_max_nano, 0, 0, NO_HASH, config)

    def allowance_nano(self, now: int) -> int:
        """What the operator's own vouchers may still take at `now` (PROTOCOL §6); it stops filling at a close."""
        until = min(now, self.close_requested_at) if self.close_requested_at else now
        filled = self.allow_at_nano + self.config.allow_rate_nano * max(until - self.allow_time, 0)
        return min(self.config.allow_max_nano, filled)

    def due_nano(self, cumulative_nano: int, signer: Signer, now: int) -> int:
        """What settling a voucher pays at `now`; never negative."""
        bound = min(cumulative_nano, self.deposited_nano)
        if signer is Signer.OPERATOR:
            bound = min(bound, self.settled_nano + self.allowance_nano(now))
        return max(bound - self.settled_nano, 0)


def escrow_init(code: Cell, config: EscrowConfig) -> StateInit:
    """The escrow of this configuration, as it is deployed."""
    return StateInit(code, EscrowData.initial(config).encode())


class Voucher(Record, frozen=True):
    """A promise of `cumulative_nano` in all, on one network, to one escrow; signed as a cell."""

    TAG: ClassVar[int | None] = VOUCHER_TAG
    LAYOUT = (sint(32), ADDRESS, uint(32), COINS, HASH)

    global_id: int
    escrow: Address
    epoch: int
    cumulative_nano: int
    usage_root: bytes

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """The 64 bytes that `Settle` carries."""
        return sign_cell(key, self.encode())

    def verify(self, public_key: bytes, signature: bytes) -> None:
        """Check a signature as the contract does.

        Raises:
            MalformedError: it does not verify, or anything would under this key.
        """
        verify_signature(public_key, self.encode().hash, signature)


class CloseTerms(Record, frozen=True):
    """What the operator agrees to be paid in all when the client closes at once."""

    TAG: ClassVar[int | None] = CLOSE_TAG
    LAYOUT = (sint(32), ADDRESS, uint(32), COINS)

    global_id: int
    escrow: Address
    epoch: int
    cumulative_nano: int

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """The 64 bytes that `CoClose` carries."""
        return sign_cell(key, self.encode())

    def verify(self, public_key: bytes, signature: bytes) -> None:
        """Check a signature as the contract does.

        Raises:
            MalformedError: it does not verify, or anything would under this key.
        """
        verify_signature(public_key, self.encode().hash, signature)


class TopUp(Operation, frozen=True):
    """Credits exactly `amount_nano`; the message carries it, gas, and what the rent reserve still lacks. Anyone."""

    TAG: ClassVar[int | None] = 0x43E50001
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int


class Settle(Operation, frozen=True):
    """Pays what a voucher is worth now to the payout contract. Anyone may carry it; `voucher` is the signed cell."""

    TAG: ClassVar[int | None] = 0x43E50002
    LAYOUT = (QUERY, enumeration(Signer, 8), SIGNATURE, REF)

    query_id: int
    signer: Signer
    signature: bytes
    voucher: Cell


class RequestClose(Operation, frozen=True):
    """Starts the challenge window. The client only."""

    TAG: ClassVar[int | None] = 0x43E50003
    LAYOUT = (QUERY,)

    query_id: int


class Finalize(Operation, frozen=True):
    """Refunds what was not settled, after the window. Anyone."""

    TAG: ClassVar[int | None] = 0x43E50004
    LAYOUT = (QUERY,)

    query_id: int


class CoClose(Operation, frozen=True):
    """Settles the agreed amount and refunds the rest at once. The client only; `terms` is the signed cell."""

    TAG: ClassVar[int | None] = 0x43E50005
    LAYOUT = (QUERY, SIGNATURE, REF)

    query_id: int
    signature: bytes
    terms: Cell


class RetryOwed(Operation, frozen=True):
    """Sends what came back from the payout contract once more. Anyone, in any state."""

    TAG: ClassVar[int | None] = 0x43E50006
    LAYOUT = (QUERY,)

    query_id: int


class Refund(Operation, frozen=True):
    """What the client receives at the end."""

    TAG: ClassVar[int | None] = 0x43E51001
    LAYOUT = (QUERY, COINS)

    query_id: int
    amount_nano: int
