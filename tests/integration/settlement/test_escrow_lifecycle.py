"""A customer's life from the command line, on a simulated TON: open, use, sign, be settled, and leave to the nano."""

import asyncio
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from billing.postgres.check import broken_invariants
from billing.postgres.pool import connect
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cocoon.clock import SystemClock
from cocoon.contracts.payout import PayoutData
from cocoon_client.escrow_file import read_escrow_file
from cocoon_client.vouchers import VoucherSigner, demands_in
from tests.escrow_command import TON, WALLET, Done, keep_words, refund, run
from tests.fixtures_chain import LocalChain
from tests.fixtures_gateway import CREDIT_NANO, Stack, chat
from tests.settlement_chain import GLOBAL_ID, SettlementNetwork, key

DEPOSIT = 5 * TON
ANSWERS = 3


class Life:
    """One customer of one gateway, one biller, one chain."""

    def __init__(self, stack: Stack, chain: LocalChain, folder: Path) -> None:
        self.stack = stack
        self.chain = chain
        self.folder = folder
        self.file = folder / "escrow.json"
        self.words = str(keep_words(folder))

    async def tried(self, *arguments: str) -> Done:
        """`cocoon escrow`, beside the loop."""
        return await asyncio.to_thread(
            run, *arguments, "--file", str(self.file), "--mnemonic-file", self.words, chain=self.chain,
            COCOON_API_KEY=self.stack.api_key, COCOON_BASE_URL=f"http://127.0.0.1:{self.stack.port}/v1",
        )  # fmt: skip

    async def command(self, *arguments: str) -> str:
        done = await self.tried(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def open(self, network: SettlementNetwork) -> None:
        self.chain.faucet(WALLET.address, 20 * TON)
        said = await self.command("open", "--operator", str(network.operator.address), "--amount", "5")
        assert "Deposited 5 TON" in said
        await self.until_escrow(state="open", deposited_nano=DEPOSIT, delegated=False)

    async def escrow(self) -> dict[str, Any]:
        """As the gateway shows it."""
        async with self.stack.client() as client:
            [shown] = (await client.get("/v1/account/escrows")).json()["data"]
        return shown

    async def until_escrow(self, **wanted: Any) -> None:
        await self.stack.until_true(
            self.escrow, lambda shown: all(shown[name] == value for name, value in wanted.items()), deadline_s=60
        )

    async def row(self) -> Any:
        [row] = await self.stack.rows("SELECT * FROM escrows")
        return row

    async def use(self) -> int:
        """Answers, and the nano that they cost."""
        async with self.stack.client() as client:
            for _ in range(ANSWERS):
                assert (await client.post("/v1/chat/completions", json=chat(max_tokens=20))).status_code == 200
        return sum(row["charge_nano"] for row in await self.stack.usage(ANSWERS))

    async def sign(self, used: int) -> None:
        """What was used, with the session key that `open` made."""
        signer = VoucherSigner(read_escrow_file(self.file), self.folder / "tally", cap_nano=DEPOSIT, accepted_nano=used)
        async with self.stack.client() as client:
            [demand] = demands_in((await client.get("/v1/account/escrows")).content)
            voucher = signer.sign(demand)
            assert voucher is not None
            body = {name: getattr(voucher, name) for name in voucher.__struct_fields__}
            assert (await client.post("/v1/account/vouchers", json=body)).status_code == 200

    async def require_over(self, network: SettlementNetwork, used: int) -> None:
        """What was used is the operator's and the rest the client's, on the chain and in the books, to the nano."""
        escrow = read_escrow_file(self.file)
        assert await asyncio.to_thread(refund, self.chain, escrow.address) == (DEPOSIT - used, DEPOSIT - used)
        await self.stack.until_true(lambda: received(self.chain, network), lambda nano: nano == used, deadline_s=60)
        await self.stack.until_true(
            self.row, lambda row: (row["state"], row["refunded_nano"]) == ("closed", DEPOSIT - used), deadline_s=60
        )
        books = {
            (row["kind"], row["owner"] == self.stack.customer_id): row["nano"]
            for row in await self.stack.rows(
                "SELECT kind, owner, (credits_posted - debits_posted)::bigint AS nano FROM accounts"
            )
        }
        assert books["customer_available", True] == CREDIT_NANO
        assert (books["escrow_asset", False], books["payout_asset", False]) == (0, -used)
        async with connect(self.stack.database_url, application="test") as connection:
            assert await broken_invariants(connection) == []


async def start_network(
    stack: Stack, chain: LocalChain, folder: Path
) -> tuple[SettlementNetwork, "subprocess.Popen[bytes]"]:
    async with LiteChain(read_liteservers(chain.config), SystemClock(), global_id=GLOBAL_ID) as lite:
        network = SettlementNetwork(lite, chain, uuid.uuid4().hex)
        await network.deploy()
    keys = {name: folder / f"{name}.key" for name in ("operator", "vouchers")}
    for name, path in keys.items():
        path.touch(0o600)
        path.write_text(key(f"{network.name} {name}").private_bytes_raw().hex())
    await stack.rows("UPDATE api_keys SET organisation_admin = TRUE WHERE id = $1", stack.key_id)
    await stack.start_gateway(
        COCOON_OPERATOR_WALLET=str(network.operator.address), COCOON_PAYOUT_CONTRACT=str(network.payout),
        COCOON_ESCROW_CHALLENGE_S_MIN="3600",
        COCOON_SETTLEMENT_KEY_PUBLIC=network.voucher_key.public_key().public_bytes_raw().hex(),
    )  # fmt: skip
    biller = stack.start("biller", ["biller"], {
        "COCOON_ENV": "development", "COCOON_DATABASE_URL": stack.database_url, "COCOON_GLOBAL_ID": str(GLOBAL_ID),
        "COCOON_LITESERVERS": str(chain.config), "COCOON_PAYOUT_CONTRACT": str(network.payout),
        "COCOON_BILLER_WALLET_KEY_FILE": str(keys["operator"]), "COCOON_VOUCHER_KEY_FILE": str(keys["vouchers"]),
        "COCOON_BILLER_INTERVAL_S": "0.1",
        "COCOON_SETTLE_MIN": "0.000000001", "COCOON_EPOCH_S": "3600",
    })  # fmt: skip
    return network, biller


async def received(chain: LocalChain, network: SettlementNetwork) -> int:
    async with LiteChain(read_liteservers(chain.config), SystemClock(), global_id=GLOBAL_ID) as lite:
        data = (await lite.account(network.payout)).data
    assert data is not None
    return PayoutData.decode(data).received_nano


@pytest.mark.timeout(300)
async def test_a_customer_opens_uses_is_settled_and_leaves_with_the_gateway_off(
    stack: Stack, own_chain: LocalChain, tmp_path: Path
) -> None:
    network, biller = await start_network(stack, own_chain, tmp_path)
    life = Life(stack, own_chain, tmp_path)
    await life.open(network)
    async with stack.client() as client:
        balance = (await client.get("/v1/account/balance")).json()
    assert balance["available_nano"] == CREDIT_NANO + DEPOSIT

    used = await life.use()
    await life.until_escrow(charged_nano=used)
    await life.sign(used)
    await life.until_escrow(settled_nano=used, signed_nano=used)
    await stack.until_settled()

    gateway = stack.gateway
    assert gateway is not None
    gateway.terminate()
    await asyncio.to_thread(gateway.wait, 60)
    assert "requested" in await life.command("close")
    own_chain.advance(3_601)
    await stack.until_true(lambda: life.command("close"), lambda said: "were paid back" in said, deadline_s=60)
    await life.require_over(network, used)
    # Before the chain: it has nothing to wait for then.
    biller.terminate()
    assert await asyncio.to_thread(biller.wait, 60) == 0, stack.log("biller")


@pytest.mark.timeout(300)
async def test_a_customer_leaves_at_once_with_what_the_operator_signed(
    stack: Stack, local_chain: LocalChain, tmp_path: Path
) -> None:
    network, biller = await start_network(stack, local_chain, tmp_path)
    life = Life(stack, local_chain, tmp_path)
    await life.open(network)
    used = await life.use()

    together = ("close", "--together", "--yes", "--at-most")
    little = await life.tried(*together, "0.000000001")
    assert (little.returncode, "more than 0.000000001" in little.stderr) == (1, True), little.stderr
    async with stack.client() as client:
        refused = await client.post("/v1/chat/completions", json=chat(max_tokens=20))
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "escrow_closing")
        withdrawn = await client.delete(f"/v1/account/escrows/{read_escrow_file(life.file).address}/close")
        assert (withdrawn.status_code, withdrawn.json()["error"]["code"]) == (409, "close_agreed")
    said = await life.command(*together, "5")
    assert "closed" in said
    assert "were paid back" in said
    await life.require_over(network, used)
    biller.terminate()
    assert await asyncio.to_thread(biller.wait, 60) == 0, stack.log("biller")
