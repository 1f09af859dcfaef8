"""`cocoon operator`: the operator's key, and the keys of gateways that it delegates to.

The operator's key is needed to delegate and for nothing else: it may lie on a machine without a network.
"""

import os
import pathlib

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.canonical import base64url
from cocoon.clock import Clock, SystemClock
from cocoon.delegation import DELEGATION_S_MAX, Delegation, delegate
from cocoon.errors import CocoonError

DAY_S = 24 * 3600
SKEW_S = 300
"""How much earlier than now a delegation begins, for machines whose clocks are behind."""
_SEED_BYTES = 32
_KEY_FILE = click.Path(path_type=pathlib.Path, dir_okay=False)


class OperatorKeyError(CocoonError):
    """The operator's key file cannot be used."""

    code = "operator_key_unusable"


@click.group()
def command() -> None:
    """Make the operator's key, and delegate to the keys of gateways."""


@command.command("new")
@click.argument("file", type=_KEY_FILE)
def new_command(file: pathlib.Path) -> None:
    """Make an operator's key in FILE (for its owner only) and print its public half, which workers are told."""
    key = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(key.private_bytes_raw().hex() + "\n")
    except OSError as error:
        raise OperatorKeyError(f"{file}: {error.strerror}") from error
    click.echo(f"COCOON_OPERATOR_KEY={key.public_key().public_bytes_raw().hex()}")


@command.command("delegate")
@click.argument("file", type=_KEY_FILE)
@click.option("--days", type=click.IntRange(1, DELEGATION_S_MAX // DAY_S - 1), default=90, show_default=True)
@click.option("--global-id", type=click.IntRange(-(2**31), 2**31 - 1), default=-3, show_default=True)
def delegate_command(file: pathlib.Path, days: int, global_id: int) -> None:
    """Make a gateway's key, delegate to it with the operator's key in FILE, and print what the gateway is told."""
    gateway = Ed25519PrivateKey.generate()
    delegation = delegation_of(_read_key(file), gateway, days=days, global_id=global_id, clock=SystemClock())
    click.echo(f"COCOON_GATEWAY_KEY={gateway.private_bytes_raw().hex()}")
    click.echo(f"COCOON_GATEWAY_DELEGATION={delegation}")


def delegation_of(
    operator: Ed25519PrivateKey, gateway: Ed25519PrivateKey, *, days: int, global_id: int, clock: Clock
) -> str:
    """What a gateway with this key is told, good for `days` from now."""
    now = int(clock.now().timestamp())
    delegation = Delegation(
        global_id=global_id, gateway_key=gateway.public_key().public_bytes_raw(), not_before=now - SKEW_S,
        not_after=now + days * DAY_S,
    )  # fmt: skip
    return base64url(delegate(operator, delegation))


def _read_key(file: pathlib.Path) -> Ed25519PrivateKey:
    try:
        seed = bytes.fromhex(file.read_text().strip())
    except OSError as error:
        raise OperatorKeyError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise OperatorKeyError(f"{file} is not a key of `cocoon operator new`") from error
    if len(seed) != _SEED_BYTES:
        raise OperatorKeyError(f"{file} is not a key of `cocoon operator new`")
    return Ed25519PrivateKey.from_private_bytes(seed)
