"""A payout contract that is not what the settings say, a liteserver that goes back: loud, and nothing is decided."""

import asyncio
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from billing.postgres.alarms import Alarms
from billing.postgres.payouts import Payouts
from billing.postgres.pool import Connection, Pool
from billing.settlement.deployment import payout_address, payout_config
from billing.settlement.watch import PayoutWatcher
from billing.ton.chain import BlockRef
from billing.ton.outbox import LaggingError
from cli.main import main
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.payout import PayoutData
from tests.memory_chain import MemoryChain
from tests.settlement_chain import FEE_BPS

OPERATOR, STRANGER = Address(0, bytes([1]) * 32), Address(0, bytes([2]) * 32)
CONFIG = payout_config(OPERATOR, fee_bps=FEE_BPS, delay_s=0, salt=bytes(32))
OTHERS = payout_config(STRANGER, fee_bps=FEE_BPS, delay_s=0, salt=bytes(32))
OURS, NOBODYS, FOREIGN, FROZEN = payout_address(CONFIG), *(Address(0, bytes([number]) * 32) for number in (3, 4, 5))


class Liteserver(MemoryChain):
    """With our contract, another operator's, and something else. `behind` is how many blocks it lags."""

    def __init__(self) -> None:
        super().__init__()
        self.behind = 0
        self.put(OURS, PayoutData.initial(CONFIG).encode(), code=code_of("payout"))
        self.put(payout_address(OTHERS), PayoutData.initial(OTHERS).encode(), code=code_of("payout"))
        self.put(FOREIGN, PayoutData.initial(CONFIG).encode(), code=code_of("client_escrow"))
        self.put(FROZEN, None)
        self.mine()

    async def head(self) -> BlockRef:
        return await self.block(self.seqno - self.behind)


@pytest.fixture
def chain() -> Liteserver:
    return Liteserver()


@pytest.fixture
def watcher(pool: Pool, chain: Liteserver) -> Callable[[Address], PayoutWatcher]:
    """What a biller that is told of this contract looks with."""

    def made(payout: Address) -> PayoutWatcher:
        return PayoutWatcher(
            chain, Payouts(pool, str(payout)), Alarms(pool), payout=payout, code_hash=code_of("payout").hash,
            operator=OPERATOR,
        )  # fmt: skip

    return made


@pytest.mark.parametrize(
    ("payout", "detail"),
    [
        (NOBODYS, "there is no contract at"),
        (FROZEN, "there is no contract at"),
        (FOREIGN, "has other code than ours"),
        (payout_address(OTHERS), f"obeys {STRANGER}, not {OPERATOR}"),
    ],
    ids=["nothing", "not deployed", "foreign code", "another operator's"],
)
async def test_a_wrong_payout_contract_raises_an_alarm(
    watcher: Callable[[Address], PayoutWatcher], payout: Address, detail: str, database_url: str
) -> None:
    looking = watcher(payout)
    await looking.look()
    assert looking.seen is None
    said = await asyncio.to_thread(
        CliRunner().invoke, main, ["biller", "alarms"], env={"COCOON_DATABASE_URL": database_url}
    )
    assert said.exit_code == 1
    assert f"payout_contradiction {payout}: " in said.output
    assert detail in said.output


async def test_another_contract_than_that_of_the_books_raises_an_alarm_until_it_is_the_right_one_again(
    watcher: Callable[[Address], PayoutWatcher], connection: Connection, pool: Pool
) -> None:
    alarms = Alarms(pool)
    await watcher(OURS).look()
    assert await alarms.open() == []
    await connection.execute("UPDATE payout_contract SET address = $1", str(NOBODYS))
    looking = watcher(OURS)
    await looking.look()
    assert looking.seen is None
    [alarm] = await alarms.open()
    assert (alarm.subject, alarm.detail) == (str(OURS), f"these books belong to {NOBODYS}")
    await connection.execute("UPDATE payout_contract SET address = $1", str(OURS))
    await looking.look()
    assert looking.seen is not None
    assert await alarms.open() == []


async def test_a_biller_that_starts_decides_nothing_from_an_older_block_than_the_books_have_seen(
    watcher: Callable[[Address], PayoutWatcher], chain: Liteserver, connection: Connection, pool: Pool
) -> None:
    chain.mine()
    await watcher(OURS).look()
    before = await connection.fetchrow("SELECT * FROM payout_contract")
    starting = watcher(OURS)
    chain.behind = 1
    with pytest.raises(LaggingError):
        await starting.look()
    assert starting.seen is None
    assert await connection.fetchrow("SELECT * FROM payout_contract") == before
    assert await Alarms(pool).open() == [], "it is late, and says nothing wrong"
    chain.behind = 0
    await starting.look()
    assert starting.seen is not None
