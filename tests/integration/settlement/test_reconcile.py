"""One nano too many or too few anywhere is found and named; a liteserver that is behind is no difference."""

import asyncio
import json
import uuid
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from billing.escrows import Escrow
from billing.payouts import Epoch
from billing.postgres.account import Accounts
from billing.postgres.escrows import Escrows
from billing.postgres.ledger import PostgresLedger
from billing.postgres.payouts import Payouts
from billing.postgres.pool import Connection, Pool
from billing.settlement.contracts import escrow_seen, payee_seen, payout_seen
from billing.settlement.reconcile import LiteserverBehindError, reconcile
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cli.main import main
from cocoon.addresses import Address
from cocoon.clock import SystemClock
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import EscrowConfig, EscrowData
from cocoon.contracts.payout import PayoutAccountData, PayoutData, account_init, payout_init
from cocoon.usage import TokenUsage
from tests.fixtures_chain import LocalChain
from tests.ledger_values import hold_request, settlement
from tests.memory_chain import MemoryChain
from tests.settlement_books import NANO, enrol_worker, spend
from tests.settlement_chain import FEE_BPS, GLOBAL_ID, SettlementNetwork, payout_config, public, terms_of

OPERATOR, CLIENT, WALLET = (Address(0, bytes([n]) * 32) for n in (1, 2, 3))
CONFIG = payout_config(OPERATOR, fee_bps=FEE_BPS, delay_s=0, salt=bytes(32))
PAYOUT = payout_init(code_of("payout"), CONFIG).address
CHILD = account_init(CONFIG.account_code, PAYOUT, WALLET).address
DEPOSITED, SPENT, SETTLED = 1_000, 400, 300
WITHOUT_TRIGGERS = "SET session_replication_role = replica; "


class World:
    """An escrow of 1,000 nano of which 400 are spent and 300 settled; an epoch; a worker that was paid."""

    def __init__(self, pool: Pool) -> None:
        self.chain = MemoryChain()
        self.pool = pool
        self.config = EscrowConfig(
            client=CLIENT, operator=OPERATOR, payout=PAYOUT, voucher_key=public("session"),
            operator_key=public("vouchers"), challenge_s=60, epoch=0, allow_max_nano=10**9, allow_rate_nano=0,
            salt=bytes(32),
        )  # fmt: skip
        self.escrow = msgspec.structs.replace(
            EscrowData.initial(self.config), deposited_nano=DEPOSITED, settled_nano=SETTLED
        )
        self.payout = msgspec.structs.replace(PayoutData.initial(CONFIG), received_nano=SETTLED)
        self.child = PayoutAccountData(PAYOUT, WALLET, 0, 0, 0, 0)
        self.address = Address.parse(terms_of(self.config).address)

    def show(self) -> None:
        """Have the chain say what this object says."""
        self.chain.put(self.address, self.escrow.encode(), code=code_of("client_escrow"))
        self.chain.put(PAYOUT, self.payout.encode(), code=code_of("payout"))
        self.chain.put(CHILD, self.child.encode(), code=CONFIG.account_code)
        self.chain.mine()

    async def look(self, escrow: Escrow, payouts: Payouts) -> None:
        """Book what the chain says."""
        state = await self.chain.account(self.address)
        seen = escrow_seen(state, escrow.terms)
        assert seen is not None
        await Escrows(self.pool).observe(escrow.customer_id, escrow.terms.address, seen)
        found, _ = payout_seen(await self.chain.account(PAYOUT), code_of("payout").hash, OPERATOR)
        await payouts.observe_contract(found)
        child = payee_seen(await self.chain.account(CHILD), CONFIG, PAYOUT, WALLET)
        assert child is not None
        for payee in await payouts.payees():
            await payouts.observe_payee(payee.payee_id, str(CHILD), child)

    async def differences(self) -> set[tuple[str, str]]:
        report = await reconcile(self.pool, self.chain, PAYOUT)
        return {(tie.section, tie.what) for tie in report.differences}

    def post(self, epoch: Epoch) -> None:
        """The epoch's root is active and half of the worker's leaf is paid."""
        roots = msgspec.structs.replace(
            self.payout.roots, epoch=epoch.epoch, root=epoch.root, total_nano=epoch.total_nano
        )
        paid = epoch.total_nano // 2
        self.payout = msgspec.structs.replace(self.payout, roots=roots, paid_nano=paid)
        self.child = msgspec.structs.replace(
            self.child, claimed_nano=epoch.total_nano, owed_nano=epoch.total_nano - paid
        )


