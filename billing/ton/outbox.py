"""The outbox: what shall happen on the chain once, however often the biller dies.

An *intent* is a message that the operator's wallet shall send, named by a key of its own. Intents are put into a signed
*body*, at most 255 at a time; the body is stored before it is broadcast and broadcast again, byte for byte, until the
chain shows what became of it:

- its seqno is used and the wallet's transaction has its bytes: what that transaction sent is delivered, and what it
  left out goes back to the queue;
- its seqno is used by something else, or the chain is past its time: it can never be executed, and all goes back.

Until then no other body is signed for the wallet, so an intent is never in two bodies of which both could be executed.
Seqno and time are read together, at one proven block.
"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Protocol

import msgspec
import structlog

from billing.ton.chain import (
    TRANSACTIONS_MAX,
    BlockRef,
    Chain,
    ChainError,
    ChainTransaction,
    ChainUnavailableError,
    MessageRefusedError,
)  # fmt: skip
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_messages import MESSAGES_MAX, Transfer
from cocoon.addresses import Address
from cocoon.cells import BAG_CELLS_MAX, Cell, Slice, read_boc
from cocoon.errors import MalformedError

VALID_S = 120
"""How long a body may be executed, in seconds of the chain."""
PAST_S = 60
"""How far the chain must be past that: a shard's block may be older than the masterchain block that names it."""
ATTEMPTS_MAX = 5
"""Bodies that an intent may be in; after that it is stuck, and somebody has to look."""
FEE_NANO = 10_000_000
"""What stays in the wallet for each message beside its value (0.01): measured fees are some 0.0002."""

_LOOKS = (16, 512, TRANSACTIONS_MAX)
"""How far back a body's transaction is looked for: answers to its messages come after it."""

_log = structlog.get_logger(__name__)


class WalletEmptyError(ChainError):
    """The operator's wallet cannot pay for what it shall send."""

    code: ClassVar[str] = "chain_wallet_empty"


class LaggingError(ChainUnavailableError):
    """The chain as we are shown it is older than what we know of it."""

    code: ClassVar[str] = "chain_lagging"


class Intent(msgspec.Struct, frozen=True):
    """One message to send once. `key` names it for ever: the same key again is the same intent, not another."""

    key: str
    transfer: Transfer


class StoredBody(msgspec.Struct, frozen=True):
    """A signed body as it was stored, with its intents in the order of its messages. `valid_until` is Unix seconds."""

    body_id: int
    seqno: int
    valid_until: int
    boc: bytes
    intents: tuple[Intent, ...]


class Delivery(msgspec.Struct, frozen=True):
    """What became of a body: the transaction that executed it, if one did, and the keys of what that sent."""

    body_id: int
    lt: int | None
    delivered: frozenset[str]


class OutboxStore(Protocol):
    """Where intents and bodies are kept, for one wallet. Every method is one transaction."""

    async def enqueue(self, intents: Sequence[Intent]) -> None:
        """Keep intents; a key that is there already is left as it is."""
        ...

    async def pending(self) -> StoredBody | None:
        """The body whose fate is open."""
        ...

    async def queued(self, limit: int) -> list[Intent]:
        """The oldest intents that are in no open body, are not delivered, and were not tried too often."""
        ...

    async def last_seqno(self) -> int | None:
        """The largest seqno of a body that was executed."""
        ...

    async def keep(self, *, seqno: int, valid_until: int, boc: bytes, keys: Sequence[str]) -> None:
        """Store a body with its intents, as the open one.

        Raises:
            RecordRefusedError: another body is open, one of this seqno was executed, or an intent is not queued.
        """
        ...

    async def settle(self, delivery: Delivery) -> None:
        """Close a body: mark what was delivered, and queue the rest again. Once more is no more than once."""
        ...


async def _anybody() -> None:
    """Nobody else can be active."""


