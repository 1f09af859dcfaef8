"""Clients of the local chain: pytoniq as it is, wallets v5r1, and patience."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from nacl.signing import SigningKey
from pytoniq import LiteClient, WalletV5R1
from pytoniq_core import Address, Cell, begin_cell

from tests.fixtures_chain import LocalChain

SECONDS_MAX = 60.0
POLL_SECONDS = 0.02
QUERY_SECONDS = 30
GLOBAL_ID = -3
TON = 10**9


@contextlib.asynccontextmanager
async def connected(chain: LocalChain, trust_level: int = 2, query_s: int = QUERY_SECONDS) -> AsyncIterator[LiteClient]:
    (server,) = json.loads(chain.config.read_text())["liteservers"]
    assert server["ip"] == 0x7F000001
    client = LiteClient("127.0.0.1", server["port"], server["id"]["key"], timeout=query_s, trust_level=trust_level)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not await holds():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(POLL_SECONDS)


async def caught_up(client: LiteClient, seqno: int) -> None:
    async def there() -> bool:
        await client.update_last_blocks()
        return client.last_mc_block.seqno >= seqno

    await until(there)


async def wallet(client: LiteClient, chain: LocalChain, name: str, amount_nano: int = 10 * TON) -> WalletV5R1:
    """A wallet that is funded and deployed; its seqno is 1."""
    key = SigningKey(hashlib.sha256(name.encode()).digest())
    made = await WalletV5R1.from_private_key(client, bytes(key) + bytes(key.verify_key), network_global_id=GLOBAL_ID)
    await caught_up(client, chain.faucet(made.address.to_str(), amount_nano).seqno)
    await made.send_init_external()

    async def active() -> bool:
        await client.update_last_blocks()
        await made.update()
        return made.is_active

    await until(active)
    return made


async def balance(client: LiteClient, address: Address) -> int:
    """As of the latest block that the liteserver shows."""
    await client.update_last_blocks()
    return (await client.get_account_state(address)).balance


def somebody(name: str) -> Address:
    """An address that nobody has a key for."""
    return Address((0, hashlib.sha256(name.encode()).digest()))


def signed(made: Any, *, seqno: int, amount: int, to: Address, valid_until: int | None = None) -> Cell:
    """A transfer's body, signed for this seqno and until this time on the chain."""
    message = made.create_wallet_internal_message(to, 3, amount, begin_cell().end_cell())
    return made.raw_create_transfer_msg(
        private_key=made.private_key, seqno=seqno, wallet_id=made.wallet_id, messages=[message],
        valid_until=valid_until,
    )  # fmt: skip
