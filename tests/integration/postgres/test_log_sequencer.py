"""The sequencer on a real database: killed anywhere, it loses and doubles nothing; rewritten, it signs nothing."""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.entries import LeafType, entry_of
from audit.errors import LogKeyError, LogRewrittenError, NotLoggedError
from audit.postgres.queue import enqueue, enqueue_digests
from audit.postgres.reader import LogReader, Signed
from audit.postgres.sequencer import Sequencer, append, sign
from audit.tiles import TileRange, decode_bundle
from billing.postgres.pool import Connection, Pool, connect
from cocoon.checkpoints import Checkpoint, NoteSigner, open_checkpoint
from cocoon.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion

DEADLINE_S = 60.0
ORIGIN = "cocoon-log/-217"
SIGNER = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"l" * 32))


def envelopes(count: int, first: int = 0) -> list[bytes]:
    return [f"receipt {number}".encode() for number in range(first, first + count)]


async def queue(connection: Connection, count: int, first: int = 0) -> None:
    digests = [hashlib.sha256(one).digest() for one in envelopes(count, first)]
    await enqueue_digests(connection, LeafType.RECEIPT, digests)


async def leaves(connection: Connection) -> list[bytes]:
    rows = await connection.fetch("SELECT leaf_index, leaf_type, digest FROM log_leaves ORDER BY leaf_index")
    assert [row["leaf_index"] for row in rows] == list(range(len(rows)))
    return [bytes([row["leaf_type"]]) + row["digest"] for row in rows]


async def require_whole(connection: Connection, count: int) -> None:
    """Every queued entry is in the log once, and the last checkpoint is the tree of exactly those."""
    found = await leaves(connection)
    assert sorted(found) == sorted(entry_of(LeafType.RECEIPT, one).encode() for one in envelopes(count))
    assert await connection.fetchval("SELECT count(*) FROM log_queue") == 0
    row = await connection.fetchrow("SELECT size, root, note FROM log_checkpoints ORDER BY size DESC LIMIT 1")
    assert row is not None
    assert (row["size"], row["root"]) == (count, Tree([leaf_hash(one) for one in found]).root)
    assert open_checkpoint(row["note"], SIGNER.verifier, origin=ORIGIN).size == count


async def require_history(connection: Connection) -> None:
    """Every checkpoint ever signed is a beginning of the log as it is now."""
    found = [leaf_hash(one) for one in await leaves(connection)]
    for row in await connection.fetch("SELECT size, root FROM log_checkpoints"):
        assert row["root"] == Tree(found[: row["size"]]).root


class DiesError(Exception):
    """Stands for SIGKILL."""


class Mortal:
    """A connection whose session is cut at its n-th statement, before or after the server has run it."""

    def __init__(self, connection: Any, at: int, *, after: bool) -> None:
        self._connection = connection
        self._left = at
        self._after = after

    def transaction(self) -> Any:
        @contextlib.asynccontextmanager
        async def cut() -> AsyncIterator[None]:
            async with self._connection.transaction():
                yield
                self._count()
            self._count()

        return cut()

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._connection.terminate()
            raise DiesError

    def __getattr__(self, name: str) -> Any:
        async def call(*args: object) -> Any:
            if not self._after:
                self._count()
            answer = await getattr(self._connection, name)(*args)
            if self._after:
                self._count()
            return answer

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_any_statement_nothing_is_lost_or_doubled(
    database_url: str, connection: Connection, after: bool
) -> None:
    count = 0
    for step in itertools.count():
        await queue(connection, 130, first=count)
        count += 130
        died = False
        async with connect(database_url, application="dies") as mortal:
            try:
                fragile: Any = Mortal(mortal, step, after=after)
                while await append(fragile, 100):
                    await sign(fragile, SIGNER)
            except (DiesError, asyncpg.InterfaceError):
                died = True
        while await append(connection, 100):
            pass
        await sign(connection, SIGNER)
        await require_whole(connection, count)
        if not died:
            break
    await require_history(connection)
    assert step > 15


