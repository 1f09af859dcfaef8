"""`cocoon policy`: look at a policy before a gateway relies on it."""

import hashlib
from pathlib import Path

import click

from attestation.policy import POLICY_BYTES_MAX, Policy, PolicyError, load_policy


@click.group()
def command() -> None:
    """Check and show what workers' evidence is judged by."""


@command.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check_command(file: Path) -> None:
    """Read FILE as a gateway does and print the two variables that pin it; exit 1 if it is not a policy."""
    policy = _read(file)
    click.echo(f"COCOON_POLICY_FILE={file.absolute()}")
    click.echo(f"COCOON_POLICY_SHA256={policy.sha256.hex()}")
    if policy.simulated:
        click.echo("SIMULATED: this policy trusts roots that stand for no hardware; production refuses it.", err=True)
    if all(release.draining for release in policy.releases):
        click.echo("No release is in service: no worker of this policy gets requests.", err=True)


@command.command("show")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show_command(file: Path) -> None:
    """Say in words what FILE accepts."""
    policy = _read(file)
    click.echo(f"policy {policy.name}  sha256 {policy.sha256.hex()}{'  SIMULATED' if policy.simulated else ''}")
    click.echo(
        f"  verdicts last {policy.verdict_seconds_max} s; freshness: {', '.join(policy.freshness) or 'none'};"
        f" model manifest {'must be measured' if policy.bind_manifest else 'is not checked'}"
    )
    for root in policy.roots:
        click.echo(f"  root     {root.use:8} {root.kind:10} {root.sha256}")
    for release in policy.releases:
        state = "draining" if release.draining else "in service"
        measured = release.mrtd if release.tee == "tdx" else release.measurement
        click.echo(f"  release  {release.name}  {release.tee}  {release.gpus} GPUs  {state}  {measured[:16]}...")
    if policy.tdx is not None:
        tdx = policy.tdx
        platforms = "any" if tdx.ppids is None else str(len(tdx.ppids))
        limit = tdx.workers_per_platform or "any number of"
        click.echo(
            f"  tdx      {platforms} platforms, {limit} workers on each, evaluation {tdx.tcb_evaluation_min} or newer"
        )
        if tdx.tcb_grace:
            click.echo(f"  grace    {tdx.tcb_grace_seconds} s for {', '.join(tdx.tcb_grace)}")
        if tdx.collateral_grace_seconds:
            click.echo(f"  grace    {tdx.collateral_grace_seconds} s for collateral that has ended")


def _read(file: Path) -> Policy:
    with file.open("rb") as opened:
        raw = opened.read(POLICY_BYTES_MAX + 1)
    if len(raw) > POLICY_BYTES_MAX:
        raise PolicyError("the file is too long for a policy")
    return load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())
