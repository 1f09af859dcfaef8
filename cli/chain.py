"""`cocoon chain`: the local chain of development, a SIMULATED TON; run it, fill wallets, move its clock."""

import json
import os
from pathlib import Path

import click
import msgspec

from billing.ton.mnemonics import new_mnemonic
from cli.addresses import ADDRESS
from cli.amounts import SOME_TON
from cli.chain_control import ChainControl, find_control
from cli.dev.chain import BLOCK_MS, TICK_MS, EmbeddedChain
from cli.dev.settings import read_dev_settings
from cli.private_files import write_private
from cli.tables import moment
from cli.wallet import read_wallet
from cocoon.addresses import Address
from cocoon.clock import system_random
from cocoon.money import Amount

DIRECTORY = "chain"
MS_MAX = 3_600_000
SECONDS_MAX = 10 * 366 * 86_400


def _state() -> Path:
    """Where `make dev` keeps its chain, too."""
    return read_dev_settings().state / DIRECTORY


def _control(url: str | None) -> ChainControl:
    return ChainControl(url) if url else find_control(_state())


_CONTROL = click.option("--control", metavar="URL", help="Control port; that of the chain in the state directory.")


@click.group()
def command() -> None:
    """The local chain: a SIMULATED TON of one machine. Its coins are worth nothing.

    State is kept in COCOON_STATE_DIR/chain (.cocoon/chain), where `make dev` keeps it; see docs/chain.md.
    """


@command.command("up")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), help="Where to keep it.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Of the liteserver; any free one.")
@click.option("--control-port", type=click.IntRange(0, 65_535), default=0, help="Any free one.")
@click.option("--block-ms", type=click.IntRange(0, MS_MAX), default=BLOCK_MS, show_default=True)
@click.option("--tick-ms", type=click.IntRange(0, MS_MAX), default=TICK_MS, show_default=True)
def up_command(state: Path | None, port: int, control_port: int, block_ms: int, tick_ms: int) -> None:
    """Run a chain of its own in the foreground, until Ctrl-C; `make dev` has one already."""
    server = EmbeddedChain(state or _state(), port=port, control_port=control_port, block_ms=block_ms, tick_ms=tick_ms)
    server.prepare()
    click.echo(f"A SIMULATED chain; for COCOON_LITESERVERS: {server.config}")
    launch = server.launch()
    os.execve(launch.argv[0], launch.argv, dict(launch.env))  # noqa: S606  nothing of this process is needed any more


@command.command("faucet")
@click.argument("address", type=ADDRESS)
@click.argument("amount", type=SOME_TON)
@_CONTROL
def faucet_command(address: Address, amount: int, control: str | None) -> None:
    """Give ADDRESS simulated coins: AMOUNT in TON."""
    reached = _control(control).faucet(str(address), amount)
    click.echo(f"{Amount(amount)} (simulated) to {address} in block {reached.seqno}")


@command.command("wallet")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("amount", type=SOME_TON)
@_CONTROL
def wallet_command(file: Path, amount: int, control: str | None) -> None:
    """Make a wallet v5r1 with AMOUNT simulated TON; its 24 words are written to FILE, for --mnemonic-file."""
    if file.exists():
        raise click.UsageError(f"{file} exists: words are never replaced")
    asked = _control(control)
    global_id = asked.info().global_id
    write_private(file, " ".join(new_mnemonic(system_random())).encode() + b"\n")
    wallet = read_wallet(file, global_id).address
    asked.faucet(str(wallet), amount)
    click.echo(f"{Amount(amount)} (simulated) to {wallet}; its words are in {file}")


@command.command("advance")
@click.argument("seconds", type=click.IntRange(0, SECONDS_MAX))
@_CONTROL
def advance_command(seconds: int, control: str | None) -> None:
    """Move the chain's clock forward; it never goes back."""
    reached = _control(control).advance(seconds)
    click.echo(f"block {reached.seqno}, {moment(reached.now)}")


@command.command("info")
@click.option("--json", "as_json", is_flag=True)
@_CONTROL
def info_command(as_json: bool, control: str | None) -> None:  # noqa: FBT001  click's form
    """How far the chain is, and where it listens."""
    asked = _control(control)
    info = asked.info()
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(info), indent=2))
        return
    server = info.liteserver
    rows = {
        "chain": f"SIMULATED, global id {info.global_id}",
        "block": f"{info.seqno}, {moment(info.now)}"
        + (f" (the clock was moved by {info.offset_s} s)" if info.offset_s else ""),
        "accounts": f"{info.accounts} with {Amount(int(info.total_nano))}; {info.waiting} messages wait",
        "liteserver": f"{server.host}:{server.port}, key {server.public_key}",
        "control": asked.url,
    }
    for name, text in rows.items():
        click.echo(f"{name:<11}{text}")


@command.command("faults")
@click.argument("wanted", nargs=-1, metavar="[NAME=VALUE]...")
@_CONTROL
def faults_command(wanted: tuple[str, ...], control: str | None) -> None:
    """Let the chain do wrong, as `drop=1` or `clear=true` (docs/chain.md); without any, show what is set."""
    faults = _control(control).faults(**dict(map(_fault, wanted)))
    for name, value in faults.items():
        click.echo(f"{name:<16}{json.dumps(value)}")


def _fault(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
