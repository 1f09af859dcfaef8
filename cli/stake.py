"""`cocoon worker stake`: stand behind a worker's receipts with a bond, and take it back.

The owner's wallet moves the bond; the staked key, which the agent has, moves nothing. Everything but the network's
terms comes from liteservers, with proofs.
"""

import datetime as dt
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.ton.chain import Chain
from cli.addresses import ADDRESS
from cli.amounts import SOME_TON
from cli.contract import Step, new_query_id
from cli.enrol import Gateway
from cli.private_files import write_private
from cli.stake_owner import BOND_EXTRA_NANO, StakeOwner, require_live, withdrawable_at
from cli.stake_terms import Meant, agreed_terms
from cli.tables import moment
from cli.wallet import (
    Payer,
    liteservers_option,
    mnemonic_option,
    network_option,
    no_qr_option,
    on_chain,
    payer,
    require_one,
    say_network,
    show_link,
    ton,
)
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.links import transfer_link
from cocoon.contracts.stake import CODE, Bond, StakeConfig, StakeData, StakePhase, stake_init
from cocoon.enrolment import StakeTermsAnswer
from workers.agent.staking import read_stake_config, stake_config_text

Command = TypeVar("Command", bound=Callable[..., object])
_FILE = click.Path(dir_okay=False, path_type=Path)
_config_file = click.option(
    "--config-file", envvar="COCOON_STAKE_CONFIG_FILE", show_envvar=True, required=True, type=_FILE,
    help="What the stake is deployed with: its address follows from it. No secret, but keep it.",
)  # fmt: skip


class Stake(msgspec.Struct, frozen=True):
    """A stake on a network (`global_id`), and where its chain is read."""

    config: StakeConfig
    global_id: int
    liteservers: Path | None

    def read(self) -> StakeData | None:
        """What the chain says of it; None before the first bond."""
        return on_chain(self.liteservers, self.global_id, lambda chain: StakeOwner(chain, self.config).read())

    def move(self, next_step: Callable[[StakeOwner], Awaitable[Step[StakeData] | None]], who: Payer, what: str) -> None:
        """Take a step and say how the stake is then; where there is none to be taken, how it is already."""

        async def take(chain: Chain) -> StakeData | None:
            owner = StakeOwner(chain, self.config)
            step = await next_step(owner)
            return await owner.bonded() if step is None else await who.pay(owner, step, what)

        data = on_chain(self.liteservers, self.global_id, take)
        if data is not None:
            require_live(data)
            self.describe(data)

    def bond(self, amount_nano: int, who: Payer) -> None:
        """Bond; the link of somebody without liteservers deploys the stake too, in case it is not there."""
        what = f"bond {ton(amount_nano)} TON"
        if who.wallet is not None or self.liteservers is not None:
            self.move(lambda owner: owner.bond(amount_nano), who, what)
            return
        init, body = stake_init(code_of(CODE), self.config), Bond(new_query_id(), amount_nano).encode()
        value = amount_nano + BOND_EXTRA_NANO
        show_link(what, transfer_link(init.address, value, body, global_id=self.global_id, init=init))

    def describe(self, data: StakeData) -> None:
        """Say how it is."""
        click.echo(f"Stake {stake_init(code_of(CODE), self.config).address}: {data.phase.name.lower()}.")
        if data.phase is StakePhase.SLASHED:
            click.echo("Somebody proved that its worker lied: nothing is left.")
            return
        click.echo(f"Bonded {ton(data.bond_nano)} TON.")
        if data.unbonding_nano:
            click.echo(
                f"{ton(data.unbonding_nano)} TON more wait since {moment(data.unbond_at)}, "
                f"and can be withdrawn from {moment(withdrawable_at(data))} on."
            )
        click.echo(f"Slashing it now would pay {ton(data.bounty_nano)} TON to whoever does, and burn the rest.")


def _stake_options(function: Command) -> Command:
    """What every command on an existing stake is told; all but `status` also who pays."""
    for option in (liteservers_option, network_option, _config_file):
        function = option(function)
    return function


@click.group("stake")
def command() -> None:
    """Stand behind your worker's receipts with a bond, and take it back (docs/enrolment.md)."""


