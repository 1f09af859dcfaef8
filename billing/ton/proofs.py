"""What a liteserver's answers prove: an account's state, or that there is none, as of one masterchain block.

A block's root hash commits to its state, the masterchain's state to the shards' blocks, a shard's block to its state,
and that to every account. Each step is checked here against hashes; nothing is taken on the server's word but the
masterchain block that the question named. Source: TON's `block.tlb` and `check-proof.cpp`.
"""

from typing import Any

import msgspec
from pytoniq_core import Cell as TheirCell
from pytoniq_core import Slice as TheirSlice
from pytoniq_core.proof.check_proof import ProofError, check_block_header_proof, check_shard_proof
from pytoniq_core.tl.block import BlockIdExt
from pytoniq_core.tlb.account import Account
from pytoniq_core.tlb.block import BlockInfo, ShardIdent

from billing.ton.chain import AccountState, AccountStatus, BlockRef, ChainProofError
from cocoon.addresses import Address
from cocoon.cells import BAG_CELLS_MAX, Cell, read_boc
from cocoon.errors import MalformedError

MASTERCHAIN = -1
WHOLE_SHARD = -(1 << 63)
_SHARD_STATE = 0x9023AFE2
BROKEN_CELLS = (AssertionError, AttributeError, IndexError, KeyError, MalformedError, TypeError, ValueError, ProofError)
"""How pytoniq-core fails on cells that are not what they should be."""
_ORDINARY = -1
"""The type that pytoniq-core gives to an ordinary cell."""


class ForeignChainError(ChainProofError):
    """The liteserver is of another network."""

    code = "chain_foreign"


class ProvenAccount(msgspec.Struct, frozen=True):
    """Where an account stands in its shard: the hash of its state, and its last transaction."""

    state_hash: bytes
    last_lt: int
    last_hash: bytes


def block_id(block: BlockRef) -> BlockIdExt:
    """The identity of a masterchain block, as liteservers take it."""
    return BlockIdExt(
        workchain=MASTERCHAIN, shard=WHOLE_SHARD, seqno=block.seqno, root_hash=block.root_hash,
        file_hash=block.file_hash,
    )  # fmt: skip


def read_header(header_proof: bytes, root_hash: bytes, *, global_id: int) -> tuple[int, int]:
    """The seqno and time that a block's header proves.

    Raises:
        ChainProofError: it is not the header of that block.
        ForeignChainError: the block is of another network.
    """
    try:
        block = TheirCell.one_from_boc(header_proof)[0]
        check_block_header_proof(block, root_hash)
        source = block.begin_parse()
        source.load_uint(32)
        found = source.load_int(32)
        info: Any = BlockInfo.deserialize(source.load_ref().begin_parse())
        seqno, gen_utime = int(info.seqno), int(info.gen_utime)
    except BROKEN_CELLS as error:
        raise ChainProofError(f"the block's header does not prove itself: {error}") from error
    if found != global_id:
        raise ForeignChainError(f"the liteserver is of network {found}, not {global_id}")
    return seqno, gen_utime


def read_account(answer: dict[str, Any], address: Address, block: BlockRef, *, global_id: int) -> AccountState:
    """The account that an answer to `getAccountState` proves as of `block`.

    Raises:
        ChainProofError: the answer is about another block, or does not follow from it.
        ForeignChainError: the state is of another network.
    """
    try:
        asked = block_id(block)
        if _block_of(answer["id"]) != asked:
            raise ProofError("the answer is about another block")
        shard = _block_of(answer["shardblk"])
        if shard.workchain != address.workchain:
            raise ProofError("the answer is about another workchain")
        check_shard_proof(shard_proof=answer["shard_proof"], blk=asked, shrd_blk=shard)
        proven = _proven_account(answer["proof"], shard, address, global_id)
        state = TheirCell.one_from_boc(answer["state"]) if answer["state"] else None
        if proven is None:
            if state is not None:
                raise ProofError("the shard has no such account")
            return AccountState(address, block, AccountStatus.ABSENT)
        if state is None or hash_of(state) != proven.state_hash:
            raise ProofError("the account's state is another one")
        return _state(state, proven, address, block)
    except BROKEN_CELLS as error:
        raise ChainProofError(f"the account does not prove itself: {error}") from error