class Outbox:
    """Sends the intents of one wallet. `step` is called again and again by whoever is active.

    `require_active` is awaited before a body is stored and before each broadcast; it raises where this process is not
    the active one any more. The store alone keeps two processes from signing twice: this keeps them from trying.
    """

    def __init__(
        self, chain: Chain, store: OutboxStore, wallet: OperatorWallet,
        require_active: Callable[[], Awaitable[None]] = _anybody,
    ) -> None:  # fmt: skip
        self._chain = chain
        self._store = store
        self._wallet = wallet
        self._require_active = require_active

    async def step(self) -> bool:
        """Do the next thing; whether there was any, so that the caller may wait before the next step.

        Raises:
            ChainUnavailableError: the chain does not answer, or shows itself as older than it is.
            ChainProofError: a liteserver lies.
            WalletEmptyError: there is something to send and nothing to send it with.
            WalletStateError: the wallet's account is not what its key makes.
        """
        body = await self._store.pending()
        if body is None:
            return await self._sign_next()
        await self._follow(body)
        return True

    async def _sign_next(self) -> bool:
        queued = await self._store.queued(MESSAGES_MAX)
        if not queued:
            return False
        head = await self._chain.head()
        state = await self._chain.account(self._wallet.address, head)
        seqno = self._wallet.seqno_of(state)
        last = await self._store.last_seqno()
        if last is not None and seqno <= last:
            raise LaggingError
        batch = _affordable(queued, state.balance_nano)
        valid_until = head.gen_utime + VALID_S
        boc = self._wallet.sign([one.transfer for one in batch], seqno=seqno, valid_until=valid_until)
        await self._require_active()
        await self._store.keep(seqno=seqno, valid_until=valid_until, boc=boc, keys=[one.key for one in batch])
        _log.info("chain_body_stored", seqno=seqno, messages=len(batch), valid_until=valid_until)
        await self._broadcast(boc, seqno)
        return True

    async def _follow(self, body: StoredBody) -> None:
        head = await self._chain.head()
        state = await self._chain.account(self._wallet.address, head)
        seqno = self._wallet.seqno_of(state)
        if seqno > body.seqno:
            await self._store.settle(await self._delivery(body))
        elif seqno < body.seqno:
            raise LaggingError
        elif is_past(body, head):
            _log.warning("chain_body_expired", seqno=body.seqno, messages=len(body.intents))
            await self._store.settle(Delivery(body.body_id, None, frozenset()))
        else:
            await self._broadcast(body.boc, body.seqno)

    async def _broadcast(self, boc: bytes, seqno: int) -> None:
        await self._require_active()
        try:
            await self._chain.send(boc)
        except MessageRefusedError as error:
            # It was executed just now, or the liteserver is behind; the next look at the seqno tells.
            _log.info("chain_body_refused", seqno=seqno, reason=str(error))

    async def _delivery(self, body: StoredBody) -> Delivery:
        said = signed_part(body.boc)
        for limit in _LOOKS:
            for one in await self._chain.transactions(self._wallet.address, limit=limit):
                message = one.incoming
                if message is None or message.source is not None:
                    continue
                if message.body.hash == said.hash:
                    return _delivered(body, one)
                if _seqno_in(message.body) == body.seqno and one.succeeded:
                    # Somebody else has the key, and was faster.
                    _log.error("chain_seqno_taken", seqno=body.seqno, lt=one.lt)
                    return Delivery(body.body_id, None, frozenset())
        raise ChainUnavailableError("the wallet's transaction is not among the last ones")


def is_past(body: StoredBody, head: BlockRef) -> bool:
    """Whether a body that was not executed as of `head` never will be."""
    return head.gen_utime > body.valid_until + PAST_S


def query_id_of(key: str) -> int:
    """A query id for an intent, the same for the same key: what its answers on the chain are known by."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def signed_part(boc: bytes) -> Cell:
    """The signed body in an external message."""
    source = Slice(read_boc(boc, cells_max=BAG_CELLS_MAX))
    source.uint(2)
    source.maybe_address()
    source.address()
    source.coins()
    if source.uint(1):
        source.uint(1)
        source.ref()
    source.uint(1)
    return source.ref()


def _seqno_in(body: Cell) -> int | None:
    """The seqno of a wallet's signed body: operation, wallet id, time, seqno."""
    try:
        return body.read(96, 32)
    except MalformedError:
        return None


def _affordable(queued: Sequence[Intent], balance_nano: int) -> list[Intent]:
    batch: list[Intent] = []
    left = balance_nano
    for one in queued:
        left -= one.transfer.value_nano + FEE_NANO
        if left < 0:
            break
        batch.append(one)
    if not batch:
        raise WalletEmptyError
    return batch


def _delivered(body: StoredBody, transaction: ChainTransaction) -> Delivery:
    """Which of a body's intents its transaction has sent, by destination and exact body."""
    sent: Counter[tuple[Address | None, bytes]] = Counter(
        (one.destination, one.body.hash) for one in transaction.outgoing
    )
    delivered: set[str] = set()
    for one in body.intents:
        message = (one.transfer.destination, one.transfer.body.hash)
        if sent[message]:
            sent[message] -= 1
            delivered.add(one.key)
    return Delivery(body.body_id, transaction.lt, frozenset(delivered))
