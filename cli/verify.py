"""`cocoon verify`: what a receipt proves, a sentence for each step; exit status 0 only if every required one holds."""

import asyncio
from pathlib import Path
from typing import Any

import click
import httpx

from cli.trusting import state_folder, trust_of, trusting
from cocoon.clock import SystemClock
from cocoon_client.errors import BundleUnavailableError
from cocoon_client.receipts import Receipts, complete, offline_growth, remember
from cocoon_client.store import Store, is_receipt_id, read_proof, write_private
from cocoon_client.trust import Trust
from cocoon_client.verification.log import Anchored
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.steps import Report
from cocoon_client.verification.walk import verify

WAIT_S = 30.0
TIMEOUT_S = 30.0


@click.command("verify")
@click.argument("receipt")
@click.option(
    "--base-url", envvar="COCOON_BASE_URL", show_envvar=True, help="The gateway, up to /v1, to ask for RECEIPT."
)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep everything that was judged here.")
@click.option(
    "--state", type=click.Path(file_okay=False, path_type=Path), help="The proxy's folder; default ~/.cocoon."
)
@click.option("--wait", "wait_s", type=click.FloatRange(0, 600), default=WAIT_S, show_default=True,
              help="Seconds that signatures and log may still take.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The steps as JSON.")
@click.option("--liteservers", envvar="COCOON_LITESERVERS", show_envvar=True,
              type=click.Path(dir_okay=False, path_type=Path),
              help="Whom to ask about the chain; a file in the form of global.config.json.")  # fmt: skip
@click.option("--payout", help="Compare the log with its anchor in this payout contract on TON.")
@click.option("--api-key", envvar="COCOON_API_KEY", hidden=True, default="")
@trusting
@click.pass_context
def command(
    ctx: click.Context, *, receipt: str, base_url: str | None, save: Path | None, state: Path | None, wait_s: float,
    as_json: bool, api_key: str, allow_simulated: bool, liteservers: Path | None, payout: str | None, **trusted: Any,
) -> None:  # fmt: skip
    """Verify RECEIPT: a receipt id, or a file that --save or the proxy wrote.

    A file, and a receipt whose proof the proxy has completed, need no network. Simulated evidence fails unless
    --allow-simulated is given. With --payout the chain is asked too, and the step `anchor` is required.
    """
    trust = trust_of(**trusted, allow_simulated=allow_simulated)
    store = Store(state_folder(state))
    anchor = None
    if payout is not None:
        if liteservers is None:
            raise click.UsageError("--payout needs --liteservers")
        # Only who asks the chain needs what that takes.
        from cli.anchors import read_anchor

        anchor = asyncio.run(read_anchor(liteservers, payout, trust.network))
    source = _Source(store, trust, base_url, api_key, wait_s, anchor)
    proof, report = source.file(Path(receipt)) if Path(receipt).is_file() else source.receipt(receipt)
    if save is not None:
        write_private(save, proof.encode())
    click.echo(report.encode() if as_json else report.in_words())
    ctx.exit(0 if report.holds else 1)


class _Source:
    """Where proofs come from: files, the proxy's folder, the gateway."""

    def __init__(
        self, store: Store, trust: Trust, base_url: str | None, api_key: str, wait_s: float, anchor: Anchored | None
    ) -> None:
        self._store = store
        self._trust = trust
        self._base_url = base_url
        self._api_key = api_key
        self._wait_s = wait_s
        self._anchor = anchor

    def file(self, path: Path) -> tuple[Proof, Report]:
        """A saved proof, offline."""
        return self._offline(read_proof(path))

    def receipt(self, receipt_id: str) -> tuple[Proof, Report]:
        """A receipt by its id: from the gateway where one is named, else as the proxy completed it."""
        if not is_receipt_id(receipt_id):
            raise BundleUnavailableError(f"{receipt_id} is neither a file nor a receipt id")
        if self._base_url is not None:
            return asyncio.run(self._asked(receipt_id, self._base_url))
        proof = self._store.load(receipt_id)
        if proof is None:
            raise BundleUnavailableError("nothing was kept of this receipt; name its gateway with --base-url")
        return self._offline(proof)

    def _offline(self, proof: Proof) -> tuple[Proof, Report]:
        report = verify(proof, self._trust, offline_growth(self._trust, self._store), self._anchor)
        remember(self._store, self._trust, proof, report)
        return proof, report

    async def _asked(self, receipt_id: str, base_url: str) -> tuple[Proof, Report]:
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            receipts = Receipts(client, base_url, self._api_key, SystemClock())
            return await complete(
                receipts, self._store, self._trust, receipt_id, wait_s=self._wait_s, anchor=self._anchor
            )
