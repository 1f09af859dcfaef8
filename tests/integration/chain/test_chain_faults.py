"""What the local chain does wrong when it is asked to, as clients see it."""

import asyncio
from collections.abc import Iterator

import pytest
from pytoniq import LiteClient, LiteServerError
from pytoniq.liteclient.client import LiteClientError
from pytoniq_core.proof.check_proof import ProofError

from tests.chain_clients import TON, balance, caught_up, connected, signed, somebody, until, wallet
from tests.fixtures_chain import LocalChain

pytestmark = pytest.mark.timeout(300)

UNREACHABLE = (LiteClientError, AttributeError, ConnectionError, asyncio.IncompleteReadError, TimeoutError)
"""What pytoniq raises where nobody answers."""


@pytest.fixture
def faulty_chain(local_chain: LocalChain) -> Iterator[LocalChain]:
    """The shared chain, whose faults end with the test."""
    try:
        yield local_chain
    finally:
        local_chain.fault(clear=True)


async def _ask_twice(client: LiteClient) -> None:
    # The first answer may have been on its way.
    await client.get_time()
    await client.get_time()


async def test_a_dropped_external_was_accepted_and_never_happens(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        made = await wallet(client, faulty_chain, "dropped")
        faulty_chain.fault(drop=1)
        body = signed(made, seqno=1, amount=TON, to=somebody("dropped"))

        await made.send_external(body=body)
        await caught_up(client, faulty_chain.advance(0).seqno)
        assert await made.get_seqno() == 1
        assert faulty_chain.fault()["drop"] == 0

        await made.send_external(body=body)

        async def received() -> bool:
            return await balance(client, somebody("dropped")) == TON

        await until(received)


async def test_a_delayed_external_happens_that_many_blocks_later(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        made = await wallet(client, faulty_chain, "delayed")
        faulty_chain.fault(delay=1, delay_blocks=4)
        before = faulty_chain.info().seqno
        await made.send_external(body=signed(made, seqno=1, amount=TON, to=somebody("delayed")))

        async def sent() -> bool:
            await client.update_last_blocks()
            return await made.get_seqno() == 2

        await until(sent)
        _, (block, *_) = await client.raw_get_transactions(made.address, 1)
        assert block.seqno > before + 4


async def test_a_duplicated_external_happens_once(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        made = await wallet(client, faulty_chain, "twice")
        faulty_chain.fault(duplicate=1)
        await made.send_external(body=signed(made, seqno=1, amount=TON, to=somebody("twice")))

        async def received() -> bool:
            return await balance(client, somebody("twice")) > 0

        await until(received)
        await caught_up(client, faulty_chain.advance(0).seqno)
        assert await balance(client, somebody("twice")) == TON
        assert await made.get_seqno() == 2


async def test_a_server_may_refuse_bytes_that_it_has_seen(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        made = await wallet(client, faulty_chain, "again")
        faulty_chain.fault(reject_repeats=True, drop=1)
        body = signed(made, seqno=1, amount=TON, to=somebody("again"))
        await made.send_external(body=body)

        with pytest.raises(LiteServerError, match="duplicate message"):
            await made.send_external(body=body)


async def test_lagging_reads_are_consistent_and_old(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain, 1) as client:
        made = await wallet(client, faulty_chain, "lagging")
        faulty_chain.fault(lag_blocks=3)
        faulty_chain.faucet(somebody("new").to_str(), TON)
        faulty_chain.fault(halt=True)
        head = faulty_chain.info().seqno

        await client.update_last_blocks()
        assert client.last_mc_block.seqno == head - 3
        assert await balance(client, somebody("new")) == 0
        faulty_chain.fault(clear=True)
        assert await balance(client, somebody("new")) == TON
        assert made.is_active


async def test_a_lie_about_an_account_does_not_pass_the_check_of_its_proof(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        victim, honest = somebody("victim"), somebody("honest")
        faulty_chain.faucet(victim.to_str(), TON)
        faulty_chain.faucet(honest.to_str(), TON)
        faulty_chain.fault(lie_about=f"0:{victim.hash_part.hex()}")

        with pytest.raises(ProofError, match="account state proof invalid"):
            await balance(client, victim)
        assert await balance(client, honest) == TON


async def test_a_halted_chain_makes_no_blocks_until_it_is_let_go(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        faulty_chain.fault(halt=True)
        halted = faulty_chain.info().seqno
        with pytest.raises(LiteServerError, match="timeout") as caught:
            await client.wait_masterchain_seqno(halted + 1, 1500, "getMasterchainInfo")
        assert caught.value.code == 652
        assert faulty_chain.info().seqno == halted

        faulty_chain.fault(clear=True)
        await caught_up(client, halted + 2)


async def test_connections_can_be_closed_and_refused(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        faulty_chain.fault(close_connections=True)
        with pytest.raises(UNREACHABLE):
            await _ask_twice(client)
    async with connected(faulty_chain) as client:
        assert (await client.get_time())["now"] > 0
        faulty_chain.fault(refuse=True)
    with pytest.raises(UNREACHABLE):
        async with connected(faulty_chain, query_s=5):
            pass
    faulty_chain.fault(clear=True)
    async with connected(faulty_chain) as client:
        assert (await client.get_time())["now"] > 0


async def test_a_silent_server_lets_clients_wait(faulty_chain: LocalChain) -> None:
    async with connected(faulty_chain) as client:
        faulty_chain.fault(silent=True)
        client.timeout = 1
        with pytest.raises(TimeoutError):
            await client.get_time()


async def test_a_second_chain_does_not_write_into_a_directory_in_use(faulty_chain: LocalChain) -> None:
    process = await asyncio.create_subprocess_exec(
        *faulty_chain.server.launch().argv[:4], stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()

    assert process.returncode == 2
    assert b"already runs" in error
