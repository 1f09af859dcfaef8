"""What commands that move a person's own money share: which chain and wallet, and how amounts are shown."""

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from billing.ton.chain import Chain
from billing.ton.liteclient import LiteChain
from billing.ton.settings import LITESERVERS_VARIABLE, read_liteservers
from billing.ton.wallet import OperatorWallet
from cli.contract import Contract, Data, Step
from cli.private_files import read_private
from cli.qr import QRTooLargeError, qr_lines
from cocoon.addresses import Address
from cocoon.clock import SystemClock
from cocoon.contracts.links import MAINNET
from cocoon.mnemonic import read_words, wallet_key
from cocoon.money import NUMERATOR_PER_NANO, decimal_units

SIMULATED_NETWORK = -3
T = TypeVar("T")
_NO_QR = "cocoon.no_qr"


def _note_no_qr(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  click's form
    if value:
        ctx.meta[_NO_QR] = True


liteservers_option = click.option(
    "--liteservers", envvar=LITESERVERS_VARIABLE, show_envvar=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Liteservers, in the form of TON's global.config.json.",
)  # fmt: skip
mnemonic_option = click.option(
    "--mnemonic-file", envvar="COCOON_MNEMONIC_FILE", show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path), help="The 24 words of your wallet v5r1, mode 0600.",
)  # fmt: skip
no_qr_option = click.option(
    "--no-qr", is_flag=True, expose_value=False, callback=_note_no_qr, help="Show links as text only."
)
network_option = click.option(
    "--global-id", envvar="COCOON_GLOBAL_ID", show_envvar=True, type=int, default=MAINNET, show_default=True,
    help="The TON network: -3 is the simulated one of `make dev`.",
)  # fmt: skip


def on_chain(liteservers: Path | None, global_id: int, work: Callable[[Chain], Awaitable[T]]) -> T:
    """Do something with the chain of this network.

    Raises:
        click.UsageError: nobody has said which liteservers.
        SettingsError: the file cannot be read, or is none.
    """
    if liteservers is None:
        raise click.UsageError(f"say which liteservers: --liteservers FILE or {LITESERVERS_VARIABLE}")
    servers = read_liteservers(liteservers)

    async def run() -> T:
        async with LiteChain(servers, SystemClock(), global_id=global_id) as chain:
            return await work(chain)

    return asyncio.run(run())


def read_wallet(words: Path, global_id: int) -> OperatorWallet:
    """The wallet v5r1 of the words in a private file.

    Raises:
        PrivateFileError: the file cannot be read, or others may read it.
        MalformedError: these are no words.
    """
    return OperatorWallet(wallet_key(read_words(read_private(words))), global_id=global_id)


class Payer(NamedTuple):
    """Who pays on a network: the wallet of the words that were given, or without words any that opens a link."""

    global_id: int
    wallet: OperatorWallet | None

    def owner(self, named: Address | None) -> Address:
        """Whose a new contract is: the wallet's, or of the address that was named where there are no words."""
        owner = named if self.wallet is None else self.wallet.address
        assert owner is not None, "require_one was asked"
        return owner

    async def pay(self, contract: Contract[Data], step: Step[Data], what: str) -> Data | None:
        """Take a step and wait for it; without a wallet show the link that takes it, and None.

        Raises:
            ContractError: see `Contract.take`.
        """
        if self.wallet is not None:
            return await contract.take(step, self.wallet)
        show_link(what, await contract.link(step, self.global_id))
        return None


def require_one(words: Path | None, named: Address | None, option: str) -> None:
    """Check that the owner of a new contract is said in one way.

    Raises:
        click.UsageError: in none, or in both.
    """
    if (words is None) == (named is None):
        raise click.UsageError(f"give --mnemonic-file, or {option} to pay by a link")


def payer(words: Path | None, global_id: int) -> Payer:
    """Who pays, by the words in a private file or without any.

    Raises:
        PrivateFileError, MalformedError: as `read_wallet`.
    """
    return Payer(global_id, None if words is None else read_wallet(words, global_id))


def show_link(what: str, link: str) -> None:
    """Have somebody open a link with a wallet app: as text, and on a terminal as a QR code where it fits."""
    click.echo(f"Open this in a wallet to {what}:\n{link}")
    if _NO_QR in click.get_current_context().meta or not sys.stdout.isatty():
        return
    try:
        lines = qr_lines(link, shutil.get_terminal_size().columns)
    except QRTooLargeError as error:
        click.echo(f"(No QR code: {error}.)", err=True)
    else:
        click.echo("\n".join(lines))


def say_network(global_id: int) -> None:
    """Warn where the coins are worth nothing."""
    if global_id == SIMULATED_NETWORK:
        click.echo("SIMULATED chain (local development): these are not real TON.", err=True)


def ton(nano: int) -> str:
    """An amount as people read it, in TON."""
    return decimal_units(nano * NUMERATOR_PER_NANO)
