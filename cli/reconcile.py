"""`cocoon reconcile`: do usage, receipts, transfers and the contracts on the chain say the same?"""

import asyncio

import click
import msgspec

from billing.postgres.pool import open_pool
from billing.settings import SettingsError, read_database_settings
from billing.settlement.reconcile import LiteserverBehindError, reconcile
from billing.settlement.settings import read_global_id, read_payout
from billing.settlement.ties import Report, Tie
from billing.ton.liteclient import LiteChain
from billing.ton.settings import LITESERVERS_VARIABLE, liteservers_setting
from cli.tables import moment, print_table
from cocoon.clock import SystemClock

AGAIN_S = 1.0
CANNOT_TELL = 3
"""Exit status where the liteservers are behind the books: nothing was compared, and nothing is known to be wrong."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole report as one JSON object.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 600), default=0, show_default=True,
    help="Seconds to ask again for: money may be under way, or the liteservers behind.",
)  # fmt: skip
@click.pass_context
def command(context: click.Context, *, as_json: bool, wait_s: float) -> None:
    """Compare usage, receipts, transfers and contracts to the nano; exit 1 unless everything ties.

    Exit 3 where the liteservers are behind what the books have seen: that says nothing about the money. Told by
    COCOON_DATABASE_URL, COCOON_LITESERVERS, COCOON_PAYOUT_CONTRACT and COCOON_GLOBAL_ID.
    """
    try:
        report = asyncio.run(_ask(wait_s))
    except LiteserverBehindError as error:
        click.echo(_behind_as_json(error) if as_json else f"Cannot tell: {error}.")
        context.exit(CANNOT_TELL)
    if as_json:
        click.echo(_as_json(report))
    else:
        _show(report)
    if report.differences:
        context.exit(1)


async def _ask(wait_s: float) -> Report:
    database, payout, servers = read_database_settings(), read_payout(), liteservers_setting()
    if servers is None:
        raise SettingsError(f"set {LITESERVERS_VARIABLE} to a file in the form of TON's global.config.json")
    clock = SystemClock()
    deadline = clock.monotonic() + wait_s
    async with (
        open_pool(database.database_url, application="cocoon-cli") as pool,
        LiteChain(servers, clock, global_id=read_global_id()) as chain,
    ):
        while True:
            late = clock.monotonic() >= deadline
            try:
                report = await reconcile(pool, chain, payout)
                if late or not report.differences:
                    return report
            except LiteserverBehindError:
                if late:
                    raise
            await asyncio.sleep(AGAIN_S)


def _as_json(report: Report) -> str:
    said = msgspec.to_builtins(report)
    said["ties"] = [
        {**msgspec.to_builtins(tie), "difference_nano": tie.difference_nano, "holds": tie.holds} for tie in report.ties
    ]
    return msgspec.json.encode({**said, "holds": not report.differences}).decode()


def _behind_as_json(error: LiteserverBehindError) -> str:
    behind = {"contract": error.contract, "seen_seqno": error.seen_seqno}
    return msgspec.json.encode({"seqno": error.seqno, "behind": behind, "holds": None}).decode()


def _show(report: Report) -> None:
    click.echo(f"As of masterchain block {report.seqno} ({moment(report.utime)} of the chain); amounts in nano.")
    if report.epochs:
        print_table(
            ("epoch", "added", "in all", "state"),
            [(str(one.epoch), str(one.added_nano), str(one.total_nano), one.state) for one in report.epochs],
        )
    _show_ties("Explained:", report.explained)
    _show_ties("DIFFERENCES:", report.differences)
    if report.differences:
        click.echo(f"{len(report.differences)} of {len(report.ties)} comparisons do not tie.")
    else:
        click.echo(f"All of {len(report.ties)} comparisons tie.")


def _show_ties(title: str, ties: tuple[Tie, ...]) -> None:
    if not ties:
        return
    click.echo(title)
    print_table(
        ("what", "of", "left", "right", "explained", "difference"),
        [
            (
                f"{tie.section}: {tie.what}", tie.subject, f"{tie.left} {tie.left_nano}",
                f"{tie.right} {tie.right_nano}",
                f"{tie.explained_nano} {tie.explanation}" if tie.explained_nano else "-", str(tie.difference_nano),
            )
            for tie in ties
        ],
    )  # fmt: skip
