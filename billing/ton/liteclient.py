"""The chain through TON's liteservers, on pytoniq.

pytoniq's own client has an updater of blocks that dies without a word, does not reconnect, and reads at whatever block
it saw last. None of that is used: every read names its block, the head is asked for, each question has its deadline,
and a connection that failed is closed and opened anew behind a pause that grows. What an answer proves is checked in
`billing.ton.proofs`; with that the only thing that is believed is which masterchain block is the last.
"""

import asyncio
import base64
import contextlib
from typing import Any, Self

from pytoniq import LiteClient, LiteServerError
from pytoniq.liteclient.client import LiteClientError

from billing.ton.chain import (
    TRANSACTIONS_MAX,
    AccountState,
    BlockRef,
    ChainProofError,
    ChainTransaction,
    ChainUnavailableError,
    MessageRefusedError,
)
from billing.ton.history import read_page
from billing.ton.proofs import MASTERCHAIN, WHOLE_SHARD, account_id, block_id, read_account, read_header
from billing.ton.settings import Liteserver
from cocoon.addresses import Address
from cocoon.cancellation import cancellation_kept
from cocoon.clock import Clock

ANSWER_S_MAX = 10.0
"""Deadline of one question to one liteserver, the connection included."""
PAUSE_S_MIN, PAUSE_S_MAX = 0.2, 15.0
"""A liteserver that failed is left alone that long; doubled each time until it answers."""
BEHIND_BLOCKS_MAX = 32
"""A head so much older than one that was seen is no head: the liteserver is lagging."""
HEADERS_MAX = 256
"""Blocks whose headers are remembered."""
_BY_SEQNO = 1
"""Mode of `lookupBlock`."""
_PAGE = 16
"""Most transactions of one answer (TON's own limit)."""
_BROKEN = (
    LiteClientError, OSError, EOFError, TimeoutError, AssertionError, AttributeError, IndexError, KeyError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""How pytoniq fails when a connection does: `AttributeError: 'NoneType'`, among others."""
_EXTERNAL_FAILED = "external message"
"""What a liteserver's refusal of a message says, as against not being able to answer."""


_LiteClient: Any = LiteClient
"""Untyped on purpose: pytoniq's annotations are partial."""


class _Connection(_LiteClient):
    """pytoniq's client without its tasks that keep a last block: here every question says its own."""

    async def update_last_blocks(self) -> None:
        """Nothing: `head` asks."""

    async def block_updater(self) -> None:
        """Nothing, as above."""

    async def ping(self) -> None:
        """Keep the connection open; that it ended is for the next question to find."""
        with contextlib.suppress(*_BROKEN):
            await _LiteClient.ping(self)


class _Peer:
    """One liteserver: connected when needed, left alone for a while after it failed."""

    def __init__(self, server: Liteserver, clock: Clock, *, answer_s: float) -> None:
        self.server = server
        self._clock = clock
        self._answer_s = answer_s
        self._client: Any = None
        self._lock = asyncio.Lock()
        self._closing: set[asyncio.Future[Any]] = set()
        self._pause_s = 0.0
        self._resumes_at = 0.0

    @property
    def is_resting(self) -> bool:
        """Whether it failed lately and is left alone."""
        return self._clock.monotonic() < self._resumes_at

    async def ask(self, name: str, data: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question.

        Raises:
            LiteServerError: the server answered with an error.
            ChainUnavailableError: it did not answer.
        """
        with cancellation_kept():
            try:
                async with asyncio.timeout(self._answer_s):
                    answer = await self._answered(name, data)
            except LiteServerError:
                self._pause_s = 0.0
                raise
            except _BROKEN as error:
                await self._failed()
                failure = f"liteserver {self.server} did not answer: {type(error).__name__}"
                raise ChainUnavailableError(failure) from error
            self._pause_s = 0.0
            return answer

    async def _answered(self, name: str, data: dict[str, Any]) -> dict[str, Any]:
        used_before = self._client is not None
        client = await self._connected()
        try:
            answer: dict[str, Any] = await client.liteserver_request(name, data)
        except _BROKEN as error:
            # A connection that was open may have been closed since; a new one deserves its chance at once.
            if not used_before or isinstance(error, (LiteServerError, TimeoutError)):
                raise
            await self._drop(client)
            answer = await (await self._connected()).liteserver_request(name, data)
        return answer

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            await self._drop(self._client)

    def rest(self) -> None:
        """Leave it alone for a while, longer each time."""
        self._pause_s = min(max(self._pause_s * 2, PAUSE_S_MIN), PAUSE_S_MAX)
        self._resumes_at = self._clock.monotonic() + self._pause_s

    async def _connected(self) -> Any:
        async with self._lock:
            if self._client is None or not self._client.inited:
                await self.close()
                key = base64.b64encode(self.server.public_key).decode()
                client = _Connection(self.server.host, self.server.port, key, timeout=self._answer_s, trust_level=2)
                try:
                    await client.connect()
                except BaseException:
                    await self._close(client)
                    raise
                self._client = client
            return self._client

    async def _drop(self, client: Any) -> None:
        """Close a connection; a newer one stays."""
        if self._client is client:
            self._client = None
        await self._close(client)

    async def _close(self, client: Any) -> None:
        """Close beside the caller: pytoniq's `close` takes the cancellation of whoever waits for it for its own."""
        closing = asyncio.ensure_future(client.close())  # noqa: TID251  outlives a caller that is told to stop
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        with contextlib.suppress(*_BROKEN):
            await asyncio.shield(closing)

    async def _failed(self) -> None:
        self.rest()
        await self.close()


class LiteChain:
    """The chain of one network, asked of whichever of some liteservers answers.

    Use it as a context manager, or `close` it.
    """

    def __init__(
        self, servers: tuple[Liteserver, ...], clock: Clock, *, global_id: int, answer_s: float = ANSWER_S_MAX
    ) -> None:
        assert servers, "a chain has liteservers"
        self._peers = [_Peer(server, clock, answer_s=answer_s) for server in servers]
        self._global_id = global_id
        self._head: BlockRef | None = None
        self._blocks: dict[str, BlockRef] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        for peer in self._peers:
            await peer.close()

    async def head(self) -> BlockRef:
        """The last masterchain block that any answering liteserver has; it never goes back.

        Raises:
            ChainUnavailableError: no liteserver answered, or all are far behind what was seen before.
            ChainProofError: a block's header does not prove itself, or is of another network.
        """
        failure: Exception = ChainUnavailableError()
        for peer in self._in_turn():
            try:
                found = await self._head_of(peer)
            except (ChainUnavailableError, ChainProofError) as error:
                failure = _worse(failure, error)
                continue
            known = self._head
            if known is None or found.seqno >= known.seqno:
                self._head = found
                return found
            if known.seqno - found.seqno <= BEHIND_BLOCKS_MAX:
                return known
            failure = ChainUnavailableError(f"liteserver {peer.server} is {known.seqno - found.seqno} blocks behind")
            peer.rest()
        raise failure

    async def block(self, seqno: int) -> BlockRef:
        """The masterchain block of a number. Its header is proven; that it is in the chain is a liteserver's word.

        Raises:
            ChainUnavailableError: no liteserver answered, or none has a block of that number (any more).
            ChainProofError: the header does not prove itself, or is of another number or network.
        """
        asked = {"workchain": MASTERCHAIN, "shard": WHOLE_SHARD, "seqno": seqno}
        data: dict[str, Any] = {"mode": _BY_SEQNO, "id": asked, "lt": None, "utime": None}
        failure: Exception = ChainUnavailableError()
        for peer in self._in_turn():
            try:
                answer = await self._asked(peer, "lookupBlock", data)
                return self._proven(answer["id"], answer["header_proof"], seqno)
            except (ChainUnavailableError, ChainProofError) as error:
                failure = _worse(failure, error)
        raise failure

    async def account(self, address: Address, block: BlockRef | None = None) -> AccountState:
        """An account as of a block, proven.

        Raises:
            ChainUnavailableError: no liteserver answered, or none has the block (yet).
            ChainProofError: the answers do not follow from the block.
        """
        at = block if block is not None else await self.head()
        data: dict[str, Any] = {"id": block_id(at).to_dict(), "account": account_id(address)}
        failure: Exception = ChainUnavailableError()
        for peer in self._in_turn():
            try:
                return read_account(
                    await self._asked(peer, "getAccountState", data), address, at, global_id=self._global_id
                )
            except (ChainUnavailableError, ChainProofError) as error:
                failure = _worse(failure, error)
        raise failure

    async def transactions(self, address: Address, *, after_lt: int = 0, limit: int = _PAGE) -> list[ChainTransaction]:
        """Transactions above `after_lt`, newest first, each proven by the hash in the one after it.

        Raises:
            ChainUnavailableError: no liteserver answered, or none keeps that much of the past.
            ChainProofError: the answers do not follow from the account's state.
        """
        state = await self.account(address)
        lt, hash_, found = state.last_lt, state.last_hash, list[ChainTransaction]()
        limit = min(limit, TRANSACTIONS_MAX)
        while lt > after_lt and len(found) < limit:
            page = await self._page(address, lt, hash_, min(_PAGE, limit - len(found)))
            for transaction, lt, hash_ in page:  # noqa: B007  the last one's predecessor is where the next page begins
                if transaction.lt > after_lt:
                    found.append(transaction)
        return found

    async def send(self, boc: bytes) -> None:
        """Broadcast a message through one liteserver.

        Raises:
            MessageRefusedError: the liteserver tried it and it failed.
            ChainUnavailableError: no liteserver took it; one that did not answer may have.
        """
        failure: Exception = ChainUnavailableError()
        for peer in self._in_turn():
            try:
                await peer.ask("sendMessage", {"body": boc})
            except LiteServerError as error:
                said = str(error)
                if _EXTERNAL_FAILED in said:
                    raise MessageRefusedError(said[:200]) from error
                failure = ChainUnavailableError(f"liteserver {peer.server}: {said}")
            except ChainUnavailableError as error:
                failure = error
            else:
                return
        raise failure

    def _in_turn(self) -> list[_Peer]:
        """Those that are well first; the others are tried too, once: better late than not at all."""
        return sorted(self._peers, key=lambda peer: peer.is_resting)

    async def _asked(self, peer: _Peer, name: str, data: dict[str, Any]) -> dict[str, Any]:
        try:
            return await peer.ask(name, data)
        except LiteServerError as error:
            raise ChainUnavailableError(f"liteserver {peer.server}: {error.code} {error.message}") from error

    async def _head_of(self, peer: _Peer) -> BlockRef:
        last: dict[str, Any] = (await self._asked(peer, "getMasterchainInfo", {}))["last"]
        known = self._blocks.get(last["root_hash"])
        if known is None:
            answer = await self._asked(peer, "getBlockHeader", {"id": last, "mode": 0})
            known = self._proven(last, answer["header_proof"], last["seqno"])
            if len(self._blocks) >= HEADERS_MAX:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[last["root_hash"]] = known
        return known

    def _proven(self, said: dict[str, Any], header_proof: bytes, seqno: int) -> BlockRef:
        root_hash = bytes.fromhex(said["root_hash"])
        found, gen_utime = read_header(header_proof, root_hash, global_id=self._global_id)
        if found != seqno:
            raise ChainProofError("the block has another number than the liteserver says")
        return BlockRef(seqno, root_hash, bytes.fromhex(said["file_hash"]), gen_utime)

    async def _page(
        self, address: Address, lt: int, hash_: bytes, count: int
    ) -> list[tuple[ChainTransaction, int, bytes]]:
        data: dict[str, Any] = {
            "count": count, "account": account_id(address), "lt": lt, "hash": hash_.hex(),
        }  # fmt: skip
        failure: Exception = ChainUnavailableError()
        for peer in self._in_turn():
            try:
                return read_page((await self._asked(peer, "getTransactions", data))["transactions"], hash_)
            except (ChainUnavailableError, ChainProofError) as error:
                failure = _worse(failure, error)
        raise failure


def _worse(first: Exception, second: Exception) -> Exception:
    """Of two failures the one to report: a lie rather than silence."""
    return first if isinstance(first, ChainProofError) else second
