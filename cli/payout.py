"""`cocoon worker payout`: what the payout contract owes your wallet, and how to be paid without the operator."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import httpx
import structlog

from billing.settlement.actions import CLAIM_NANO
from billing.ton.chain import AccountStatus, Chain, ChainError
from cli.addresses import ADDRESS
from cli.contract import Contract, ContractError, new_query_id
from cli.payee import Due, PayeeError, read_due
from cli.private_files import write_private
from cli.wallet import liteservers_option, mnemonic_option, network_option, on_chain, read_wallet, say_network, ton
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.epochs import EPOCHS_PATH, EpochLeaves
from cocoon.contracts.payout import CODE, Claim, PayoutData
from cocoon.errors import CocoonError, MalformedError
from cocoon.logs import configure_logging

CALL_S_MAX = 60.0
LEAVES_BYTES_MAX = 256 * 1024 * 1024
POLL_S = 0.3
CLAIMED_S_MAX = 180.0
"""How long a claim that the contract has taken is waited for at the wallet's account of it."""
log = structlog.get_logger()
Command = TypeVar("Command", bound=Callable[..., object])


class GatewayAnswerError(CocoonError):
    """The gateway does not answer, or not with an epoch."""

    code = "gateway_unusable"


@click.group("payout")
def command() -> None:
    """What the operator's payout contract owes your wallet, and how to be paid without the operator."""


