"""What the development network puts on its chain: once, and the same after a restart."""

import random
from pathlib import Path

import pytest

from billing.ton.chain import AccountStatus
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cli.dev.seed import CREDIT
from cli.dev.settlement import SettlementSetup
from cli.dev.state import DevError
from cocoon.clock import SystemClock
from cocoon.contracts.escrow import EscrowData
from tests.chain_clients import GLOBAL_ID
from tests.fixtures_chain import LocalChain

pytestmark = pytest.mark.timeout(300)


async def test_a_restart_finds_the_contracts_and_deposits_nothing_again(
    tmp_path: Path, local_chain: LocalChain
) -> None:
    clock = SystemClock()
    setup = SettlementSetup(tmp_path / "settlement", GLOBAL_ID, random.Random(71))
    await setup.establish(local_chain.config, local_chain.server.control, clock)
    again = SettlementSetup(tmp_path / "settlement", GLOBAL_ID, random.Random(72))
    await again.establish(local_chain.config, local_chain.server.control, clock)

    assert (again.operator, again.payout, again.escrow) == (setup.operator, setup.payout, setup.escrow)
    async with LiteChain(read_liteservers(local_chain.config), clock, global_id=GLOBAL_ID) as chain:
        escrow = await chain.account(setup.escrow)
        assert escrow.data is not None
        assert EscrowData.decode(escrow.data).deposited_nano == CREDIT.nano
        assert len(await chain.transactions(setup.escrow)) == 1
        assert (await chain.account(setup.payout)).status is AccountStatus.ACTIVE
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "settlement").iterdir()} == {0}


async def test_a_chain_that_is_away_is_said_in_words(tmp_path: Path, own_chain: LocalChain) -> None:
    setup = SettlementSetup(tmp_path / "settlement", GLOBAL_ID, random.Random(73))
    own_chain.stop()

    with pytest.raises(DevError, match="not on the chain"):
        await setup.establish(own_chain.config, own_chain.server.control, SystemClock())
