"""How people bring money to an escrow: the message that tops it up, and a link that wallet apps open.

Source of the link: TON's deep links (docs.ton.org, "Deep links"), `ton://transfer/ADDRESS?amount=&bin=&init=`, with
bags of cells in URL-safe base64. Amounts are nano.
"""

import base64
import urllib.parse

from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.contracts.escrow import TopUp
from cocoon.contracts.messages import StateInit

TOP_UP_EXTRA_NANO = 100_000_000
"""Attached on top of a deposit: the rent reserve (0.05 TON, once) and more than any gas; the rest comes back."""
MAINNET = -239


def deposit_link(
    escrow: Address, init: StateInit, amount_nano: int, *, global_id: int, query_id: int = 0
) -> str:  # fmt: skip
    """A link that deposits exactly `amount_nano`, and deploys the escrow where it is not there yet."""
    query = {
        "amount": str(amount_nano + TOP_UP_EXTRA_NANO),
        "bin": _encoded(write_boc(TopUp(query_id, amount_nano).encode())),
        "init": _encoded(write_boc(init.encode())),
    }
    address = escrow.friendly(bounceable=True, test_network=global_id != MAINNET)
    return f"ton://transfer/{address}?{urllib.parse.urlencode(query)}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
