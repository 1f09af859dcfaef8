"""Stopping the biller while the chain fails: nothing that fails may make it forget that it was told to stop."""

import asyncio

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.postgres.turn import TurnLostError
from billing.settlement.biller import every
from billing.settlement.watch import each
from billing.ton import liteclient
from billing.ton.chain import ChainUnavailableError
from billing.ton.liteclient import LiteChain
from billing.ton.settings import Liteserver
from cocoon.clock import SystemClock

PATIENCE_S = 60.0


async def test_a_loop_ends_when_told_to_even_if_its_work_fails_in_that_moment() -> None:
    begun, rounds = asyncio.Event(), 0

    async def fails_when_it_is_left() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ChainUnavailableError from None

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            raise TurnLostError
        await each([0], lambda _: fails_when_it_is_left(), str)

    task = asyncio.ensure_future(every(0.0, "work", work))
    await begun.wait()
    task.cancel()

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait({task})
    assert task.cancelled()


async def test_who_closes_a_chain_can_be_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytoniq's own `close` swallows the cancellation of its caller.
    closing = asyncio.Event()

    class Clinging:
        inited = True

        async def liteserver_request(self, _name: str, _data: object) -> dict[str, object]:
            raise ConnectionResetError

        async def connect(self) -> None:
            pass

        async def close(self) -> None:
            closing.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    monkeypatch.setattr("billing.ton.liteclient._Connection", lambda *_args, **_settings: Clinging())
    chain = LiteChain((Liteserver("127.0.0.1", 1, bytes(32)),), SystemClock(), global_id=-3)
    asking = asyncio.ensure_future(chain.head())
    await closing.wait()
    asking.cancel()

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.parametrize("answered", [True, False], ids=["answer", "broken"])
async def test_who_asks_a_chain_can_be_told_to_stop_in_the_moment_of_the_answer(
    monkeypatch: pytest.MonkeyPatch, *, answered: bool
) -> None:
    # pytoniq's own question forgets a cancellation that comes together with its answer (`asyncio.wait_for`).
    asked = asyncio.Queue[asyncio.Future[dict[str, object]]]()

    class Silent(liteclient._Connection):
        async def connect(self) -> None:
            self.inited = True

        async def send_and_encrypt(self, _data: bytes, _query: str) -> asyncio.Future[dict[str, object]]:
            answer = asyncio.get_running_loop().create_future()
            asked.put_nowait(answer)
            return answer

    monkeypatch.setattr(liteclient, "_Connection", Silent)
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    asking = asyncio.ensure_future(LiteChain((Liteserver("127.0.0.1", 1, key),), SystemClock(), global_id=-3).head())
    async with asyncio.timeout(PATIENCE_S):
        answer = await asked.get()
    if answered:
        answer.set_result({"last": {"root_hash": "00" * 32, "file_hash": "00" * 32, "seqno": 1}})
    else:
        answer.set_exception(ConnectionResetError())
    asking.cancel()

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait({asking})
    assert asking.cancelled()
