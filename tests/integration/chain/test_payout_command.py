"""`cocoon worker payout` on the local chain, a simulated TON: a worker is paid though the operator does nothing."""

import asyncio
import datetime as dt
import hashlib
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_messages import Transfer
from cli.main import main
from cocoon.addresses import Address
from cocoon.cells import Builder
from cocoon.clock import ManualClock, SystemClock
from cocoon.contracts.epochs import EpochLeaves, Leaf
from cocoon.contracts.payout import Earnings, EpochTree, Fund, PostRoot
from cocoon.paid import Paid
from tests.escrow_command import TON, WALLET, Done, keep_words
from tests.fixtures_chain import LocalChain
from tests.settlement_chain import DELAY_S, FEE_BPS, GLOBAL_ID, SettlementNetwork, Somebody, key
from workers.agent.credit import OperatorCredit
from workers.agent.receipt_store import ReceiptStore

OTHER = OperatorWallet(key("another worker"), global_id=GLOBAL_ID)


class Operator:
    """Posts roots, and then answers nobody."""

    def __init__(self, local: LocalChain, folder: Path) -> None:
        self.local = local
        self.folder = folder
        self.name = uuid.uuid4().hex
        self.payout = Address(0, bytes(32))
        asyncio.run(self._opened())

    def post(self, epoch: int, earned: dict[Address, int]) -> Path:
        """An epoch on the chain, and its leaves in a file."""
        tree = EpochTree([Earnings(wallet, nano) for wallet, nano in earned.items()])
        asyncio.run(self._posted(PostRoot(epoch, epoch, tree.root, tree.total_nano)))
        path = self.folder / f"epoch-{epoch}.json"
        leaves = tuple(Leaf(str(wallet), nano) for wallet, nano in earned.items())
        path.write_bytes(
            EpochLeaves(
                payout=str(self.payout), epoch=epoch, root=tree.root.hex(), total_nano=tree.total_nano, leaves=leaves
            ).encode()
        )
        return path

    def deploy(self, wallet: OperatorWallet) -> None:
        """With the first message that it sends."""
        asyncio.run(self._deployed(wallet))

    def wait(self) -> None:
        """Until a root that waits pays."""
        self.local.advance(DELAY_S)

    def run(self, name: str, *arguments: str) -> Done:
        """`cocoon worker payout`."""
        told = {"COCOON_LITESERVERS": str(self.local.config), "COCOON_PAYOUT_CONTRACT": str(self.payout)}
        told |= {"COCOON_GLOBAL_ID": str(GLOBAL_ID)}
        result = CliRunner().invoke(main, ["worker", "payout", name, *arguments], env=told)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    async def _opened(self) -> None:
        async with LiteChain(read_liteservers(self.local.config), SystemClock(), global_id=GLOBAL_ID) as chain:
            network = SettlementNetwork(chain, self.local, self.name)
            await network.deploy()
            self.payout = network.payout
            await network.operator.send(Transfer(network.payout, 11 * TON, Fund(0, 10 * TON).encode()))

    async def _deployed(self, wallet: OperatorWallet) -> None:
        async with LiteChain(read_liteservers(self.local.config), SystemClock(), global_id=GLOBAL_ID) as chain:
            somebody = Somebody(chain, self.local, "another worker")
            assert somebody.address == wallet.address
            await somebody.fund(TON)
            await somebody.send(Transfer(somebody.address, 1, Builder().end()))

    async def _posted(self, root: PostRoot) -> None:
        async with LiteChain(read_liteservers(self.local.config), SystemClock(), global_id=GLOBAL_ID) as chain:
            network = SettlementNetwork(chain, self.local, self.name)
            await network.operator.send(Transfer(network.payout, TON // 10, root.encode()))


@pytest.fixture
def operator(local_chain: LocalChain, tmp_path: Path) -> Operator:
    local_chain.faucet(WALLET.address, TON)
    return Operator(local_chain, tmp_path)


@pytest.fixture
def words(tmp_path: Path) -> str:
    return str(keep_words(tmp_path))


def test_a_worker_is_paid_from_what_it_kept_though_nobody_answers(operator: Operator, words: str) -> None:
    none = operator.run("status", "--wallet", str(WALLET.address))
    assert none.stdout == f"Paid to {WALLET.address}: 0 TON in all.\nNo epoch pays yet.\n"
    leaves = str(operator.post(1, {WALLET.address: 2 * TON, OTHER.address: TON}))
    early = operator.run("claim", "--leaves", leaves, "--mnemonic-file", words)
    assert early.returncode == 1
    assert "epoch 1 pays in" in early.stderr
    operator.wait()
    # Leaves are enough, also where the environment names a gateway.
    paid = operator.run("claim", "--leaves", leaves, "--mnemonic-file", words, "--base-url", "http://127.0.0.1:9/v1")
    assert (paid.returncode, paid.stdout) == (0, f"Paid 2 TON to {WALLET.address}; 2 in all.\n"), paid.stderr
    assert "SIMULATED chain" in paid.stderr
    again = operator.run("claim", "--leaves", leaves, "--mnemonic-file", words)
    assert again.returncode == 1
    assert "were claimed" in again.stderr
    said = operator.run("status", "--wallet", str(WALLET.address))
    assert said.stdout == f"Paid to {WALLET.address}: 2 TON in all.\nEpoch 1 pays.\n"
    more = str(operator.post(2, {WALLET.address: 2 * TON + 5, OTHER.address: TON}))
    assert "Epoch 2 pays in" in operator.run("status", "--wallet", str(WALLET.address)).stdout
    operator.wait()
    assert "epoch 1 is over" in operator.run("claim", "--leaves", leaves, "--mnemonic-file", words).stderr
    rest = operator.run("claim", "--leaves", more, "--mnemonic-file", words)
    assert rest.stdout == f"Paid 0.000000005 TON to {WALLET.address}; 2.000000005 in all.\n", rest.stderr
    # Whose gas it is does not matter, but a payment to where there is no wallet would come back.
    for_other = ("claim", "--leaves", more, "--mnemonic-file", words, "--wallet", str(OTHER.address))
    assert "there is no wallet" in operator.run(*for_other).stderr
    operator.deploy(OTHER)
    assert operator.run(*for_other).stdout == f"Paid 1 TON to {OTHER.address}; 1 in all.\n"
    stranger = Address(0, hashlib.sha256(b"stranger").digest())
    nothing = operator.run("claim", "--leaves", more, "--mnemonic-file", words, "--wallet", str(stranger))
    assert "has nothing for" in nothing.stderr


def test_leaves_that_the_contract_does_not_have_are_refused_before_any_gas_is_spent(
    operator: Operator, words: str, tmp_path: Path
) -> None:
    real = EpochLeaves.decode(operator.post(1, {WALLET.address: TON}).read_bytes())
    operator.wait()
    greedy = EpochTree([Earnings(WALLET.address, 9 * TON)])
    forged = msgspec.structs.replace(
        real, leaves=(Leaf(str(WALLET.address), 9 * TON),), total_nano=9 * TON, root=greedy.root.hex()
    )
    altered = msgspec.structs.replace(real, leaves=(Leaf(str(WALLET.address), 9 * TON),))
    path = tmp_path / "leaves.json"
    for leaves, reason in (
        (forged.encode(), "does not have the root of these leaves"),
        (msgspec.structs.replace(real, payout=str(OTHER.address)).encode(), "does not have the root of these leaves"),
        (altered.encode(), "another root or total"),
        (b"{}", "not the leaves of an epoch"),
    ):
        path.write_bytes(leaves)
        done = operator.run("claim", "--leaves", str(path), "--mnemonic-file", words)
        assert done.returncode == 1
        assert reason in done.stderr


class Gateway(ThreadingHTTPServer):
    """Answers `/v1/epochs/last` with what it is given."""

    answer = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Gateway)
        found = self.server.answer if self.path == "/v1/epochs/last" else b""
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        return


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as made:
        yield made
        made.shutdown()
        made.thread.join()


def test_watching_tells_the_agent_what_was_paid_and_keeps_what_a_claim_needs(
    operator: Operator, gateway: Gateway, words: str, tmp_path: Path
) -> None:
    paid, kept = tmp_path / "paid.json", tmp_path / "leaves.json"
    watch = (
        "--wallet", str(WALLET.address), "--paid-file", str(paid), "--leaves", str(kept), "--base-url", gateway.url,
        "--once",
    )  # fmt: skip
    nothing = operator.run("watch", *watch)
    assert (nothing.returncode, "no epoch to show (404)" in nothing.stderr) == (1, True)
    assert Paid.decode(paid.read_bytes()).paid_nano == 0
    gateway.answer = operator.post(1, {WALLET.address: TON}).read_bytes()
    operator.wait()
    assert operator.run("watch", *watch).returncode == 0
    assert kept.read_bytes() == gateway.answer
    gateway.answer = msgspec.structs.replace(EpochLeaves.decode(gateway.answer), epoch=2).encode()
    assert "does not have the root" in operator.run("watch", *watch).stderr
    assert EpochLeaves.decode(kept.read_bytes()).epoch == 1
    assert operator.run("claim", "--leaves", str(kept), "--mnemonic-file", words).returncode == 0
    operator.run("watch", *watch)
    seen = Paid.decode(paid.read_bytes())
    assert (seen.paid_nano, seen.fee_bps, seen.payout) == (TON, FEE_BPS, str(operator.payout))

    async def agent() -> int:
        store = ReceiptStore(None, "w", ManualClock(dt.datetime(2026, 11, 23, tzinfo=dt.UTC)))
        credit = OperatorCredit(store, max_nano=0, path=paid, global_id=GLOBAL_ID)
        await credit.refresh()
        await store.aclose()
        assert credit.accepting
        return -1 if store.paid_before_nano is None else store.paid_before_nano

    assert asyncio.run(agent()) == TON
