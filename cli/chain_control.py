"""The local chain's control port: what no real chain lets anybody do (contracts/localchain/control.mjs)."""

from pathlib import Path
from typing import ClassVar, TypeVar

import httpx
import msgspec

from cocoon.errors import CocoonError

T = TypeVar("T")

CONTROL_SECONDS = 60.0
"""The faucet waits for a block, and a block may hold hundreds of transactions."""


class ChainControlError(CocoonError):
    """The local chain does not answer, or refuses."""

    code: ClassVar[str] = "chain_control_failed"


class Liteserver(msgspec.Struct, frozen=True):
    """Where the liteserver listens; `public_key` is base64."""

    host: str
    port: int
    public_key: str


class ZeroState(msgspec.Struct, frozen=True):
    """What a chain begins with, and is known by; base64."""

    root_hash: str
    file_hash: str


class ChainInfo(msgspec.Struct, frozen=True):
    """How far the chain is. `now` is Unix seconds on the chain, `offset_s` how far its clock was moved."""

    pid: int
    simulated: bool
    global_id: int
    seqno: int
    now: int
    offset_s: int
    accounts: int
    total_nano: str
    waiting: int
    liteserver: Liteserver
    zerostate: ZeroState


class Reached(msgspec.Struct, frozen=True):
    """The block that carried something out, and the time on the chain."""

    seqno: int
    now: int


class _Ready(msgspec.Struct, frozen=True):
    control_url: str


class _Refusal(msgspec.Struct, frozen=True):
    error: str = "no reason was given"


class ChainControl:
    """Asks one local chain; every method blocks.

    Raises:
        ChainControlError: from any method, where it does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def info(self, timeout_s: float = CONTROL_SECONDS) -> ChainInfo:
        """How far the chain is."""
        return _decoded(self._answer("GET", "/info", None, timeout_s), ChainInfo)

    def faucet(self, address: str, amount_nano: int) -> Reached:
        """Coins out of nothing for an address of the basechain; they are there when this returns."""
        body = {"address": address, "amount_nano": str(amount_nano)}
        return _decoded(self._answer("POST", "/faucet", body), Reached)

    def advance(self, seconds: int) -> Reached:
        """Move the chain's clock forward; the returned block has the new time."""
        return _decoded(self._answer("POST", "/advance", {"seconds": seconds}), Reached)

    def faults(self, **wanted: object) -> dict[str, object]:
        """Set faults (names in docs/chain.md), and return all of them."""
        return _decoded(self._answer("POST", "/faults", wanted), dict[str, object])

    def _answer(self, method: str, path: str, body: object, timeout_s: float = CONTROL_SECONDS) -> bytes:
        try:
            # Without TLS there is nothing to verify, and certificates take longer to load than the answer to come.
            with httpx.Client(timeout=timeout_s, trust_env=False, verify=False) as client:  # noqa: S501  see above
                answer = client.request(method, self.url + path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChainControlError(f"no local chain at {self.url}: {error}") from error
        if not answer.is_success:
            raise ChainControlError(_decoded(answer.content, _Refusal).error)
        return answer.content


def find_control(directory: Path) -> ChainControl:
    """The control port of the chain that keeps its state in `directory`.

    Raises:
        ChainControlError: none was ever started there.
    """
    try:
        ready = msgspec.json.decode((directory / "control.json").read_bytes(), type=_Ready)
    except (OSError, msgspec.DecodeError) as error:
        raise ChainControlError(f"no local chain has run in {directory}: `make dev` or `cocoon chain up`") from error
    return ChainControl(ready.control_url)


def _decoded(content: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=form)
    except msgspec.DecodeError as error:
        raise ChainControlError(f"that is no local chain: {error}") from error
