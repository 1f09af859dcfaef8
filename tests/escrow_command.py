"""`cocoon escrow` for a client whose wallet the test vectors know, on the local chain: a simulated TON."""

import asyncio
import contextlib
from pathlib import Path
from typing import NamedTuple

import msgspec
from click.testing import CliRunner

from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from billing.ton.wallet import OperatorWallet
from cli.main import main
from cocoon.addresses import Address
from cocoon.clock import SystemClock
from cocoon.contracts.escrow import Refund
from cocoon.errors import MalformedError
from cocoon.mnemonic import read_words, wallet_key
from tests.fixtures_chain import LocalChain

ROOT = Path(__file__).parents[1]
WORDS = str(msgspec.json.decode((ROOT / "tests/vectors/ton_proof.json").read_bytes())["mnemonic"])
TON = 10**9
WALLET = OperatorWallet(wallet_key(read_words(WORDS)), global_id=-3)


def keep_words(folder: Path) -> Path:
    """The client's words in a private file."""
    path = folder / "words"
    path.touch(0o600)
    path.write_text(WORDS)
    return path


class Done(NamedTuple):
    """What a command said, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, chain: LocalChain | None = None, **environment: str) -> Done:
    """`cocoon escrow` in this process, as `cocoon` does it."""
    return cocoon("escrow", *arguments, chain=chain, **environment)


def cocoon(*arguments: str, chain: LocalChain | None = None, answer: str = "", **environment: str) -> Done:
    """`cocoon` in this process; with no gateway and no liteservers but those that are named."""
    told: dict[str, str | None] = {"COCOON_LITESERVERS": str(chain.config) if chain is not None else None}
    result = CliRunner().invoke(main, list(arguments), env={**told, **environment}, input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def refund(chain: LocalChain, escrow: Address) -> tuple[int, int]:
    """What the contract paid back as the client's wallet took it in: the value that came, and the amount it says."""

    async def ask() -> tuple[int, int]:
        async with asyncio.timeout(60), LiteChain(read_liteservers(chain.config), SystemClock(), global_id=-3) as lite:
            while True:  # a hop for each block: the refund comes after the close
                for transaction in await lite.transactions(WALLET.address):
                    message = transaction.incoming
                    if message is not None and message.source == escrow:
                        with contextlib.suppress(MalformedError):
                            return message.value_nano, Refund.decode(message.body).amount_nano
                await asyncio.sleep(0.1)

    return asyncio.run(ask())
