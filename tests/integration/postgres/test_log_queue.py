"""Entries on their way into the log."""

import hashlib

import asyncpg
import pytest

from audit.entries import LeafType
from audit.errors import EnvelopeTooLongError
from audit.postgres.queue import ENVELOPE_BYTES_MAX, enqueue, enqueue_digests
from billing.postgres.pool import Connection


async def queued(connection: Connection) -> list[tuple[int, bytes]]:
    rows = await connection.fetch("SELECT leaf_type, digest FROM log_queue ORDER BY id")
    return [(row["leaf_type"], row["digest"]) for row in rows]


async def test_the_same_envelope_twice_is_one_entry(connection: Connection) -> None:
    await enqueue(connection, LeafType.ADMISSION, b"worker")
    await enqueue(connection, LeafType.ADMISSION, b"worker")
    await enqueue(connection, LeafType.REMOVAL, b"worker")

    digest = hashlib.sha256(b"worker").digest()
    assert await queued(connection) == [(2, digest), (3, digest)]


async def test_an_envelope_is_kept_unless_it_is_a_customers_receipt(connection: Connection) -> None:
    await enqueue(connection, LeafType.POLICY, b"policy")
    await enqueue(connection, LeafType.RECEIPT, b"receipt")

    rows = await connection.fetch("SELECT leaf_type, envelope FROM log_envelopes")
    assert [(row["leaf_type"], row["envelope"]) for row in rows] == [(4, b"policy")]
    assert [kind for kind, _ in await queued(connection)] == [4, 1]


async def test_what_is_rolled_back_was_never_queued(connection: Connection) -> None:
    async def fail() -> None:
        async with connection.transaction():
            await enqueue(connection, LeafType.POLICY, b"policy")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await queued(connection) == []


async def test_what_has_its_place_is_not_queued_again(connection: Connection) -> None:
    digest = hashlib.sha256(b"manifest").digest()
    await connection.execute("INSERT INTO log_leaves (leaf_index, leaf_type, digest) VALUES (0, 5, $1)", digest)
    await enqueue(connection, LeafType.MANIFEST, b"manifest")

    assert await queued(connection) == []


async def test_a_batch_keeps_its_order(connection: Connection) -> None:
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(50)]
    await enqueue_digests(connection, LeafType.RECEIPT, [*digests, *digests])

    assert await queued(connection) == [(1, digest) for digest in digests]


async def test_an_envelope_has_a_largest_size(connection: Connection) -> None:
    with pytest.raises(EnvelopeTooLongError):
        await enqueue(connection, LeafType.MANIFEST, bytes(ENVELOPE_BYTES_MAX + 1))
    await enqueue(connection, LeafType.MANIFEST, bytes(ENVELOPE_BYTES_MAX))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_leaves SET digest = sha256('x')",
        "DELETE FROM log_leaves",
        "UPDATE log_tiles SET content = sha256('x')",
        "UPDATE log_tiles SET content = substr(content, 1, 32)",
        "DELETE FROM log_tiles",
        "UPDATE log_checkpoints SET root = sha256('x')",
        "DELETE FROM log_checkpoints",
    ],
)
async def test_the_database_refuses_to_rewrite_the_log(connection: Connection, statement: str) -> None:
    await connection.execute("INSERT INTO log_leaves (leaf_index, leaf_type, digest) VALUES (0, 1, sha256('a'))")
    await connection.execute("INSERT INTO log_tiles VALUES (0, 0, sha256('a') || sha256('b'))")
    await connection.execute("INSERT INTO log_checkpoints (size, root, note) VALUES (1, sha256('a'), 'note')")

    with pytest.raises(asyncpg.PostgresError):
        await connection.execute(statement)


async def test_a_tile_may_grow_and_a_checkpoint_be_anchored(connection: Connection) -> None:
    await connection.execute("INSERT INTO log_tiles VALUES (0, 0, sha256('a'))")
    await connection.execute("INSERT INTO log_checkpoints (size, root, note) VALUES (1, sha256('a'), 'note')")

    assert await connection.execute("UPDATE log_tiles SET content = content || sha256('b')") == "UPDATE 1"
    assert await connection.execute("UPDATE log_checkpoints SET anchored_at = now()") == "UPDATE 1"
