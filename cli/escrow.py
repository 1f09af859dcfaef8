"""`cocoon escrow`: fund your use of a network from a contract of your own, and leave it whenever you like.

Closing talks to liteservers only: it works when the gateway does not.
"""

import asyncio
import secrets
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.ton.chain import Chain
from cli.addresses import ADDRESS
from cli.amounts import SOME_TON, TON
from cli.contract import ContractError, new_query_id
from cli.escrow_close import accept, agree, close_agreed
from cli.escrow_gateway import Gateway, Terms, require_pinned
from cli.escrow_owner import EscrowOwner
from cli.tables import moment
from cli.wallet import (
    Payer,
    liteservers_option,
    mnemonic_option,
    no_qr_option,
    on_chain,
    payer,
    require_one,
    say_network,
    show_link,
    ton,
)
from cocoon.addresses import Address
from cocoon.clock import SystemClock
from cocoon.contracts.deposits import deposit_link
from cocoon.contracts.escrow import EscrowConfig, EscrowData, EscrowPhase
from cocoon_client.escrow_file import EscrowFile, read_escrow_file

LOOK_S = 30
"""How often a close that waits looks at the chain's time."""


def new_escrow(
    terms: Terms, client: Address, *, challenge_s: int | None, delegated: bool, allow_max: int, allow_rate: int
) -> EscrowFile:
    """An escrow with a session key of its own; with `delegated`, the operator may also take what the allowance says.

    The operator's key is in it all the same, so that it can agree to a close at once; without an allowance it takes
    nothing by itself.

    Raises:
        MalformedError: the gateway's terms are no terms.
    """
    seed = secrets.token_bytes(32)
    config = EscrowConfig(
        client=client, operator=Address.parse(terms.operator), payout=Address.parse(terms.payout),
        voucher_key=Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(),
        operator_key=bytes.fromhex(terms.operator_key),
        challenge_s=terms.challenge_s_min if challenge_s is None else challenge_s, epoch=1,
        allow_max_nano=allow_max if delegated else 0, allow_rate_nano=allow_rate if delegated else 0,
        salt=secrets.token_bytes(32),
    )  # fmt: skip
    config.require_usable()
    return EscrowFile(network=terms.global_id, config=config, seed=seed)


@click.group("escrow")
def command() -> None:
    """Fund your use of a network from a contract of your own (docs/settlement.md)."""


_file = click.option(
    "--file", "path", envvar="COCOON_ESCROW", show_envvar=True, required=True,
    type=click.Path(dir_okay=False, path_type=Path), help="The escrow's file: its terms and its session key.",
)  # fmt: skip


@command.command("open")
@_file
@liteservers_option
@mnemonic_option
@no_qr_option
@click.option("--base-url", envvar="COCOON_BASE_URL", show_envvar=True, required=True, help="The gateway, up to /v1.")
@click.option("--api-key", envvar="COCOON_API_KEY", hidden=True, default="")
@click.option("--amount", type=SOME_TON, required=True, help="The first deposit, in TON.")
@click.option("--client", type=ADDRESS, help="Your wallet's address, where there are no words: a link is shown then.")
@click.option("--operator", type=ADDRESS, help="The operator that you mean; another one is refused.")
@click.option("--challenge", type=click.IntRange(1), help="Seconds from asking for the close to the refund.")
@click.option("--delegated", is_flag=True, help="Let the operator settle by itself, within the allowance.")
@click.option("--allow-max", type=TON, default=0, help="The most that the allowance holds, in TON.")
@click.option("--allow-rate", type=click.IntRange(0), default=0, help="What it fills by, in nano a second.")
def open_command(
    *, path: Path, liteservers: Path | None, mnemonic_file: Path | None, base_url: str, api_key: str, amount: int,
    client: Address | None, operator: Address | None, challenge: int | None, delegated: bool, allow_max: int,
    allow_rate: int,
) -> None:  # fmt: skip
    """Make an escrow, have the gateway watch it, and deposit."""
    if path.exists():
        raise click.UsageError(f"{path} exists and is never replaced; `cocoon escrow top-up` deposits into its escrow")
    if delegated != bool(allow_max):
        raise click.UsageError("--delegated and --allow-max go together")
    require_one(mnemonic_file, client, "--client")
    gateway = Gateway(base_url, api_key)
    terms = gateway.terms()
    require_pinned(terms, operator)
    who = payer(mnemonic_file, terms.global_id)
    escrow = new_escrow(
        terms, who.owner(client), challenge_s=challenge, delegated=delegated, allow_max=allow_max, allow_rate=allow_rate
    )
    if gateway.register(escrow) != str(escrow.address):
        raise ContractError("the gateway watches another address than this escrow's: deposit nothing")
    escrow.write(path)
    say_network(escrow.network)
    click.echo(f"Escrow {escrow.address}, registered. Its file is {path}: keep it, it holds the session key.")
    _deposit(escrow, amount, who, None if who.wallet is None else liteservers)


@command.command("top-up")
@_file
@liteservers_option
@mnemonic_option
@no_qr_option
@click.option("--amount", type=SOME_TON, required=True, help="How much more, in TON.")
def top_up(*, path: Path, liteservers: Path | None, mnemonic_file: Path | None, amount: int) -> None:
    """Deposit more: from your wallet, or by a link for any wallet."""
    escrow = read_escrow_file(path)
    say_network(escrow.network)
    _deposit(escrow, amount, payer(mnemonic_file, escrow.network), liteservers)


