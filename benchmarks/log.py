"""What the transparency log takes: entries a second from the queue into Postgres, with fsync on, and proofs out of it.

    python -m benchmarks.log [--entries 100000] [--batch 2048]

On the embedded Postgres of `make dev`, whose client shares the machine with it.
"""

import argparse
import asyncio
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.entries import Entry, LeafType
from audit.postgres.connections import Connection
from audit.postgres.queue import enqueue_digests
from audit.postgres.reader import LogReader
from audit.postgres.sequencer import BATCH_ENTRIES, append, sign
from audit.tree import edge_ranges as edge
from audit.tree import grow, tiles_for
from billing.postgres.migrate import migrate
from billing.postgres.pool import connect, open_pool
from cli.dev.postgres import EmbeddedPostgres
from cocoon.checkpoints import NoteSigner, open_checkpoint
from cocoon.merkle import verify_inclusion

ORIGIN = "cocoon-log/benchmark"
QUEUE_ROWS = 200
"""As many as an agent delivers at once."""
PROOFS = 500


def main() -> None:
    """Run everything and print one line for each figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=BATCH_ENTRIES)
    options = parser.parse_args()
    measure_tree(options.entries, options.batch)
    with (
        tempfile.TemporaryDirectory(prefix="cocoon-bench-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", password="benchmark") as postgres,
    ):
        asyncio.run(measure_postgres(postgres.dsn, options.entries, options.batch))


def measure_tree(count: int, batch: int) -> None:
    """Hashing alone."""
    leaves = [b"\x01" + digest for digest in digests(count)]
    size, tiles = 0, {}
    began = time.perf_counter()
    for at in range(0, count, batch):
        growth = grow(size, {tile: tiles[tile] for tile in tiles_for(edge(size))}, leaves[at : at + batch])
        size = growth.size
        tiles |= growth.tiles
    say("tree in memory", f"{count / (time.perf_counter() - began):,.0f} leaves/s")


async def measure_postgres(url: str, count: int, batch: int) -> None:
    await migrate(url)
    made = digests(count)
    async with connect(url, application="benchmark") as found, open_pool(url, application="benchmark") as pool:
        connection: Connection = found
        began = time.perf_counter()
        for at in range(0, count, QUEUE_ROWS):
            await enqueue_digests(connection, LeafType.RECEIPT, made[at : at + QUEUE_ROWS])
        say("queued", f"{count / (time.perf_counter() - began):,.0f} leaves/s", f"{QUEUE_ROWS} a transaction")
        signer = NoteSigner(ORIGIN, Ed25519PrivateKey.generate())
        times: list[float] = []
        began = time.perf_counter()
        while await append(connection, batch):
            before = time.perf_counter()
            await sign(connection, signer)
            times.append(time.perf_counter() - before)
        elapsed = time.perf_counter() - began
        say("appended and signed", f"{count / elapsed:,.0f} leaves/s", f"{batch} a transaction, a checkpoint each")
        say("checkpoint", f"{statistics.median(times) * 1000:.1f} ms", "consistency proof, signature, commit")
        reader = LogReader(pool)
        checkpoint = open_checkpoint((await reader.checkpoint()).note, signer.verifier, origin=ORIGIN)
        assert checkpoint.size == count
        times = []
        for at in range(0, count, max(1, count // PROOFS)):
            entry = Entry(type=LeafType.RECEIPT, digest=made[at])
            before = time.perf_counter()
            proof, _ = await reader.inclusion(entry)
            times.append(time.perf_counter() - before)
            verify_inclusion(entry.encode(), proof.index, proof.size, proof.path, checkpoint.root)
        say("inclusion proof", f"{statistics.median(times) * 1000:.1f} ms", f"of {count:,} entries, verified")
        size = await connection.fetchval(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname IN ('log_leaves', 'log_tiles')"
        )
        say("on disk", f"{size / count:.0f} bytes", "an entry, with its indexes and tiles")


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


def say(what: str, figure: str, note: str = "") -> None:
    print(f"{what:<24}{figure:>20}   {note}")


if __name__ == "__main__":
    main()