@pytest.fixture
async def world(pool: Pool, connection: Connection) -> World:
    async with PostgresLedger(pool) as ledger:
        made = World(pool)
        worker = await enrol_worker(connection, WALLET)
        customer = await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
        escrow = await Escrows(pool).register(uuid.uuid4(), customer, terms_of(made.config))
        payouts = Payouts(pool, str(PAYOUT))
        made.show()
        escrow_only = msgspec.structs.replace(made.escrow, settled_nano=0)
        full, made.escrow = made.escrow, escrow_only
        made.show()
        await made.look(escrow, payouts)
        await spend(ledger, customer, worker, SPENT)
        made.escrow = full
        made.show()
        await made.look(escrow, payouts)
        epoch = await payouts.prepare_epoch(made.payout.received_nano - made.payout.fee_max_nano)
        assert epoch is not None
        assert epoch.total_nano == SETTLED - SETTLED * FEE_BPS // 10_000
        made.post(epoch)
        made.show()
        await made.look(escrow, payouts)
    return made


async def test_everything_ties_and_what_is_under_way_is_named(world: World) -> None:
    report = await reconcile(world.pool, world.chain, PAYOUT)
    assert report.differences == ()
    explained = {tie.what: (tie.explained_nano, tie.explanation) for tie in report.explained}
    assert explained["charged and settled"] == (SPENT - SETTLED, "charged, to be settled")
    earned = SPENT * NANO.share_bps // 10_000
    assert explained["earned and may claim"] == (earned - 285, "for a later epoch")
    assert [(one.epoch, one.total_nano, one.state) for one in report.epochs] == [(1, 285, "active")]


ON_THE_CHAIN = (
    ("escrow", "deposited_nano", "deposited"),
    ("escrow", "settled_nano", "settled"),
    ("escrow", "owed_nano", "owed to the payout contract"),
    ("payout", "received_nano", "received"),
    ("payout", "paid_nano", "paid"),
    ("payout", "fee_withdrawn_nano", "fee withdrawn"),
    ("child", "claimed_nano", "claimed"),
    ("child", "owed_nano", "owed"),
)
IN_THE_BOOKS = (
    "UPDATE escrows SET deposited_nano = deposited_nano + 1",
    "UPDATE escrows SET settled_nano = settled_nano - 1",
    "UPDATE escrows SET owed_nano = owed_nano + 1",
    "UPDATE escrows SET charged_nano = charged_nano + 1",
    "UPDATE payout_contract SET received_nano = received_nano + 1",
    "UPDATE payout_contract SET paid_nano = paid_nano - 1",
    "UPDATE payees SET paid_nano = paid_nano - 1",
    "UPDATE payees SET returned_nano = returned_nano + 1",
    "UPDATE payees SET claimed_nano = claimed_nano - 1, owed_nano = owed_nano - 1",
    "UPDATE epochs SET total_nano = total_nano + 1",
    "UPDATE epoch_leaves SET cumulative_nano = cumulative_nano + 1",
    "UPDATE usage SET charge_nano = charge_nano + 1",
    "UPDATE usage SET share_nano = share_nano - 1",
    "UPDATE transfers SET amount = amount + 1 WHERE code = 'settle'",
    "UPDATE transfers SET amount = amount - 1 WHERE code = 'claim'",
    "UPDATE transfers SET amount = amount + 1 WHERE code = 'paid'",
    "UPDATE chain_movements SET amount_nano = amount_nano - 1 WHERE kind = 'deposit'",
    "UPDATE accounts SET debits_posted = debits_posted + 1 WHERE kind = 'escrow_asset'",
    "UPDATE accounts SET credits_posted = credits_posted + 1 WHERE kind = 'payout_asset'",
    "UPDATE accounts SET credits_posted = credits_posted + 1 WHERE kind = 'payout_in_flight'",
    "UPDATE accounts SET credits_posted = credits_posted + 1 WHERE kind = 'worker_payable'",
    "UPDATE accounts SET credits_posted = credits_posted + 1 WHERE kind = 'customer_available'",
)


async def test_one_nano_on_the_chain_is_found(world: World) -> None:
    for part, field, what in ON_THE_CHAIN:
        data = getattr(world, part)
        for nano in (1, -1):
            said = getattr(data, field) + nano
            if said >= 0:
                setattr(world, part, msgspec.structs.replace(data, **{field: said}))
                world.show()
                assert what in {found for _, found in await world.differences()}, (part, field, nano)
        setattr(world, part, data)
    world.show()
    assert await world.differences() == set()


async def test_one_nano_in_the_books_is_found(world: World, connection: Connection) -> None:
    await connection.execute(WITHOUT_TRIGGERS)
    for tampering in IN_THE_BOOKS:
        await connection.execute(tampering)
        assert await world.differences(), tampering
        undoing = tampering.translate(str.maketrans("+-", "-+"))
        await connection.execute(undoing)
        assert await world.differences() == set(), undoing


