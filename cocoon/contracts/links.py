"""Links that wallet apps open to send one message.

Source: TON's deep links (docs.ton.org, "Deep links"), `ton://transfer/ADDRESS?amount=&bin=&init=`, with bags of cells
in URL-safe base64. Amounts are nano.
"""

import base64
import urllib.parse

from cocoon.addresses import Address
from cocoon.cells import Cell, write_boc
from cocoon.contracts.messages import StateInit

MAINNET = -239


def transfer_link(
    destination: Address, value_nano: int, body: Cell, *, global_id: int, init: StateInit | None = None
) -> str:
    """A link that sends `body` with this value, and deploys `init` where that is given and not there yet."""
    query = {"amount": str(value_nano), "bin": _encoded(body)}
    if init is not None:
        query["init"] = _encoded(init.encode())
    address = destination.friendly(bounceable=True, test_network=global_id != MAINNET)
    return f"ton://transfer/{address}?{urllib.parse.urlencode(query)}"


def _encoded(cell: Cell) -> str:
    return base64.urlsafe_b64encode(write_boc(cell)).decode().rstrip("=")
