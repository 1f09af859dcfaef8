"""Options of the commands that verify: what to trust, said once for all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from cocoon_client.errors import TrustError
from cocoon_client.trust import Trust, read_policy, read_trust

STATE_FOLDER: Final = ".cocoon"

liteservers_option = click.option(
    "--liteservers", envvar="COCOON_LITESERVERS", show_envvar=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Whom to ask about the chain; a file in the form of global.config.json.",
)  # fmt: skip


def trusting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `trust_of` reads."""
    options = [
        click.option("--trust", "trust_file", envvar="COCOON_TRUST", show_envvar=True,
                     type=click.Path(dir_okay=False, path_type=Path), help="Trust file (TOML); docs/client.md."),
        click.option("--policy", "policy_file", type=click.Path(dir_okay=False, path_type=Path),
                     help="Policy (TOML) instead of the trust file's."),
        click.option("--network", type=int, help="global_id of the TON network, where there is no trust file."),
        click.option("--operator-key", help="The operator's Ed25519 key (hex) instead of the trust file's."),
        click.option("--log-key", help="The log's verifier key instead of the trust file's."),
        click.option("--allow-simulated", is_flag=True, help="Accept evidence that no hardware stands behind."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def trust_of(
    trust_file: Path | None, policy_file: Path | None, network: int | None, operator_key: str | None,
    log_key: str | None, *, allow_simulated: bool,
) -> Trust:  # fmt: skip
    """What the options say.

    Raises:
        TrustError: a file cannot be used, or nothing says what to trust.
    """
    if trust_file is not None:
        trust = read_trust(trust_file, allow_simulated=allow_simulated)
    elif policy_file is not None and network is not None:
        trust = Trust(policy=read_policy(policy_file), network=network, allow_simulated=allow_simulated)
    else:
        raise TrustError("say what to trust: --trust FILE, or --policy FILE with --network ID")
    changes: dict[str, Any] = {}
    if policy_file is not None:
        changes["policy"] = read_policy(policy_file)
    if network is not None:
        changes["network"] = network
    if operator_key is not None:
        changes["operator_key"] = _key(operator_key)
    if log_key is not None:
        changes["log_key"] = log_key
    return msgspec.structs.replace(trust, **changes)


def state_folder(given: Path | None) -> Path:
    """Where proofs are kept: the user's own folder unless another is given."""
    return given or Path.home() / STATE_FOLDER


def _key(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise TrustError("the operator's key is 64 hexadecimal digits") from error
    if len(raw) != 32:  # noqa: PLR2004  Ed25519
        raise TrustError("the operator's key is 64 hexadecimal digits")
    return raw
