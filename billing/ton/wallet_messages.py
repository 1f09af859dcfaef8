"""Messages of a wallet v5r1: up to 255 transfers under one signature.

Source: TON's wallet-contract-v5 (github.com/ton-blockchain/wallet-contract-v5), `types.tlb`:

    signed_request$_ wallet_id:# valid_until:# msg_seqno:# inner:InnerRequest signature:bits512
    external_signed#7369676e signed_request; action_send_msg#0ec3c86d mode:(## 8) out_msg:^(MessageRelaxed Any)

and TON's block.tlb for messages. Pure: seqno and time come from the chain. Equality with pytoniq's is a test.
"""

from collections.abc import Sequence
from typing import Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice, write_boc
from cocoon.contracts.messages import StateInit
from cocoon.errors import MalformedError

MESSAGES_MAX = 255
"""Actions of one transaction (TON's virtual machine)."""
SEND_MODE = 3
"""Fees are paid apart, and what fails to be sent is left out: the wallet goes on."""
_EXTERNAL_SIGNED = 0x7369676E
_SEND = 0x0EC3C86D
_DATA_BITS = 322


class Transfer(msgspec.Struct, frozen=True):
    """An internal message that a wallet sends. It carries `value_nano`; a state init deploys what it goes to."""

    destination: Address
    value_nano: int
    body: Cell
    state_init: StateInit | None = None
    bounce: bool = True

    def encode(self) -> Cell:
        """The relaxed message: no source, and everything that is large in a reference."""
        builder = (
            Builder()
            .uint(0, 1)
            .uint(1, 1)  # instant hypercube routing is off
            .uint(self.bounce, 1)
            .uint(0, 1)
            .address(None)
            .address(self.destination)
            .coins(self.value_nano)
            .uint(0, 1)  # no other currencies
            .coins(0)
            .coins(0)
            .uint(0, 64 + 32)  # the validators fill in time and logical time
        )
        if self.state_init is None:
            builder.uint(0, 1)
        else:
            builder.uint(0b11, 2).ref(self.state_init.encode())
        return builder.uint(1, 1).ref(self.body).end()

    @classmethod
    def decode(cls, cell: Cell) -> Self:
        """The transfer in a relaxed message that `encode` has made.

        Raises:
            MalformedError: it was not.
        """
        source = Slice(cell)
        if source.uint(2) != 1:
            raise MalformedError("not an internal message")
        bounce = bool(source.uint(1))
        if source.uint(1) or source.maybe_address() is not None:
            raise MalformedError("not a message that is to be sent")
        destination, value_nano = source.address(), source.coins()
        if source.uint(1) or source.coins() or source.coins() or source.uint(64 + 32):
            raise MalformedError("not a message of a wallet")
        state_init = None
        if source.uint(1):
            state_init = StateInit.decode(_right(source))
        body = _right(source)
        source.end()
        return cls(destination, value_nano, body, state_init, bounce)


def _right(source: Slice) -> Cell:
    if not source.uint(1):
        raise MalformedError("what is large stands in a reference")
    return source.ref()


def signed_body(
    key: Ed25519PrivateKey, transfers: Sequence[Transfer], *, wallet_id: int, seqno: int, valid_until: int
) -> Cell:
    """What the wallet executes once, at its next `seqno`, before `valid_until` (Unix seconds of the chain).

    Raises:
        MalformedError: no transfer or more than `MESSAGES_MAX`.
    """
    if not 0 < len(transfers) <= MESSAGES_MAX:
        raise MalformedError(f"a wallet sends 1 to {MESSAGES_MAX} messages at once")
    actions = Builder().end()
    for transfer in transfers:
        actions = Builder().ref(actions).uint(_SEND, 32).uint(SEND_MODE, 8).ref(transfer.encode()).end()
    signing = (
        Builder()
        .uint(_EXTERNAL_SIGNED, 32)
        .uint(wallet_id, 32)
        .uint(valid_until, 32)
        .uint(seqno, 32)
        .maybe_ref(actions)
        .uint(0, 1)  # no extended actions
        .end()
    )
    return Builder().append(signing).raw(key.sign(signing.hash)).end()


def external_message(wallet: Address, body: Cell, state_init: StateInit | None = None) -> Cell:
    """The message from outside that brings a signed body; a state init deploys the wallet with its first one."""
    builder = Builder().uint(0b10, 2).address(None).address(wallet).coins(0)
    if state_init is None:
        builder.uint(0, 1)
    else:
        builder.uint(0b11, 2).ref(state_init.encode())
    return builder.uint(1, 1).ref(body).end()


def external_boc(wallet: Address, body: Cell, state_init: StateInit | None = None) -> bytes:
    """As `external_message`, as it is broadcast."""
    return write_boc(external_message(wallet, body, state_init))


class WalletData(msgspec.Struct, frozen=True):
    """The data of a deployed wallet v5r1."""

    seqno: int
    wallet_id: int
    public_key: bytes

    @staticmethod
    def decode(data: Cell) -> "WalletData":
        """What a data cell says; extensions are not looked at.

        Raises:
            MalformedError: not the data of a wallet v5r1.
        """
        source = Slice(data)
        if data.bits != _DATA_BITS:
            raise MalformedError("not the data of a wallet v5r1")
        source.uint(1)
        return WalletData(source.uint(32), source.uint(32), source.raw(32))