def _proven_account(proof: bytes, shard: BlockIdExt, address: Address, global_id: int) -> ProvenAccount | None:
    roots = TheirCell.from_boc(proof)
    if len(roots) != 2:  # noqa: PLR2004  the block's proof and its state's
        raise ProofError("an account's proof has two roots")
    state_hash = check_block_header_proof(roots[0][0], shard.root_hash, store_state_hash=True)
    state_cell: Any = roots[1][0]
    if hash_of(state_cell) != state_hash:
        raise ProofError("the shard's state is another one")
    # Read by hand: pytoniq would read every account of the shard.
    source = state_cell.begin_parse()
    if source.load_uint(32) != _SHARD_STATE:
        raise ProofError("not a shard's state")
    found = source.load_int(32)
    if found != global_id:
        raise ForeignChainError(f"the liteserver is of network {found}, not {global_id}")
    held: Any = ShardIdent.deserialize(source)
    width = int(held.shard_pfx_bits)
    key = f"{int.from_bytes(address.account, 'big'):0256b}"
    if held.workchain_id != address.workchain or f"{held.shard_prefix:064b}"[:width] != key[:width]:
        raise ProofError("the shard is not the account's")
    # The references of a shard's state: the queue, the accounts, and the rest (block.tlb, shard_state#9023afe2).
    return find_account(state_cell.refs[1], key)


def find_account(accounts: TheirCell, key: str) -> ProvenAccount | None:
    """Walk `ShardAccounts` down to a key of 256 bits; None where the dictionary proves that it is not there.

    Raises:
        ProofError: the way is pruned, so that nothing is proven.
    """
    source = _ordinary(accounts)
    if not source.load_bit():
        return None
    source = _ordinary(source.load_ref())
    while True:
        label = _label(source, len(key))
        if not key.startswith(label):
            return None
        key = key[len(label) :]
        if not key:
            return _leaf(source)
        source = _ordinary(source.refs[int(key[0])])
        key = key[1:]


def _ordinary(cell: TheirCell) -> TheirSlice:
    if cell.type_ != _ORDINARY:
        raise ProofError("the proof is cut off before the account")
    return cell.begin_parse()


def _label(source: TheirSlice, room: int) -> str:
    """A label of at most `room` bits (`HmLabel`: short, long or same)."""
    width = room.bit_length()
    if not source.load_bit():
        length = 0
        while source.load_bit():
            length += 1
    elif not source.load_bit():
        length = source.load_uint(width)
    else:
        bit = "1" if source.load_bit() else "0"
        return bit * _bounded(source.load_uint(width), room)
    return source.load_bits(_bounded(length, room)).to01() if length else ""


def _bounded(length: int, room: int) -> int:
    if length > room:
        raise ProofError("a label is longer than its key")
    return length


def _leaf(source: TheirSlice) -> ProvenAccount:
    """`DepthBalanceInfo`, then `ShardAccount`."""
    source.load_uint(5)
    source.load_coins()
    if source.load_bit():
        source.load_ref()
    account = source.load_ref()
    last_hash = source.load_bytes(32)
    return ProvenAccount(hash_of(account), source.load_uint(64), last_hash)


def _state(cell: TheirCell, proven: ProvenAccount, address: Address, block: BlockRef) -> AccountState:
    account: Any = Account.deserialize(cell.begin_parse())
    if account is None:
        return AccountState(address, block, AccountStatus.ABSENT, last_lt=proven.last_lt, last_hash=proven.last_hash)
    if account.addr.hash_part != address.account or account.addr.wc != address.workchain:
        raise ProofError("the state is of another account")
    state: Any = account.storage.state
    status, code_hash, data = AccountStatus.UNINITIALISED, None, None
    if state.type_ == "account_active":
        status, init = AccountStatus.ACTIVE, state.state_init
        code_hash = None if init.code is None else hash_of(init.code)
        data = None if init.data is None else our_cell(init.data)
    elif state.type_ == "account_frozen":
        status = AccountStatus.FROZEN
    return AccountState(
        address, block, status, int(account.storage.balance.grams), code_hash, data, proven.last_lt, proven.last_hash
    )


def hash_of(cell: Any) -> bytes:
    """A cell's representation hash; of a pruned one that of what was pruned."""
    return cell.get_hash(0)


def _block_of(said: dict[str, Any]) -> BlockIdExt:
    made: Any = BlockIdExt
    return made.from_dict(said)


def our_cell(cell: TheirCell) -> Cell:
    """A cell of pytoniq's as one of ours.

    Raises:
        MalformedError: it has exotic cells in it.
    """
    return read_boc(cell.to_boc(), cells_max=BAG_CELLS_MAX)


def account_id(address: Address) -> dict[str, Any]:
    """An address as liteservers take it."""
    return {"workchain": address.workchain, "id": address.account.hex()}
