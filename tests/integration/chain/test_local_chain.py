"""The local chain as pytoniq sees it, unmodified: with account proofs (trust level 2) and shard proofs (1)."""

import httpx
import pytest
from pytoniq import LiteServerError
from pytoniq.liteclient.client import RunGetMethodError
from pytoniq_core import begin_cell

from cli.chain_control import ChainControlError
from tests.chain_clients import GLOBAL_ID, TON, balance, caught_up, connected, signed, somebody, until, wallet
from tests.fixtures_chain import LocalChain

pytestmark = pytest.mark.timeout(300)

WHOLE_BASECHAIN = -(2**63)


@pytest.mark.parametrize("trust_level", [2, 1])
async def test_a_client_that_checks_proofs_can_use_the_chain(local_chain: LocalChain, trust_level: int) -> None:
    async with connected(local_chain, trust_level) as client:
        made = await wallet(client, local_chain, f"user {trust_level}")
        receivers = [somebody(f"{trust_level} {number}") for number in range(100)]
        messages = [
            made.create_wallet_internal_message(one, 3, TON // 100 + number, begin_cell().end_cell())
            for number, one in enumerate(receivers)
        ]

        await made.raw_transfer(messages)

        async def received() -> bool:
            return await balance(client, receivers[-1]) > 0

        await until(received)
        assert [await balance(client, one) for one in receivers] == [TON // 100 + n for n in range(100)]
        assert await balance(client, somebody("nobody")) == 0
        assert await made.get_seqno() == 2

        sent, deployed, funded = await client.get_transactions(made.address, 16)
        assert [len(one.out_msgs) for one in (sent, deployed, funded)] == [100, 0, 0]
        assert sent.prev_trans_lt == deployed.lt
        (_, (block, *_)) = await client.raw_get_transactions(made.address, 1)
        alone = await client.get_one_transaction(made.address, sent.lt, block)
        assert alone is not None
        assert alone.cell.hash == sent.cell.hash
        with pytest.raises(RunGetMethodError, match="exit code 11"):
            await client.run_get_method(made.address, "no_such_method", [])
        with pytest.raises(RunGetMethodError, match="exit code -256"):
            await client.run_get_method(somebody("nobody"), "seqno", [])


@pytest.mark.parametrize("trust_level", [2, 1])
async def test_a_hop_takes_a_block_and_blocks_can_be_scanned(local_chain: LocalChain, trust_level: int) -> None:
    async with connected(local_chain, trust_level) as client:
        made = await wallet(client, local_chain, f"hops {trust_level}")
        first = client.last_mc_block.seqno
        await made.transfer(somebody(f"hop {trust_level}"), TON)

        async def received() -> bool:
            return await balance(client, somebody(f"hop {trust_level}")) == TON

        await until(received)
        found: list[tuple[bytes, int]] = []
        for seqno in range(first + 1, client.last_mc_block.seqno + 1):
            block, header = await client.lookup_block(0, WHOLE_BASECHAIN, seqno=seqno)
            assert header.info.seqno == seqno
            listed = await client.raw_get_block_transactions(block)
            whole = await client.raw_get_block_transactions_ext(block)
            assert sorted(one["lt"] for one in listed) == sorted(one.lt for one in whole)
            assert (await client.raw_get_block(block)).info.gen_utime == header.info.gen_utime
            found += [(one["account"].hash_part, seqno) for one in listed]
        (sending,) = [seqno for account, seqno in found if account == made.address.hash_part]
        (receiving,) = [seqno for account, seqno in found if account == somebody(f"hop {trust_level}").hash_part]
        assert receiving == sending + 1


async def test_the_configuration_is_that_of_the_development_network(local_chain: LocalChain) -> None:
    async with connected(local_chain, 1) as client:
        cells = (await client._get_config_cell(client.last_mc_block)).begin_parse().load_hashmap(32)
        assert cells[19].load_ref().begin_parse().load_int(32) == GLOBAL_ID
        gas = cells[21].load_ref().begin_parse()
        assert gas.skip_bits(8 + 64 + 64 + 8).load_uint(64) == 4_369_067
        (shard,) = await client.get_all_shards_info()
        assert (shard.workchain, shard.seqno) == (0, client.last_mc_block.seqno)
        assert local_chain.info().global_id == GLOBAL_ID


async def test_externals_that_an_account_does_not_take_are_refused(local_chain: LocalChain) -> None:
    async with connected(local_chain) as client:
        made = await wallet(client, local_chain, "refused")
        body = signed(made, seqno=7, amount=1, to=somebody("x"))

        with pytest.raises(LiteServerError, match="exitcode=133"):
            await made.send_external(body=body)
        stray = made.create_external_msg(dest=somebody("nobody"), body=body)
        with pytest.raises(LiteServerError, match="not accepted"):
            await client.raw_send_message(stray.serialize().to_boc())
        with pytest.raises(LiteServerError, match="cannot parse"):
            await client.raw_send_message(b"no cells")
        assert await made.get_seqno() == 1


async def test_the_faucet_refuses_what_it_cannot_do(local_chain: LocalChain) -> None:
    for address, amount in (("nonsense", 1), (f"-1:{'0' * 64}", 1), (f"0:{'0' * 64}", 0), (f"0:{'0' * 64}", 10**19)):
        with pytest.raises(ChainControlError):
            local_chain.faucet(address, amount)
    with pytest.raises(ChainControlError, match="seconds"):
        local_chain.advance(-1)
    with pytest.raises(ChainControlError, match="no fault nonsense"):
        local_chain.fault(nonsense=1)
    with pytest.raises(ChainControlError, match="drop"):
        local_chain.fault(drop=-1)


async def test_a_page_in_a_browser_cannot_use_the_control_port(local_chain: LocalChain) -> None:
    url = local_chain.control_url
    async with httpx.AsyncClient(trust_env=False) as client:
        foreign = await client.get(f"{url}/info", headers={"host": "attacker.example"})
        simple = await client.post(f"{url}/advance", content='{"seconds": 1}', headers={"content-type": "text/plain"})

    assert (foreign.status_code, simple.status_code) == (403, 415)


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_keeps_everything(own_chain: LocalChain, kill: bool) -> None:
    async with connected(own_chain) as client:
        made = await wallet(client, own_chain, "restarted")
        own_chain.advance(3600)
        before = own_chain.info()
        transactions = [one.cell.hash for one in await client.get_transactions(made.address, 16)]
        block = client.last_mc_block

    own_chain.restart(kill=kill)

    after = own_chain.info()
    assert after.seqno >= before.seqno
    assert after.now >= before.now
    assert (after.offset_s, after.accounts, after.total_nano) == (3600, before.accounts, before.total_nano)
    assert (after.zerostate, after.liteserver) == (before.zerostate, before.liteserver)
    async with connected(own_chain, 1) as client:
        assert [one.cell.hash for one in await client.get_transactions(made.address, 16)] == transactions
        again, _ = await client.lookup_block(-1, WHOLE_BASECHAIN, seqno=block.seqno)
        assert again == block
        then, _ = await client.raw_get_account_state(made.address, block)
        assert then is not None
        assert client.last_mc_block.seqno > 1


async def test_messages_on_their_way_survive_a_crash(own_chain: LocalChain) -> None:
    async with connected(own_chain) as client:
        made = await wallet(client, own_chain, "on the way")
        # Nobody knows where the crash hits; wherever it does, the coins arrive or were never sent.
        await made.transfer(somebody("traveller"), TON)
        own_chain.restart(kill=True)
    async with connected(own_chain) as client:
        own_chain.advance(0)
        own_chain.advance(0)
        arrived = await balance(client, somebody("traveller"))
        seqno, *_ = await client.run_get_method(made.address, "seqno", [])
        assert (arrived, seqno) in {(0, 1), (TON, 2)}


async def test_time_can_be_moved(own_chain: LocalChain) -> None:
    async with connected(own_chain) as client:
        made = await wallet(client, own_chain, "late")
        before = own_chain.info().now
        reached = own_chain.advance(86_400)
        await caught_up(client, reached.seqno)

        header = await client.raw_get_block_header(client.last_mc_block)
        assert header.info.gen_utime >= before + 86_400
        assert (await client.get_time())["now"] >= before + 86_400
        with pytest.raises(LiteServerError, match="exitcode=136"):
            await made.send_external(body=signed(made, seqno=1, amount=TON, to=somebody("late"), valid_until=before))
        await made.send_external(
            body=signed(made, seqno=1, amount=TON, to=somebody("late"), valid_until=reached.now + 60)
        )

        async def received() -> bool:
            return await balance(client, somebody("late")) == TON

        await until(received)
