"""The one sequencer: gives queued entries their places, and signs what the log has become (PROTOCOL §5).

Whoever has the advisory lock leads; it belongs to the session of the very connection that everything is written with,
so that a leader that lost its lock cannot write. Appending is one transaction: leaves, tiles, the tree's size and the
emptied queue are there together or not at all. Signing comes after it, from what was read back: the tree must continue
the last checkpoint (and the last one that the chain knows), or nothing is signed. A process that dies between the two
leaves a tree that is ahead of its checkpoint, and the next one signs.
"""

import asyncio
from collections.abc import Sequence

import structlog

from audit.entries import Entry, LeafType
from audit.errors import LogKeyError, LogRewrittenError, LogUnavailableError
from audit.postgres.connections import Connection, Record, connected
from audit.postgres.reader import Signed, read_tiles
from audit.postgres.statements import SQL
from audit.tree import Leaves, consistency_ranges, edge_ranges, grow, hashes_of, range_hash, tiles_for
from cocoon.checkpoints import Checkpoint, NoteSigner, open_checkpoint
from cocoon.errors import MalformedError
from cocoon.merkle import verify_consistency

LEADER_LOCK_KEY = 4848484815
BATCH_ENTRIES = 2048
"""Entries of one transaction: about 4 ms of hashing."""
INTERVAL_S = 1.0
"""How long entries gather, and how often who does not lead asks for the lock."""
RETRY_S = 5.0
_SESSION = {
    "statement_timeout": "10000",
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "10000",
    # A leader that hangs, or whose host is gone, loses its session and with it the lock.
    "idle_session_timeout": "30000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
log = structlog.get_logger()


class Sequencer:
    """One process's candidate. `signer`'s name is the log's origin."""

    def __init__(
        self, database_url: str, signer: NoteSigner, *, interval_s: float = INTERVAL_S,
        batch_entries: int = BATCH_ENTRIES,
    ) -> None:  # fmt: skip
        self._database_url = database_url
        self._signer = signer
        self._interval_s = interval_s
        self._batch_entries = batch_entries
        self._signed: Signed | None = None
        self.leads = False

    async def run(self) -> None:
        """Wait for the lead and keep the log until cancelled."""
        while True:
            try:
                async with connected(self._database_url, application="cocoon-log", settings=_SESSION) as connection:
                    await self._lead(connection)
            except LogUnavailableError as error:
                log.warning("log_unavailable", error=type(error.__cause__ or error).__name__)
            except (LogRewrittenError, LogKeyError) as error:
                # Nothing heals this by itself: the entries wait, and it is said again until somebody looks.
                log.error("log_stopped", code=error.code, reason=str(error))
            finally:
                self.leads = False
            await asyncio.sleep(RETRY_S)

    async def _lead(self, connection: Connection) -> None:
        while not await connection.fetchval(SQL["try_lead"], LEADER_LOCK_KEY):  # noqa: ASYNC110  the lock is Postgres'
            await asyncio.sleep(self._interval_s)
        self.leads, begun = True, False
        log.info("log_sequencer_leads", origin=self._signer.verifier.name)
        while True:
            taken = await append(connection, self._batch_entries)
            if taken or not begun:
                self._signed = await sign(connection, self._signer, self._signed)
                begun = True
            if taken < self._batch_entries:
                await asyncio.sleep(self._interval_s)


async def append(connection: Connection, limit: int = BATCH_ENTRIES) -> int:
    """Give up to `limit` queued entries their places, all or nothing; returns how many were taken from the queue.

    Raises:
        LogRewrittenError: the tiles at the edge are not those of the tree.
        LogUnavailableError: another process has grown the tree meanwhile.
    """
    async with connection.transaction():
        rows = await connection.fetch(SQL["take_queued"], limit)
        if not rows:
            return 0
        entries = [_entry(row) for row in rows if not row["is_placed"]]
        if entries:
            await _place(connection, entries)
        await connection.execute(SQL["delete_queued"], [row["id"] for row in rows])
    return len(rows)


async def _place(connection: Connection, entries: Sequence[Entry]) -> None:
    tree = await connection.fetchrow(SQL["read_tree"])
    if tree is None:
        raise LogRewrittenError("the tree's row is gone")
    size: int = tree["size"]
    edge = await read_tiles(connection, tiles_for(edge_ranges(size)))
    if range_hash(Leaves(0, size), edge) != tree["root"]:
        raise LogRewrittenError("the tiles at the edge do not lead to the tree's root")
    growth = grow(size, edge, [entry.encode() for entry in entries])
    await connection.execute(
        SQL["insert_leaves"], size, [entry.type.value for entry in entries], [entry.digest for entry in entries]
    )
    await connection.execute(
        SQL["put_tiles"], [tile.level for tile in growth.tiles], [tile.number for tile in growth.tiles],
        list(growth.tiles.values()),
    )  # fmt: skip
    if await connection.fetchval(SQL["grow_tree"], size, growth.size, growth.root) is None:
        raise LogUnavailableError("another process has grown the tree")


async def sign(connection: Connection, signer: NoteSigner, known: Signed | None = None) -> Signed:
    """The last checkpoint, which covers the whole tree: a new one where it has grown.

    `known` is what the caller itself has signed last: the tree must continue it even where every row was changed.

    Raises:
        LogRewrittenError: the stored tree does not continue what was signed or anchored.
        LogKeyError: the last checkpoint is not by this key.
    """
    tree = await connection.fetchrow(SQL["read_tree"])
    if tree is None:
        raise LogRewrittenError("the tree's row is gone")
    size: int = tree["size"]
    last = _checkpoint(await connection.fetchrow(SQL["read_checkpoint"]))
    if last is not None:
        _require_ours(last, signer)
    anchored = _checkpoint(await connection.fetchrow(SQL["read_anchored"]))
    trusted = {(one.size, one.root) for one in (known, last, anchored) if one is not None}
    root = await _proven_root(connection, size, trusted)
    if last is not None and last.size == size:
        return last
    note = signer.sign(Checkpoint(origin=signer.verifier.name, size=size, root=root).encode())
    await connection.execute(SQL["insert_checkpoint"], size, root, note)
    log.debug("checkpoint_signed", size=size)
    return Signed(size, root, note)


async def _proven_root(connection: Connection, size: int, trusted: set[tuple[int, bytes]]) -> bytes:
    """The root of the stored tiles, which continue every tree in `trusted`."""
    for old_size, _ in trusted:
        if old_size > size:
            raise LogRewrittenError(f"the tree has {size} entries, and {old_size} were signed")
    whole = Leaves(0, size)
    proofs = {old: consistency_ranges(old[0], size) for old in trusted}
    wanted = tiles_for([*edge_ranges(size), *(leaves for ranges in proofs.values() for leaves in ranges)])
    tiles = await read_tiles(connection, wanted)
    root = range_hash(whole, tiles)
    for (old_size, old_root), ranges in proofs.items():
        try:
            verify_consistency(old_size, size, hashes_of(ranges, tiles), old_root, root)
        except MalformedError as error:
            raise LogRewrittenError(
                f"the tree of {size} entries does not continue the signed one of {old_size}"
            ) from error
    return root


def _require_ours(signed: Signed, signer: NoteSigner) -> None:
    verifier = signer.verifier
    try:
        checkpoint = open_checkpoint(signed.note, verifier, origin=verifier.name)
    except MalformedError as error:
        raise LogKeyError from error
    if (checkpoint.size, checkpoint.root) != (signed.size, signed.root):
        raise LogRewrittenError("a stored checkpoint says something else than what was signed")


def _checkpoint(row: Record | None) -> Signed | None:
    return None if row is None else Signed(row["size"], row["root"], row["note"])


def _entry(row: Record) -> Entry:
    return Entry(type=LeafType(row["leaf_type"]), digest=row["digest"])
