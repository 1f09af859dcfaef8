"""`cocoon escrow`: fund your use of a network from a contract of your own, and leave it whenever you like.

Closing talks to liteservers only: it works when the gateway does not.
"""

import asyncio
import base64
import secrets
from pathlib import Path
from typing import TypeVar

import click
import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.ton.chain import Chain
from cli.addresses import ADDRESS
from cli.amounts import TON
from cli.contract import ContractError, new_query_id
from cli.escrow_owner import EscrowOwner
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
from cocoon.cells import write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.deposits import deposit_link
from cocoon.contracts.escrow import CODE, EscrowConfig, EscrowData, EscrowPhase
from cocoon_client.escrow_file import EscrowFile, read_escrow_file

CALL_S_MAX = 30.0
LOOK_S = 30
"""How often a close that waits looks at the chain's time."""
T = TypeVar("T")


class Terms(msgspec.Struct, frozen=True):
    """What a gateway says that escrows must say."""

    global_id: int
    operator: str
    payout: str
    operator_key: str
    code_hash: str
    challenge_s_min: int


class _Escrows(msgspec.Struct, frozen=True):
    terms: Terms | None


class _Registered(msgspec.Struct, frozen=True):
    escrow: str


class Gateway:
    """The calls of an opening; `base_url` ends in `/v1`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._url = base_url.rstrip("/") + "/account/escrows"
        self._headers = {"authorization": f"Bearer {api_key}"}

    def terms(self) -> Terms:
        """What escrows must say here.

        Raises:
            ContractError: it does not answer, or takes none.
        """
        found = self._call("GET", None, _Escrows).terms
        if found is None:
            raise ContractError("this gateway takes no escrows")
        return found

    def register(self, escrow: EscrowFile) -> str:
        """Have it watched; the address that the gateway makes of it.

        Raises:
            ContractError: it does not answer, or refuses.
        """
        config = base64.b64encode(write_boc(escrow.config.encode())).decode()
        body = {"code_hash": escrow.init.code.hash.hex(), "config": config}
        return self._call("POST", msgspec.json.encode(body), _Registered).escrow

    def _call(self, method: str, body: bytes | None, kind: type[T]) -> T:
        headers = {**self._headers, "content-type": "application/json"}
        try:
            with httpx.Client(timeout=CALL_S_MAX, trust_env=False) as client:
                answer = client.request(method, self._url, content=body, headers=headers)
            if answer.is_success:
                return msgspec.json.decode(answer.content, type=kind)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise ContractError(f"the gateway does not answer: {type(error).__name__}") from error
        raise ContractError(f"the gateway refused ({answer.status_code}): {_message(answer.content)}")


def _message(body: bytes) -> str:
    try:
        found = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"].get("message")
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        found = None
    return str(found)[:300]


def require_pinned(terms: Terms, operator: Address | None) -> None:
    """Check what a gateway says against what its user knows.

    Raises:
        ContractError: another contract than ours, or another operator than was meant.
    """
    if terms.code_hash != code_of(CODE).hash.hex():
        raise ContractError("the gateway wants another contract than this program knows")
    if operator is not None and Address.parse(terms.operator) != operator:
        raise ContractError(f"the gateway's operator is {terms.operator}, not {operator}")


def new_escrow(
    terms: Terms, client: Address, *, challenge_s: int | None, delegated: bool, allow_max: int, allow_rate: int
) -> EscrowFile:
    """An escrow with a session key of its own; with `delegated`, the operator may also take what the allowance says.

    Raises:
        MalformedError: the gateway's terms are no terms.
    """
    seed = secrets.token_bytes(32)
    config = EscrowConfig(
        client=client, operator=Address.parse(terms.operator), payout=Address.parse(terms.payout),
        voucher_key=Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(),
        operator_key=bytes.fromhex(terms.operator_key) if delegated else bytes(32),
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
@click.option("--amount", type=TON, required=True, help="The first deposit, in TON.")
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
        raise click.UsageError(f"{path} exists: an escrow's file is never replaced")
    require_one(mnemonic_file, client, "--client")
    gateway = Gateway(base_url, api_key)
    terms = gateway.terms()
    require_pinned(terms, operator)
    who = payer(mnemonic_file, terms.global_id)
    escrow = new_escrow(
        terms, who.owner(client), challenge_s=challenge, delegated=delegated, allow_max=allow_max, allow_rate=allow_rate
    )
    escrow.write(path)
    if gateway.register(escrow) != str(escrow.address):
        raise ContractError("the gateway watches another address than this escrow's: deposit nothing")
    say_network(escrow.network)
    click.echo(f"Escrow {escrow.address}, registered. Its file is {path}: keep it, it holds the session key.")
    _deposit(escrow, amount, who, None if who.wallet is None else liteservers)


@command.command("top-up")
@_file
@liteservers_option
@mnemonic_option
@no_qr_option
@click.option("--amount", type=TON, required=True, help="How much more, in TON.")
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
def close(*, path: Path, liteservers: Path | None, mnemonic_file: Path | None, wait: bool) -> None:
    """Leave: ask for the close, and once the window is over have the rest paid back. Run it again to go on.

    No gateway is asked. Without words, links for the wallet that the escrow names are shown.
    """
    escrow = read_escrow_file(path)
    say_network(escrow.network)
    who = payer(mnemonic_file, escrow.network)
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
            click.echo(f"Run `cocoon escrow close` again after {ends} (Unix seconds of the chain) for {ton(rest)} TON.")
        case EscrowPhase.CLOSED:
            click.echo(f"{ton(rest)} TON were paid back to {data.config.client}.")