@command.command("close")
@_file
@liteservers_option
@mnemonic_option
@no_qr_option
@click.option("--wait", is_flag=True, help="Stay until the window is over, and finalize.")
@click.option("--together", is_flag=True, help="Have the operator sign what it is owed, and close at once.")
@click.option("--at-most", type=TON, help="With --together: refuse when the operator says that more is owed, in TON.")
@click.option("--yes", is_flag=True, help="With --together and --at-most: do not ask.")
@click.option("--base-url", envvar="COCOON_BASE_URL", show_envvar=True, help="With --together: the gateway, up to /v1.")
@click.option("--api-key", envvar="COCOON_API_KEY", hidden=True, default="")
def close(
    *, path: Path, liteservers: Path | None, mnemonic_file: Path | None, wait: bool, together: bool,
    at_most: int | None, yes: bool, base_url: str | None, api_key: str,
) -> None:  # fmt: skip
    """Leave: ask for the close, and once the window is over have the rest paid back. Run it again to go on.

    No gateway is asked, except with --together. Without words, links for the wallet that the escrow names are shown.
    """
    escrow = read_escrow_file(path)
    say_network(escrow.network)
    who = payer(mnemonic_file, escrow.network)
    if together:
        if base_url is None or (yes and at_most is None):
            raise click.UsageError("--together needs --base-url, and --yes needs --at-most")
        data = _close_together(escrow, Gateway(base_url, api_key), who, liteservers, at_most, ask=not yes)
    else:
        data = on_chain(liteservers, escrow.network, lambda chain: _leave(EscrowOwner(chain, escrow), who, wait=wait))
    if data is not None:
        _describe(escrow, data)


@command.command("status")
@_file
@liteservers_option
def status(*, path: Path, liteservers: Path | None) -> None:
    """What the chain says of it, proven."""
    escrow = read_escrow_file(path)
    say_network(escrow.network)
    data = on_chain(liteservers, escrow.network, lambda chain: EscrowOwner(chain, escrow).read())
    if data is None:
        click.echo(f"Escrow {escrow.address}: nothing was deposited yet.")
        return
    _describe(escrow, data)


def _deposit(escrow: EscrowFile, amount: int, who: Payer, liteservers: Path | None) -> None:
    what = f"deposit {ton(amount)} TON"
    if who.wallet is None and liteservers is None:
        link = deposit_link(escrow.address, escrow.init, amount, global_id=escrow.network, query_id=new_query_id())
        show_link(what, link)
        return

    async def top_up(chain: Chain) -> EscrowData | None:
        owner = EscrowOwner(chain, escrow)
        return await who.pay(owner, await owner.top_up(amount), what)

    data = on_chain(liteservers, escrow.network, top_up)
    if data is not None:
        click.echo(f"Deposited {ton(data.deposited_nano)} TON in all.")


def _close_together(
    escrow: EscrowFile, gateway: Gateway, who: Payer, liteservers: Path | None, at_most: int | None, *, ask: bool
) -> EscrowData | None:
    """Close on the operator's terms; None where a link was shown instead. Where it is closed already, how it was."""
    data = on_chain(liteservers, escrow.network, lambda chain: EscrowOwner(chain, escrow).read())
    if data is None:
        raise ContractError("nothing was deposited: there is nothing to close")
    if data.phase is EscrowPhase.CLOSED:
        return data
    agreed = agree(escrow, gateway, SystemClock())
    accept(agreed, data, at_most, ask=ask)
    return on_chain(liteservers, escrow.network, lambda chain: close_agreed(chain, escrow, agreed, who))


async def _leave(owner: EscrowOwner, who: Payer, *, wait: bool) -> EscrowData | None:
    """As far as it goes now; None where a link was shown instead."""
    data = await owner.read()
    if data is None:
        raise ContractError("nothing was deposited: there is nothing to close")
    if data.phase is EscrowPhase.OPEN:
        data = await who.pay(owner, owner.request_close(), "ask for the close")
        if data is None:
            return None
        click.echo("The close is requested.")
    while data.phase is EscrowPhase.CLOSING:
        left_s = data.close_requested_at + data.config.challenge_s - await owner.chain_time()
        if left_s <= 0:
            return await who.pay(owner, owner.finalize(), "have the rest paid back")
        if not wait:
            break
        await asyncio.sleep(min(left_s, LOOK_S))
    return data


def _describe(escrow: EscrowFile, data: EscrowData) -> None:
    click.echo(f"Escrow {escrow.address}: {data.phase.name.lower()}.")
    click.echo(f"Deposited {ton(data.deposited_nano)} TON, of which {ton(data.settled_nano)} TON are settled.")
    rest = data.deposited_nano - data.settled_nano
    match data.phase:
        case EscrowPhase.OPEN:
            click.echo(f"{ton(rest)} TON come back when you close it.")
        case EscrowPhase.CLOSING:
            ends = data.close_requested_at + data.config.challenge_s
            click.echo(f"Run `cocoon escrow close` again after {moment(ends)} (the chain's time) for {ton(rest)} TON.")
        case EscrowPhase.CLOSED:
            click.echo(f"{ton(rest)} TON were paid back to {data.config.client}.")
