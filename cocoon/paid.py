"""What a worker's wallet was paid by an operator's payout contract, as its own look at the chain found it.

`cocoon worker payout watch` writes it to a file, and the agent reads it there: the agent knows what the operator
has signed that it owes, and is too small a program to read a chain (`COCOON_OPERATOR_CREDIT_MAX`; PROTOCOL §6).
"""

import msgspec

from cocoon.addresses import Address
from cocoon.errors import MalformedError
from cocoon.money import BASIS_POINTS

PAID_BYTES_MAX = 1024
VERSION = 1


class Paid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`paid_nano` in all since the contract is there, as of masterchain block `seqno` (Unix time `gen_utime`).

    `fee_bps` is what the contract lets the operator keep of what comes in, in hundredths of a per cent; addresses are
    in their raw form.
    """

    v: int
    global_id: int
    payout: str
    wallet: str
    paid_nano: int
    fee_bps: int
    seqno: int
    gen_utime: int

    def __post_init__(self) -> None:
        if self.v != VERSION:
            raise ValueError("another version")
        if min(self.paid_nano, self.seqno, self.gen_utime) < 0 or not 0 <= self.fee_bps <= BASIS_POINTS:
            raise ValueError("a figure is out of range")
        for address in (self.payout, self.wallet):
            if str(Address.parse(address)) != address:
                raise ValueError("an address is not in its raw form")

    def encode(self) -> bytes:
        """As JSON, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def decode(raw: bytes) -> "Paid":
        """What a file says.

        Raises:
            MalformedError: something else.
        """
        try:
            if len(raw) > PAID_BYTES_MAX:
                raise ValueError("too long")
            return msgspec.json.decode(raw, type=Paid)
        except (ValueError, MalformedError) as error:
            raise MalformedError(f"not what a wallet was paid: {error}") from error
