"""What the development network is told from outside, read once.

Everything else in the environment is handed on to gateway and workers, so that their own settings can be tried here.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cli.dev.address import LOOPBACK
from cli.dev.state import DevError

DEFAULT_PORT = 8080
DEFAULT_STATE = ".cocoon"
DEFAULT_DRAIN_S = 10.0
DEFAULT_PROCESSES = 2
DEFAULT_EPOCH_S = 120.0


class DevSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen and keep state, how often workers are paid; gateway and workers are told `inherited`, too."""

    host: str
    port: int
    state: Path
    drain_s: float
    processes: int
    epoch_s: float
    inherited: Mapping[str, str]

    @property
    def origin(self) -> str:
        """Where the gateway answers, without a path; loopback also when it listens on every address."""
        host = LOOPBACK if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104  compared with, never bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI SDK takes as its base URL."""
        return f"{self.origin}/v1"

    def __repr__(self) -> str:
        return f"DevSettings(host={self.host!r}, port={self.port}, state={str(self.state)!r})"


def read_dev_settings(environment: Mapping[str, str] | None = None) -> DevSettings:
    """Settings from the environment.

    Raises:
        DevError: a variable is malformed; the message names it.
    """
    env = os.environ if environment is None else environment
    return DevSettings(
        host=env.get("COCOON_HOST") or LOOPBACK,
        port=_integer(env, "COCOON_PORT", DEFAULT_PORT, 1, 65535),
        state=Path(env.get("COCOON_STATE_DIR") or DEFAULT_STATE).absolute(),
        drain_s=_number(env, "COCOON_DRAIN_S", DEFAULT_DRAIN_S, 0, 3600),
        processes=_integer(env, "COCOON_GATEWAY_PROCESSES", DEFAULT_PROCESSES, 1, 64),
        epoch_s=_number(env, "COCOON_EPOCH_S", DEFAULT_EPOCH_S, 1, 3600),
        inherited=dict(env),
    )


def _integer(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _number(env, name, default, low, high)
    if value != int(value):
        raise DevError(f"{name} must be a whole number, not {value:g}")
    return int(value)


def _number(env: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise DevError(f"{name} must be a number, not {text!r}") from None
    if not low <= value <= high:
        raise DevError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")
    return value