async def test_a_receipt_that_says_other_counts_is_found(world: World, connection: Connection) -> None:
    head = b"CRH1" + bytes(108) + (SPENT).to_bytes(4, "big") + bytes(8)
    await connection.execute(WITHOUT_TRIGGERS + "UPDATE usage SET receipt_head = decode('" + head.hex() + "', 'hex')")
    assert await world.differences() == set()
    other = head[:-1] + b"\x01"
    await connection.execute("UPDATE usage SET receipt_head = decode('" + other.hex() + "', 'hex')")
    assert await world.differences() == {("usage", "tokens of the receipt")}


async def test_a_root_that_is_not_ours_is_found(world: World) -> None:
    roots = msgspec.structs.replace(world.payout.roots, root=bytes(32))
    world.payout = msgspec.structs.replace(world.payout, roots=roots)
    world.show()
    assert await world.differences() == {("epoch", "root on the chain")}


async def test_a_chain_older_than_the_books_is_not_compared(world: World, connection: Connection) -> None:
    seen = world.chain.seqno
    for table, contract in (("escrows", str(world.address)), ("payees", str(CHILD)), ("payout_contract", str(PAYOUT))):
        moved = f"UPDATE {table} SET seen_seqno = seen_seqno + $1"
        await connection.execute(moved, 7)
        with pytest.raises(LiteserverBehindError) as caught:
            await reconcile(world.pool, world.chain, PAYOUT)
        assert (caught.value.contract, caught.value.seen_seqno, caught.value.seqno) == (contract, seen + 7, seen)
        await connection.execute(moved, -7)
    assert await world.differences() == set()


async def test_a_liteserver_that_lags_is_named_and_waited_for(
    own_chain: LocalChain, pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LiteChain(read_liteservers(own_chain.config), SystemClock(), global_id=GLOBAL_ID) as chain:
        network = SettlementNetwork(chain, own_chain, uuid.uuid4().hex)
        await network.deploy()
        own_chain.fault(halt=True)
        state = await chain.account(network.payout, await chain.head())
    seen, _ = payout_seen(state, code_of("payout").hash, network.operator.address)
    await Payouts(pool, str(network.payout)).observe_contract(seen)
    own_chain.fault(lag_blocks=3)
    monkeypatch.setenv("COCOON_DATABASE_URL", database_url)
    monkeypatch.setenv("COCOON_LITESERVERS", str(own_chain.config))
    monkeypatch.setenv("COCOON_PAYOUT_CONTRACT", str(network.payout))

    async def reconciled(*options: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, ["reconcile", *options])

    told, said = await reconciled(), await reconciled("--json")
    at = seen.seqno - 3
    assert (told.exit_code, said.exit_code) == (3, 3)
    assert told.stdout == (
        f"Cannot tell: the books have seen {network.payout} as of block {seen.seqno}; the liteservers are at {at}.\n"
    )
    behind = {"contract": str(network.payout), "seen_seqno": seen.seqno}
    assert json.loads(said.stdout) == {"seqno": at, "behind": behind, "holds": None}

    async def catching_up(*asked: Any) -> Any:
        try:
            return await reconcile(*asked)
        except LiteserverBehindError:
            own_chain.fault(clear=True)
            raise

    monkeypatch.setattr("cli.reconcile.reconcile", catching_up)
    waited = await reconciled("--wait", "60")
    assert waited.exit_code == 0, waited.output
    assert "comparisons tie" in waited.stdout


async def test_a_worker_that_was_removed_is_paid_what_it_answers_then_and_has_earned(
    world: World, connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOON_DATABASE_URL", database_url)
    worker = await connection.fetchval("SELECT worker_id FROM workers")
    [escrow] = await Escrows(world.pool).all()

    async def removed() -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, ["workers", "remove", str(worker)])

    async with PostgresLedger(world.pool) as ledger:
        request = hold_request(escrow.customer_id, 100)
        await ledger.hold(request)
        first, again = await removed(), await removed()
        job = settlement(
            request.job_id, escrow.customer_id, worker=worker, usage=TokenUsage(prompt=100), price=NANO
        )  # fmt: skip
        assert (await ledger.settle(job)).charge.nano == 100
    assert (first.exit_code, again.exit_code) == (0, 1), first.output
    assert "no worker" in again.stderr
    assert await connection.fetchval("SELECT state FROM workers") == "removed"

    settled = SPENT + 100
    world.escrow = msgspec.structs.replace(world.escrow, settled_nano=settled)
    world.payout = msgspec.structs.replace(world.payout, received_nano=settled)
    world.show()
    payouts = Payouts(world.pool, str(PAYOUT))
    await world.look(escrow, payouts)
    epoch = await payouts.prepare_epoch(world.payout.received_nano - world.payout.fee_max_nano)
    assert epoch is not None
    assert epoch.total_nano == settled - settled * FEE_BPS // 10_000
    [payee] = await payouts.payees()
    assert (payee.wallet, payee.leaf_nano) == (str(WALLET), epoch.total_nano)
    assert await world.differences() == set()