def _common(function: Command) -> Command:
    """The options that every command here has."""
    options = (
        click.option(
            "--payout", envvar="COCOON_PAYOUT_CONTRACT", show_envvar=True, type=ADDRESS, required=True,
            help="The operator's payout contract. Know it from elsewhere than from a gateway.",
        ),
        network_option,
        liteservers_option,
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


_wallet = click.option("--wallet", type=ADDRESS, required=True, help="The wallet that your worker proved.")
_base_url = click.option("--base-url", envvar="COCOON_BASE_URL", show_envvar=True, help="A gateway, up to /v1.")


@command.command("status")
@_common
@click.option(
    "--wallet", "wallets", envvar="COCOON_WORKER_WALLETS", show_envvar=True, type=ADDRESS, required=True, multiple=True,
    help="A wallet that a worker of yours proved; as often as you like.",
)  # fmt: skip
def status(*, payout: Address, global_id: int, liteservers: Path | None, wallets: tuple[Address, ...]) -> None:
    """What wallets have had, and which epoch pays."""
    say_network(global_id)

    async def work(chain: Chain) -> list[Due]:
        return [await read_due(chain, payout, wallet) for wallet in wallets]

    found = on_chain(liteservers, global_id, work)
    for due in found:
        click.echo(f"Paid to {due.wallet}: {ton(due.paid_nano)} TON in all.")
        if due.owed_nano:
            click.echo(f"{ton(due.owed_nano)} TON came back from the wallet; the next claim sends them again.")
    last = found[-1]
    click.echo(f"Epoch {last.active_epoch} pays." if last.active_epoch else "No epoch pays yet.")
    roots = last.contract.roots
    if roots.pending_epoch and roots.pending_epoch != last.active_epoch:
        click.echo(f"Epoch {roots.pending_epoch} pays in {roots.pending_at - last.block.gen_utime} s.")


@command.command("claim")
@_common
@mnemonic_option
@_base_url
@click.option(
    "--leaves", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The epoch's leaves as `watch` kept them; no gateway is asked then.",
)  # fmt: skip
@click.option("--wallet", type=ADDRESS, help="Whom to have paid; the paying wallet itself if not said.")
def claim(
    *, payout: Address, global_id: int, liteservers: Path | None, mnemonic_file: Path | None, base_url: str | None,
    leaves: Path | None, wallet: Address | None,
) -> None:  # fmt: skip
    """Have the wallet paid what the active epoch says. Needs nobody's help; any wallet can pay the gas for it."""
    if leaves is None and base_url is None:
        raise click.UsageError("give --leaves FILE, or --base-url to ask a gateway for them")
    if mnemonic_file is None:
        raise click.UsageError("a claim needs --mnemonic-file: the words of the wallet that pays its gas")
    say_network(global_id)
    payer = read_wallet(mnemonic_file, global_id)
    known = read_leaves(leaves) if leaves is not None else fetch_leaves(base_url)

    async def work(chain: Chain) -> tuple[Due, Due]:
        before = await read_due(chain, payout, wallet or payer.address)
        message = before.claim(known, query_id=new_query_id())
        await _require_wallet(chain, before, payer.address)
        contract = Contract(chain, payout, code_of(CODE), PayoutData.decode)
        # What tells is the wallet's account of it, not the contract's sums: others claim there, too.
        await contract.carry_out(payer, message, CLAIM_NANO, lambda _: True)
        return before, await _until_claimed(chain, before, message)

    before, after = on_chain(liteservers, global_id, work)
    click.echo(f"Paid {ton(after.paid_nano - before.paid_nano)} TON to {after.wallet}; {ton(after.paid_nano)} in all.")


@command.command("watch")
@_common
@_wallet
@_base_url
@click.option(
    "--paid-file", type=click.Path(dir_okay=False, path_type=Path), required=True,
    help="Where the worker's agent reads what was paid (COCOON_PAID_FILE).",
)  # fmt: skip
@click.option(
    "--leaves", type=click.Path(dir_okay=False, path_type=Path),
    help="Where to keep the leaves of the newest epoch, with --base-url: what a claim needs when no gateway answers.",
)  # fmt: skip
@click.option("--interval", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Look once.")
def watch(
    *, payout: Address, global_id: int, liteservers: Path | None, wallet: Address, base_url: str | None,
    paid_file: Path, leaves: Path | None, interval: float, once: bool,
) -> None:  # fmt: skip
    """Keep up what the wallet was paid, for its worker, and the proofs that it can claim with."""
    if leaves is not None and base_url is None:
        raise click.UsageError("--leaves needs --base-url: the gateway that shows them")
    configure_logging("payout-watch")
    say_network(global_id)

    async def work(chain: Chain) -> None:
        while True:
            try:
                due = await read_due(chain, payout, wallet)
                write_private(paid_file, due.paid(global_id).encode())
                if leaves is not None and base_url is not None:
                    await asyncio.to_thread(keep_leaves, due, base_url, leaves)
            except (ChainError, PayeeError, GatewayAnswerError, MalformedError) as error:
                if once:
                    raise
                log.warning("payout_not_seen", error=error.code, reason=str(error))
            if once:
                return
            await asyncio.sleep(interval)

    on_chain(liteservers, global_id, work)


def keep_leaves(due: Due, base_url: str, path: Path) -> None:
    """Keep the newest leaves that the contract has the root of; what is kept is replaced by nothing less.

    Raises:
        GatewayAnswerError, MalformedError: there are none; what is kept stays.
        PayeeError: the contract has another root. Where that one waits, claim under the active epoch before it pays.
    """
    found = fetch_leaves(base_url)
    due.require_known(found)
    if not path.exists() or read_leaves(path).epoch < found.epoch:
        write_private(path, found.encode())
        log.info("epoch_leaves_kept", epoch=found.epoch, path=str(path))


def fetch_leaves(base_url: str | None) -> EpochLeaves:
    """What a gateway says of the last epoch.

    Raises:
        GatewayAnswerError: it does not answer, or has none.
        MalformedError: it answers with something else.
    """
    assert base_url is not None, "the caller has checked it"
    url = base_url.rstrip("/").removesuffix("/v1") + EPOCHS_PATH + "/last"
    received = bytearray()
    try:
        with httpx.Client(timeout=CALL_S_MAX, trust_env=False) as client, client.stream("GET", url) as answer:
            for part in answer.iter_bytes():
                received += part
                if len(received) > LEAVES_BYTES_MAX:
                    raise GatewayAnswerError("the gateway's answer has no end")
            if not answer.is_success:
                raise GatewayAnswerError(f"the gateway has no epoch to show ({answer.status_code})")
    except httpx.HTTPError as error:
        raise GatewayAnswerError(f"the gateway does not answer: {type(error).__name__}") from error
    return EpochLeaves.decode(bytes(received))


def read_leaves(path: Path) -> EpochLeaves:
    """What `watch` kept.

    Raises:
        PayeeError: the file cannot be read.
        MalformedError: it is something else.
    """
    try:
        return EpochLeaves.decode(path.read_bytes())
    except OSError as error:
        raise PayeeError(f"{path}: {error.strerror}") from error


async def _require_wallet(chain: Chain, due: Due, payer: Address) -> None:
    """Check that a payment has where to go; the payer's own wallet is there once it has sent the claim.

    What is owed because it came back once is sent to any address.
    """
    if due.wallet == payer or due.owed_nano:
        return
    if (await chain.account(due.wallet)).status is not AccountStatus.ACTIVE:
        raise PayeeError(f"there is no wallet at {due.wallet} yet: the payment would come back")


async def _until_claimed(chain: Chain, before: Due, message: Claim) -> Due:
    try:
        async with asyncio.timeout(CLAIMED_S_MAX):
            while True:
                due = await read_due(chain, before.payout, before.wallet)
                if due.claimed_nano >= message.cumulative_nano and not due.in_flight_nano:
                    return due
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise ContractError("the contract has taken the claim; look at `cocoon worker payout status`") from None
