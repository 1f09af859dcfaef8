"""How people bring money to an escrow: the message that tops it up, and a link to it. Amounts are nano."""

from cocoon.addresses import Address
from cocoon.contracts.escrow import TopUp
from cocoon.contracts.links import transfer_link
from cocoon.contracts.messages import StateInit

TOP_UP_EXTRA_NANO = 100_000_000
"""Attached on top of a deposit: the rent reserve (0.05 TON, once) and more than any gas; the rest comes back."""


def deposit_link(
    escrow: Address, init: StateInit, amount_nano: int, *, global_id: int, query_id: int = 0
) -> str:  # fmt: skip
    """A link that deposits exactly `amount_nano`, and deploys the escrow where it is not there yet."""
    body = TopUp(query_id, amount_nano).encode()
    return transfer_link(escrow, amount_nano + TOP_UP_EXTRA_NANO, body, global_id=global_id, init=init)