@command.command("open")
@click.option(
    "--key-file", envvar="COCOON_STAKED_KEY_FILE", show_envvar=True, required=True, type=_FILE,
    help="Where the staked key is written, for the agent.",
)  # fmt: skip
@_config_file
@liteservers_option
@mnemonic_option
@no_qr_option
@click.option("--amount", type=SOME_TON, required=True, help="The first bond, in TON.")
@click.option("--gateway-url", envvar="COCOON_GATEWAY_URL", show_envvar=True, help="Whom to ask for the terms.")
@click.option(
    "--gateway-ca", envvar="COCOON_GATEWAY_CA", show_envvar=True, type=_FILE,
    help="Certificates (PEM) of a private authority that vouches for the gateway.",
)  # fmt: skip
@click.option("--owner", type=ADDRESS, help="Your wallet's address, where there are no words: a link is shown then.")
@click.option("--operator", type=ADDRESS, help="The operator's wallet that you mean; another one is refused.")
@click.option(
    "--operator-key", envvar="COCOON_OPERATOR_KEY", show_envvar=True,
    help="The operator's public key that you mean (hex); another one is refused.",
)  # fmt: skip
@click.option("--unbond", type=click.IntRange(1), help="Seconds from asking for the bond to having it.")
@click.option("--bounty", type=click.IntRange(0), help="Basis points of the bond for whoever proves a lie.")
@click.option("--global-id", envvar="COCOON_GLOBAL_ID", show_envvar=True, type=int, help="The TON network.")
def open_command(
    *, key_file: Path, config_file: Path, liteservers: Path | None, mnemonic_file: Path | None, amount: int,
    gateway_url: str | None, gateway_ca: Path | None, owner: Address | None, operator: Address | None,
    operator_key: str | None, unbond: int | None, bounty: int | None, global_id: int | None,
) -> None:  # fmt: skip
    """Make the staked key, deploy the stake, and bond. The terms come from a gateway, or are all given."""
    for path in (key_file, config_file):
        if path.exists():
            raise click.UsageError(f"{path} exists: a stake's files are never replaced")
    require_one(mnemonic_file, owner, "--owner")
    meant = Meant(
        operator=operator, operator_key=_key(operator_key), unbond_s=unbond, bounty_bps=bounty, global_id=global_id
    )  # fmt: skip
    network = _said(meant) if gateway_url is None else Gateway(gateway_url, gateway_ca).stake_terms()
    terms = agreed_terms(network, meant)
    who = payer(mnemonic_file, network.global_id)
    seed = secrets.token_bytes(32)
    config = StakeConfig(
        owner=who.owner(owner), operator=terms.operator,
        staked_key=Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(),
        operator_key=terms.operator_key, unbond_s=terms.unbond_s, bounty_bps=terms.bounty_bps,
        salt=secrets.token_bytes(32),
    )  # fmt: skip
    say_network(network.global_id)
    write_private(key_file, seed.hex().encode() + b"\n")
    write_private(config_file, stake_config_text(config))
    _say_opened(config, key_file, config_file, network.global_id)
    Stake(config, network.global_id, None if who.wallet is None else liteservers).bond(amount, who)


@command.command("top-up")
@_stake_options
@mnemonic_option
@no_qr_option
@click.option("--amount", type=SOME_TON, required=True, help="How much more, in TON.")
def top_up(
    *, config_file: Path, global_id: int, liteservers: Path | None, mnemonic_file: Path | None, amount: int
) -> None:
    """Bond more, from any wallet. Deploys the stake where `open` did not come so far."""
    say_network(global_id)
    Stake(read_stake_config(config_file), global_id, liteservers).bond(amount, payer(mnemonic_file, global_id))


@command.command("unbond")
@_stake_options
@mnemonic_option
@no_qr_option
@click.option("--amount", type=SOME_TON, help="How much, in TON; default everything that is bonded.")
@click.option("--yes", is_flag=True, help="Do not ask where the wait begins again for what waits already.")
def unbond(
    *, config_file: Path, global_id: int, liteservers: Path | None, mnemonic_file: Path | None, amount: int | None,
    yes: bool,
) -> None:  # fmt: skip
    """Ask for the bond: after the wait it can be withdrawn. Until it is, it can be slashed."""
    say_network(global_id)
    stake, who = Stake(read_stake_config(config_file), global_id, liteservers), payer(mnemonic_file, global_id)
    before = stake.read()
    if before is not None and before.unbonding_nano and before.bond_nano and not yes:
        click.confirm(
            f"{ton(before.unbonding_nano)} TON wait already, and their wait begins again. Go on?", abort=True, err=True
        )
    stake.move(lambda owner: owner.unbond(amount), who, "ask for the bond")


@command.command("withdraw")
@_stake_options
@mnemonic_option
@no_qr_option
def withdraw(*, config_file: Path, global_id: int, liteservers: Path | None, mnemonic_file: Path | None) -> None:
    """Have what has waited long enough paid to the owner's wallet."""
    say_network(global_id)
    stake, who = Stake(read_stake_config(config_file), global_id, liteservers), payer(mnemonic_file, global_id)
    stake.move(StakeOwner.withdraw, who, "have what was unbonded")


@command.command("status")
@_stake_options
def status(*, config_file: Path, global_id: int, liteservers: Path | None) -> None:
    """What the chain says of it, proven."""
    say_network(global_id)
    stake = Stake(read_stake_config(config_file), global_id, liteservers)
    data = stake.read()
    if data is None:
        click.echo("Nothing was bonded yet.")
        return
    stake.describe(data)


def _said(meant: Meant) -> StakeTermsAnswer:
    """The terms of a network whose gateway is not asked.

    Raises:
        click.UsageError: they are not all given.
    """
    operator, key, unbond_s, bounty_bps, global_id = msgspec.structs.astuple(meant)
    if None in {operator, key, unbond_s, bounty_bps, global_id}:
        raise click.UsageError(
            "without --gateway-url give --operator, --operator-key, --unbond, --bounty and --global-id"
        )
    return StakeTermsAnswer(
        global_id=global_id, operator=str(operator), operator_key=key.hex(), code_hash=code_of(CODE).hash.hex(),
        unbond_s_min=unbond_s, bounty_bps_min=bounty_bps,
    )  # fmt: skip


def _key(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        raise click.UsageError("--operator-key is 64 hexadecimal digits") from None


def _say_opened(config: StakeConfig, key_file: Path, config_file: Path, global_id: int) -> None:
    wait, bounty = dt.timedelta(seconds=config.unbond_s), config.bounty_bps / 100
    click.echo(f"Stake {stake_init(code_of(CODE), config).address}, owned by {config.owner}.")
    click.echo(f"For the operator {config.operator}; {bounty:g} % of it go to whoever proves that the worker lied.")
    click.echo(f"What you unbond returns after {config.unbond_s} s ({wait}), and can be slashed until then.")
    click.echo("For the agent:")
    click.echo(f"COCOON_STAKED_KEY_FILE={key_file.absolute()}")
    click.echo(f"COCOON_STAKE_CONFIG_FILE={config_file.absolute()}")
    click.echo(f"COCOON_GLOBAL_ID={global_id}")
