"""`cocoon verify`: what a receipt proves, a sentence for each step; exit status 0 only if every required one holds."""

import asyncio
from pathlib import Path
from typing import Any

import click
import httpx

from cli.private_files import write_private
from cli.trusting import liteservers_option, state_folder, trust_of, trusting
from cocoon.clock import SystemClock
from cocoon_client.errors import BundleUnavailableError
from cocoon_client.receipts import Receipts, complete, offline_growth, remember
from cocoon_client.store import Store, is_receipt_id, read_proof
from cocoon_client.trust import Trust
from cocoon_client.verification.chain import OwnChain
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.steps import Report
from cocoon_client.verification.walk import NOT_ASKED, verify

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
@liteservers_option
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
    --allow-simulated is given. With --liteservers the chain is asked too: for the block that the evidence names, for
    the worker's stake, and with --payout for the log's anchor, which is then required.
    """
    trust = trust_of(**trusted, allow_simulated=allow_simulated)
    store = Store(state_folder(state))
    saved = read_proof(Path(receipt)) if Path(receipt).is_file() else None
    source = _Source(store, trust, base_url, api_key, wait_s)
    proof, report = asyncio.run(_judged(source, receipt, saved, liteservers, payout))
    if save is not None:
        write_private(save, proof.encode())
    click.echo(report.encode() if as_json else report.in_words())
    ctx.exit(0 if report.holds else 1)


async def _judged(
    source: "_Source", receipt: str, saved: Proof | None, liteservers: Path | None, payout: str | None
) -> tuple[Proof, Report]:
    if liteservers is None and payout is None:
        return await source.judged(receipt, saved, None)
    # Only who asks the chain needs what that takes.
    from cli.own_chain import own_chain

    async with own_chain(liteservers, source.trust.network, payout) as chain:
        return await source.judged(receipt, saved, chain)


class _Source:
    """Where proofs come from: files, the proxy's folder, the gateway."""

    def __init__(self, store: Store, trust: Trust, base_url: str | None, api_key: str, wait_s: float) -> None:
        self._store = store
        self.trust = trust
        self._base_url = base_url
        self._api_key = api_key
        self._wait_s = wait_s

    async def judged(self, receipt: str, saved: Proof | None, chain: OwnChain | None) -> tuple[Proof, Report]:
        """A proof that was read, or a receipt by its id: from the gateway where one is named, else as it was kept."""
        if saved is not None:
            return await self._offline(saved, chain)
        if not is_receipt_id(receipt):
            raise BundleUnavailableError(f"{receipt} is neither a file nor a receipt id")
        if self._base_url is not None:
            return await self._asked(receipt, self._base_url, chain)
        proof = self._store.load(receipt)
        if proof is None:
            raise BundleUnavailableError("nothing was kept of this receipt; name its gateway with --base-url")
        return await self._offline(proof, chain)

    async def _offline(self, proof: Proof, chain: OwnChain | None) -> tuple[Proof, Report]:
        on_chain = NOT_ASKED if chain is None else await chain.look(proof)
        report = verify(proof, self.trust, offline_growth(self.trust, self._store), on_chain)
        remember(self._store, self.trust, proof, report)
        return proof, report

    async def _asked(self, receipt_id: str, base_url: str, chain: OwnChain | None) -> tuple[Proof, Report]:
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            receipts = Receipts(client, base_url, self._api_key, SystemClock())
            return await complete(receipts, self._store, self.trust, receipt_id, wait_s=self._wait_s, chain=chain)
