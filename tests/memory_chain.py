"""A chain in memory: the double of `billing.ton.chain.Chain`, with wallets v5r1 that obey their signatures.

What is sent waits in `pool` until `mine` makes a block of it, so that a test decides what is lost (`pool.clear()`),
what is late and what arrives twice. Contracts are whatever a test puts into `put`; `on_message` is called for every
message that a wallet sends.
"""

import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from billing.ton.chain import (
    AccountState,
    AccountStatus,
    BlockRef,
    ChainMessage,
    ChainTransaction,
    ChainUnavailableError,
    MessageRefusedError,
)
from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice, read_boc
from cocoon.contracts.messages import StateInit

GENESIS_S = 1_800_000_000
BLOCK_S = 5
SIGNATURE_BITS = 512


class MemoryChain:
    """One chain; `now` is its time, and `mine` makes a block. `unavailable` fails every call while it is set."""

    def __init__(self, *, now: int = GENESIS_S) -> None:
        self.now = now
        self.seqno = 1
        self.lt = 1_000_000
        self.pool: list[bytes] = []
        self.sent: list[bytes] = []
        """Every broadcast that was taken, in order."""
        self.delivered: list[ChainMessage] = []
        """Every message that a wallet has sent, in order."""
        self.unavailable = False
        self.on_message: Callable[[ChainMessage], None] = lambda message: None
        self._states: dict[Address, AccountState] = {}
        self._history: dict[int, dict[Address, AccountState]] = {}
        self._transactions: dict[Address, list[ChainTransaction]] = {}
        self._times: dict[int, int] = {}
        self._remember()

    # What the port says.

    async def head(self) -> BlockRef:
        self._require_available()
        return self._block(self.seqno)

    async def block(self, seqno: int) -> BlockRef:
        self._require_available()
        if seqno not in self._times:
            raise ChainUnavailableError
        return self._block(seqno)

    async def account(self, address: Address, block: BlockRef | None = None) -> AccountState:
        self._require_available()
        seqno = self.seqno if block is None else block.seqno
        found = self._history[seqno].get(address)
        at = self._block(seqno)
        if found is None:
            return AccountState(address, at, AccountStatus.ABSENT)
        return AccountState(
            address, at, found.status, found.balance_nano, found.code_hash, found.data, found.last_lt, found.last_hash
        )

    async def transactions(self, address: Address, *, after_lt: int = 0, limit: int = 16) -> list[ChainTransaction]:
        self._require_available()
        newest = reversed(self._transactions.get(address, []))
        return [one for one in newest if one.lt > after_lt][:limit]

    async def send(self, boc: bytes) -> None:
        self._require_available()
        self._execute(boc, dry=True)
        self.sent.append(boc)
        self.pool.append(boc)

    # What a test does.

    def put(self, address: Address, data: Cell | None, *, code: Cell | None = None, balance_nano: int = 10**9) -> None:
        """Set an account; it is seen from the next block on. Without `code` it keeps the one it has."""
        self.lt += 1
        status = AccountStatus.UNINITIALISED if data is None else AccountStatus.ACTIVE
        before = self._states.get(address)
        code_hash = code.hash if code is not None else (before.code_hash if before is not None else None)
        self._states[address] = AccountState(
            address, self._block(self.seqno), status, balance_nano, code_hash, data, self.lt, hash_of(self.lt)
        )

    def deploy_wallet(self, init: StateInit, *, balance_nano: int = 10**12) -> Address:
        """A wallet v5r1 that obeys its key from the next block on."""
        self.put(init.address, init.data, code=init.code, balance_nano=balance_nano)
        return init.address

    def mine(self, *, seconds: int = BLOCK_S) -> int:
        """One block of everything in the pool, in order; what fails leaves nothing behind. How many succeeded."""
        done, pool = 0, self.pool
        self.pool = []
        for boc in pool:
            try:
                self._execute(boc, dry=False)
                done += 1
            except MessageRefusedError:
                continue
        self.seqno += 1
        self.now += seconds
        self._remember()
        return done

    def _execute(self, boc: bytes, *, dry: bool) -> None:
        source = Slice(read_boc(boc, cells_max=8192))
        source.uint(2)
        source.maybe_address()
        wallet = source.address()
        source.coins()
        init = StateInit.decode(source.ref()) if source.uint(1) and source.uint(1) else None
        body = source.ref() if source.uint(1) else source.rest()
        state = self._states.get(wallet)
        if state is None:
            raise MessageRefusedError("no such account")
        data, code = state.data, None
        if data is None and init is not None and init.address == wallet:
            data, code = init.data, init.code
        if data is None:
            raise MessageRefusedError("the wallet is not deployed")
        self._obey(wallet, state, data, body, code=code, dry=dry)

    def _obey(
        self, wallet: Address, state: AccountState, data: Cell, body: Cell, *, code: Cell | None, dry: bool
    ) -> None:
        held = Slice(data)
        held.uint(1)
        seqno, wallet_id, key = held.uint(32), held.uint(32), held.raw(32)
        said = Slice(body)
        said.uint(32)
        if (said.uint(32), self.now < said.uint(32), said.uint(32)) != (wallet_id, True, seqno):
            raise MessageRefusedError("wrong wallet id, seqno or time")
        signed = Builder().uint(body.read(0, body.bits - SIGNATURE_BITS), body.bits - SIGNATURE_BITS)
        for ref in body.refs:
            signed.ref(ref)
        signature = body.read(body.bits - SIGNATURE_BITS, SIGNATURE_BITS).to_bytes(64, "big")
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, signed.end().hash)
        except InvalidSignature as error:
            raise MessageRefusedError("wrong signature") from error
        if dry:
            return
        messages = _actions(wallet, said.ref())
        self.put(wallet, Builder().uint(1, 1).uint(seqno + 1, 32).uint(wallet_id, 32).raw(key).uint(0, 1).end(),
                 code=code, balance_nano=state.balance_nano - sum(one.value_nano for one in messages))  # fmt: skip
        incoming = ChainMessage(None, wallet, 0, body)
        self._transactions.setdefault(wallet, []).append(
            ChainTransaction(self.lt, hash_of(self.lt), self.now, True, 0, incoming, tuple(messages))
        )
        for message in messages:
            self.delivered.append(message)
            self.on_message(message)

    def _block(self, seqno: int) -> BlockRef:
        return BlockRef(seqno, hash_of(seqno), hash_of(seqno + 1), self._times.get(seqno, self.now))

    def _remember(self) -> None:
        self._times[self.seqno] = self.now
        self._history[self.seqno] = dict(self._states)

    def _require_available(self) -> None:
        if self.unavailable:
            raise ChainUnavailableError


def hash_of(number: int) -> bytes:
    """A hash that tests can tell from others."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def _actions(wallet: Address, actions: Cell) -> list[ChainMessage]:
    found: list[ChainMessage] = []
    while actions.bits:
        action = Slice(actions)
        actions = action.ref()
        action.uint(40)
        message = Slice(action.ref())
        message.uint(4)
        message.maybe_address()
        destination, value = message.address(), message.coins()
        message.uint(1)
        message.coins()
        message.coins()
        message.uint(96)
        if message.uint(1) and message.uint(1):
            message.ref()
        body = message.ref() if message.uint(1) else message.rest()
        found.append(ChainMessage(wallet, destination, value, body))
    found.reverse()
    return found