async def test_entries_prove_themselves_against_the_checkpoint(connection: Connection, pool: Pool) -> None:
    await queue(connection, 300)
    await append(connection, 300)
    await sign(connection, SIGNER)
    reader = LogReader(pool)
    checkpoint = open_checkpoint((await reader.checkpoint()).note, SIGNER.verifier, origin=ORIGIN)

    for at in (0, 255, 256, 299):
        entry = entry_of(LeafType.RECEIPT, envelopes(1, at)[0])
        proof, signed = await reader.inclusion(entry)
        assert (proof.index, proof.size, signed.root) == (at, 300, checkpoint.root)
        verify_inclusion(entry.encode(), at, 300, proof.path, checkpoint.root)
    proof, _ = await reader.inclusion(entry_of(LeafType.RECEIPT, envelopes(1, 3)[0]), 5)
    verify_inclusion(
        entry_of(LeafType.RECEIPT, envelopes(1, 3)[0]).encode(), 3, 5, proof.path,
        Tree([leaf_hash(one) for one in (await leaves(connection))[:5]]).root,
    )  # fmt: skip


async def test_growth_proves_itself_between_checkpoints(connection: Connection, pool: Pool) -> None:
    signed: list[Signed] = []
    for first, count in ((0, 1), (1, 254), (255, 1), (256, 300)):
        await queue(connection, count, first)
        await append(connection, count)
        signed.append(await sign(connection, SIGNER))
    reader = LogReader(pool)

    for old, new in itertools.combinations(signed, 2):
        proof = await reader.consistency(old.size, new.size)
        verify_consistency(old.size, proof.size, proof.path, old.root, new.root)


async def test_tiles_and_bundles_are_shown_up_to_what_is_signed(connection: Connection, pool: Pool) -> None:
    await queue(connection, 300)
    await append(connection, 300)
    reader = LogReader(pool)
    with pytest.raises(NotLoggedError):
        await reader.checkpoint()
    await sign(connection, SIGNER)
    await queue(connection, 10, 300)
    await append(connection, 10)
    found = await leaves(connection)

    assert await reader.tile(0, TileRange(0, 256)) == b"".join(leaf_hash(one) for one in found[:256])
    assert await reader.tile(0, TileRange(1, 44)) == b"".join(leaf_hash(one) for one in found[256:300])
    assert await reader.tile(1, TileRange(0, 1)) == Tree([leaf_hash(one) for one in found[:256]]).root
    assert [one.encode() for one in decode_bundle(await reader.bundle(TileRange(1, 44)))] == found[256:300]
    for level, asked in ((0, TileRange(1, 45)), (0, TileRange(2, 1)), (1, TileRange(0, 2)), (8, TileRange(0, 1))):
        with pytest.raises(NotLoggedError):
            await reader.tile(level, asked)
    with pytest.raises(NotLoggedError):
        await reader.inclusion(entry_of(LeafType.RECEIPT, envelopes(1, 305)[0]))
    with pytest.raises(NotLoggedError):
        await reader.consistency(1, 305)


async def test_an_entry_queued_again_while_it_gets_its_place_is_placed_once(
    database_url: str, connection: Connection
) -> None:
    await queue(connection, 1)
    async with connect(database_url, application="second") as second:
        async with connection.transaction():
            await append(connection)
            again = asyncio.ensure_future(queue(second, 1))
            blocked = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'"
            )
            async with asyncio.timeout(DEADLINE_S):
                while not await connection.fetchval(blocked):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        await again
    await append(connection)
    await sign(connection, SIGNER)

    await require_whole(connection, 1)


async def test_an_empty_log_is_signed_once(connection: Connection) -> None:
    first = await sign(connection, SIGNER)

    assert Checkpoint.decode(SIGNER.verifier.open(first.note)).size == 0
    assert await sign(connection, SIGNER) == first


# What must not be signed


async def signed_log(connection: Connection) -> Signed:
    await queue(connection, 300)
    await append(connection, 300)
    return await sign(connection, SIGNER)


async def tamper(connection: Connection, *statements: str) -> None:
    """Change what the triggers guard, as somebody with the database in his hands would."""
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)


_OTHER_LEAF = (
    "UPDATE log_tiles SET content = sha256('x') || substr(content, 33) WHERE tile_level = 0 AND tile_index = 0"
)
_OTHER_NODE = "UPDATE log_tiles SET content = sha256('x') WHERE tile_level = 1"


@pytest.mark.parametrize(
    "statements",
    [
        (_OTHER_NODE,),
        ("UPDATE log_tiles SET content = substr(content, 1, 32) WHERE tile_level = 0 AND tile_index = 1",),
        ("DELETE FROM log_tiles WHERE tile_level = 1",),
        ("UPDATE log_tree SET root = sha256('x')",),
        ("DELETE FROM log_tree",),
    ],
)
async def test_a_damaged_edge_is_not_built_upon(connection: Connection, statements: tuple[str, ...]) -> None:
    await signed_log(connection)
    await tamper(connection, *statements)
    await queue(connection, 1, 300)

    with pytest.raises(LogRewrittenError):
        await append(connection)
    assert len(await leaves(connection)) == 300


