"""`cocoon proxy`: an OpenAI endpoint on this machine that seals every prompt for workers which it verified itself."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.amounts import TON
from cli.trusting import liteservers_option, state_folder, trust_of, trusting
from cocoon.logs import configure_logging
from cocoon_client.escrow_file import EscrowFileError, read_escrow_file
from cocoon_client.proxy.main import Proxy, ProxySettings, require_local, serve
from cocoon_client.trust import Trust
from cocoon_client.vouchers import VoucherSigner


@click.command("proxy")
@click.option("--base-url", envvar="COCOON_BASE_URL", show_envvar=True, required=True, help="The gateway, up to /v1.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of this machine to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 takes a free one.")
@click.option("--listen-anywhere", is_flag=True, help="Allow an address that other machines reach; they get your key.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="Folder for proofs; default ~/.cocoon.")
@click.option(
    "--escrow",
    "escrow_file",
    envvar="COCOON_ESCROW",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Sign for what is used from this escrow: the file of `cocoon escrow open`.",
)
@click.option("--voucher-cap", type=TON, help="The most that is ever signed in all. Needed with --escrow.")
@click.option("--voucher-accepted", type=TON, default=0, help="What was used by other ways, accepted without receipts.")
@liteservers_option
@click.option("--api-key", envvar="COCOON_API_KEY", hidden=True, default="")
@trusting
def command(
    *,
    base_url: str,
    api_key: str,
    host: str,
    port: int,
    listen_anywhere: bool,
    state: Path | None,
    allow_simulated: bool,
    escrow_file: Path | None,
    voucher_cap: int | None,
    voucher_accepted: int,
    liteservers: Path | None,
    **trusted: Any,
) -> None:
    """Serve the OpenAI API here, and send only sealed requests on.

    A request without an API key gets the one in COCOON_API_KEY. Proofs are kept for `cocoon verify`; they hold prompts
    and answers in clear. With --liteservers a worker whose evidence names a block that is not in the chain is not used.
    """
    trust = trust_of(**trusted, allow_simulated=allow_simulated)
    settings = ProxySettings(
        base_url=base_url, host=host, port=port, api_key=api_key, anywhere=listen_anywhere,
        state=state_folder(state),
        vouchers=_signer(escrow_file, voucher_cap, voucher_accepted, state_folder(state), trust),
    )  # fmt: skip
    require_local(settings)
    configure_logging("proxy")

    def ready(proxy: Proxy) -> None:
        click.echo(f"Listening on http://{host}:{proxy.port}/v1, sealing for workers of {base_url}")
        if trust.allow_simulated:
            click.echo("SIMULATED evidence is accepted: no hardware protects what you ask.", err=True)

    asyncio.run(_serve(settings, trust, ready, liteservers))


async def _serve(
    settings: ProxySettings, trust: Trust, ready: Callable[[Proxy], None], liteservers: Path | None
) -> None:
    if liteservers is None:
        await serve(settings, trust, ready)
        return
    # Only who asks the chain needs what that takes.
    from cli.own_chain import own_chain

    async with own_chain(liteservers, trust.network) as chain:
        await serve(settings, trust, ready, chain)


def _signer(path: Path | None, cap: int | None, accepted: int, state: Path, trust: Trust) -> VoucherSigner | None:
    """Whoever pays by escrow says how much may ever be signed.

    Raises:
        EscrowFileError: the file cannot be used, or is of another network than the trust.
    """
    if path is None:
        return None
    if cap is None:
        raise click.UsageError("--escrow needs --voucher-cap: the most that may ever be signed, in TON")
    escrow = read_escrow_file(path)
    if escrow.network != trust.network:
        raise EscrowFileError(f"{path} is of network {escrow.network}, the trust is for {trust.network}")
    return VoucherSigner(escrow, state / "vouchers", cap_nano=cap, accepted_nano=accepted)
