"""`cocoon biller`: settle with the chain, and what an operator has to know of it."""

import asyncio
import signal
from pathlib import Path

import click
import msgspec

from billing.postgres.alarms import Alarm, Alarms
from billing.postgres.pool import Pool, open_pool
from billing.settings import SettingsError, read_database_settings
from billing.settlement.biller import run_biller
from billing.settlement.deployment import RENT_AND_GAS_NANO, payout_config
from billing.settlement.settings import read_biller_settings, read_global_id, read_voucher_key, read_wallet_key
from billing.ton.chain import Chain
from billing.ton.liteclient import LiteChain
from billing.ton.settings import LITESERVERS_VARIABLE, liteservers_setting
from billing.ton.wallet import OperatorWallet
from cli.contract import Contract, new_query_id
from cli.database import run_on_pool
from cli.wallet import liteservers_option, on_chain, say_network
from cocoon.clock import SystemClock
from cocoon.contracts.codes import code_of
from cocoon.contracts.payout import CODE, Fund, PayoutData, payout_init
from cocoon.logs import configure_logging
from cocoon.money import BASIS_POINTS

STOP_AGAIN_S = 1.0


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Watch deposits, settle vouchers, post epochs and pay workers. A second one stands by.

    Told by COCOON_DATABASE_URL, COCOON_LITESERVERS, COCOON_PAYOUT_CONTRACT, COCOON_BILLER_WALLET_KEY_FILE,
    COCOON_VOUCHER_KEY_FILE, COCOON_OPERATOR_KEY, COCOON_GLOBAL_ID, COCOON_EPOCH_S, COCOON_SETTLE_MIN,
    COCOON_CLAIM_MIN and COCOON_FEE_MIN (docs/settlement.md).
    """
    if context.invoked_subcommand is None:
        asyncio.run(_serve())


@command.command("deploy")
@liteservers_option
@click.option(
    "--fee-bps", type=click.IntRange(0, BASIS_POINTS), default=500, show_default=True,
    help="Basis points of what comes in that the operator may take at most.",
)  # fmt: skip
@click.option(
    "--delay", "delay_s", type=click.IntRange(1, 2**32 - 1), default=3600, show_default=True,
    help="Seconds that an epoch's root is public before it pays.",
)  # fmt: skip
def deploy_command(*, liteservers: Path | None, fee_bps: int, delay_s: int) -> None:
    """Deploy the operator's payout contract, and print what gateways and billers are told of it.

    It belongs to the wallet of COCOON_BILLER_WALLET_KEY_FILE, which pays for it and gets the fee. The same terms are
    the same contract: where it is there already nothing is sent.
    """
    global_id, voucher_key = read_global_id(), read_voucher_key()
    wallet = OperatorWallet(read_wallet_key(), global_id=global_id)
    say_network(global_id)
    config = payout_config(wallet.address, fee_bps=fee_bps, delay_s=delay_s, salt=bytes(32))
    init = payout_init(code_of(CODE), config)

    async def work(chain: Chain) -> None:
        contract = Contract(chain, init.address, init.code, PayoutData.decode, init)
        if await contract.read() is None:
            await contract.carry_out(wallet, Fund(new_query_id(), 0), RENT_AND_GAS_NANO, lambda _: True)

    on_chain(liteservers, global_id, work)
    click.echo(f"COCOON_OPERATOR_WALLET={wallet.address}")
    click.echo(f"COCOON_PAYOUT_CONTRACT={init.address}")
    if voucher_key is not None:
        click.echo(f"COCOON_SETTLEMENT_KEY_PUBLIC={voucher_key.public_key().public_bytes_raw().hex()}")


@command.command("alarms")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def alarms_command(context: click.Context, *, as_json: bool) -> None:
    """Show what needs an operator now; exit 1 when something does."""

    async def work(pool: Pool) -> list[Alarm]:
        return await Alarms(pool).open()

    found = run_on_pool(work)
    for alarm in found:
        if as_json:
            click.echo(msgspec.json.encode(alarm).decode())
        else:
            click.echo(f"{alarm.raised_at:%Y-%m-%d %H:%M:%S} {alarm.kind} {alarm.subject}: {alarm.detail}")
    if found:
        context.exit(1)
    if not as_json:
        click.echo("No alarms.")


async def _serve() -> None:
    settings, database = read_biller_settings(), read_database_settings()
    servers = liteservers_setting()
    if servers is None:
        raise SettingsError(f"set {LITESERVERS_VARIABLE} to a file in the form of TON's global.config.json")
    configure_logging("biller")
    clock = SystemClock()
    async with (
        open_pool(database.database_url, application="cocoon-biller") as pool,
        LiteChain(servers, clock, global_id=settings.global_id) as chain,
        asyncio.TaskGroup() as group,
    ):
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        serving = group.create_task(run_biller(settings, database.database_url, pool, chain, clock), name="biller")
        told = group.create_task(stopping.wait(), name="told to stop")
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        # What is signed is stored: whoever comes next goes on with it. A task group that loses its turn in the moment
        # in which it is cancelled forgets that it was, so it is told until it ends.
        while not serving.done():
            serving.cancel()
            await asyncio.wait({serving}, timeout=STOP_AGAIN_S)