async def rewrite(connection: Connection, size: int) -> None:
    """Replace the whole log by another one of this size, consistent in itself."""
    await tamper(connection, "TRUNCATE log_leaves, log_tiles", "UPDATE log_tree SET size = 0, root = sha256('')")
    await queue(connection, size, 10_000)
    await append(connection, size)


@pytest.mark.parametrize(
    ("size", "reason"), [(300, "does not continue"), (400, "does not continue"), (299, "were signed")]
)
async def test_a_rewritten_log_is_not_signed(connection: Connection, size: int, reason: str) -> None:
    await signed_log(connection)
    await rewrite(connection, size)

    with pytest.raises(LogRewrittenError, match=reason):
        await sign(connection, SIGNER)


async def test_a_log_rewritten_with_its_checkpoints_is_not_signed_by_who_remembers(connection: Connection) -> None:
    known = await signed_log(connection)
    await rewrite(connection, 400)
    await tamper(connection, "DELETE FROM log_checkpoints")

    with pytest.raises(LogRewrittenError, match="does not continue"):
        await sign(connection, SIGNER, known)


async def test_a_log_rewritten_before_its_anchor_is_not_signed(connection: Connection) -> None:
    await signed_log(connection)
    await connection.execute("UPDATE log_checkpoints SET anchored_at = now()")
    await rewrite(connection, 400)
    other = SIGNER.sign(Checkpoint(origin=ORIGIN, size=0, root=hashlib.sha256().digest()).encode())
    await connection.execute("INSERT INTO log_checkpoints (size, root, note) VALUES (0, sha256(''), $1)", other)

    with pytest.raises(LogRewrittenError, match="does not continue"):
        await sign(connection, SIGNER)


async def test_a_checkpoint_row_that_says_something_else_than_its_note_stops_the_log(connection: Connection) -> None:
    await signed_log(connection)
    await rewrite(connection, 400)
    await tamper(connection, "UPDATE log_checkpoints SET root = (SELECT root FROM log_tree), size = 400")

    with pytest.raises(LogRewrittenError, match="something else"):
        await sign(connection, SIGNER)


async def test_another_key_does_not_continue_the_log(connection: Connection) -> None:
    await signed_log(connection)
    await queue(connection, 1, 300)
    await append(connection)

    with pytest.raises(LogKeyError):
        await sign(connection, NoteSigner(ORIGIN, Ed25519PrivateKey.generate()))
    assert (await sign(connection, SIGNER)).size == 301


# Processes


async def until(connection: Connection, query: str, wanted: object) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await connection.fetchval(query) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(database_url: str) -> AsyncIterator[tuple[Sequencer, "asyncio.Task[None]"]]:
    sequencer = Sequencer(database_url, SIGNER, interval_s=0.02, batch_entries=16)
    task = asyncio.ensure_future(sequencer.run())
    try:
        yield sequencer, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_of_two_sequencers_one_leads_and_the_other_takes_over(database_url: str, connection: Connection) -> None:
    size = "SELECT max(size) FROM log_checkpoints"
    async with running(database_url) as first, running(database_url) as second:
        await queue(connection, 100)
        await until(connection, size, 100)
        assert first[0].leads != second[0].leads
        (_, dying), (survivor, _) = (first, second) if first[0].leads else (second, first)
        dying.cancel()
        await queue(connection, 100, 100)
        await until(connection, size, 200)
        assert survivor.leads
    await require_whole(connection, 200)
    await require_history(connection)


async def test_a_sequencer_whose_session_is_cut_goes_on(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.postgres.sequencer.RETRY_S", 0.02)
    size = "SELECT max(size) FROM log_checkpoints"
    async with running(database_url):
        for round_number in range(3):
            await queue(connection, 40, 40 * round_number)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cocoon-log'"
            )
            await until(connection, size, 40 * (round_number + 1))
    await require_whole(connection, 120)
    await require_history(connection)


async def test_envelopes_of_public_entries_are_served(connection: Connection, pool: Pool) -> None:
    await enqueue(connection, LeafType.MANIFEST, b"manifest")
    reader = LogReader(pool)

    assert await reader.envelope(entry_of(LeafType.MANIFEST, b"manifest")) == b"manifest"
    with pytest.raises(NotLoggedError):
        await reader.envelope(entry_of(LeafType.RECEIPT, b"manifest"))
