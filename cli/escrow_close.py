"""`cocoon escrow close --together`: the operator signs what it is owed, and the escrow closes in one message.

What the operator signed is checked here, by its key in the escrow's own terms; the gateway only passes it on.
"""

import time
from collections.abc import Callable

import click
import msgspec

from billing.ton.chain import Chain
from cli.contract import ContractError
from cli.escrow_gateway import Gateway
from cli.escrow_owner import EscrowOwner
from cli.wallet import Payer, ton
from cocoon.clock import Clock
from cocoon.contracts.escrow import CloseTerms, EscrowData
from cocoon.errors import MalformedError
from cocoon_client.escrow_file import EscrowFile

AGREE_S_MAX = 180.0
"""How long the operator's signature is waited for: running requests end, idle leases come back, the biller looks."""
LOOK_S = 1.0


class Agreed(msgspec.Struct, frozen=True):
    """The operator's terms for one escrow, and its signature, which holds."""

    terms: CloseTerms
    signature: bytes


def agree(escrow: EscrowFile, gateway: Gateway, clock: Clock, wait: Callable[[float], None] = time.sleep) -> Agreed:
    """Have the operator sign what the escrow owes. From the first question on nothing is served on it.

    Where it does not sign in time the request is withdrawn, and the escrow is served again.

    Raises:
        ContractError: no terms can be had, not in time, or they are not the operator's for this escrow.
    """
    deadline = clock.monotonic() + AGREE_S_MAX
    said = gateway.ask_close(escrow)
    while said.cumulative is None or said.signature is None:
        if clock.monotonic() > deadline:
            gateway.withdraw_close(escrow)
            raise ContractError("the operator has signed nothing in time; close without --together, which needs nobody")
        wait(LOOK_S)
        said = gateway.ask_close(escrow)
    terms = CloseTerms(escrow.network, escrow.address, escrow.config.epoch, said.cumulative)
    try:
        signature = bytes.fromhex(said.signature)
        terms.verify(escrow.config.operator_key, signature)
    except (ValueError, MalformedError) as error:
        raise ContractError("what the gateway shows is not signed by the operator for this escrow") from error
    return Agreed(terms, signature)


def accept(agreed: Agreed, data: EscrowData, at_most: int | None, *, ask: bool) -> None:
    """Have the escrow's owner accept the amount.

    Raises:
        ContractError: it is more than the owner said, or the contract would not take it.
        click.Abort: the owner says no.
    """
    nano = agreed.terms.cumulative_nano
    if not data.settled_nano <= nano <= data.deposited_nano:
        raise ContractError(f"the operator signed for {nano} nano, and the contract would not take that")
    if at_most is not None and nano > at_most:
        raise ContractError(
            f"the operator says that {ton(nano)} TON are owed, more than {ton(at_most)}; nothing is served on the "
            "escrow any more, and closing without --together costs what your vouchers and the allowance cover"
        )
    click.echo(f"Owed: {ton(nano)} TON in all, of which {ton(data.settled_nano)} TON are settled.")
    click.echo(f"{ton(data.deposited_nano - nano)} TON come back at once.")
    if ask:
        click.echo("The terms stay good, and nothing is served on the escrow any more, whatever you answer.", err=True)
        click.confirm("Close the escrow on these terms?", abort=True, err=True)


async def close_agreed(chain: Chain, escrow: EscrowFile, agreed: Agreed, who: Payer) -> EscrowData | None:
    """Send it; None where a link was shown instead.

    Raises:
        ContractError: see `Payer.pay`.
    """
    owner = EscrowOwner(chain, escrow)
    return await who.pay(owner, owner.co_close(agreed.terms, agreed.signature), "close the escrow on these terms")
