"""The receipts' file when the disk is full, damaged or somebody else's: no job for which nothing could be proved."""

import asyncio
import datetime as dt
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cocoon.clock import ManualClock
from cocoon.receipt_batch import ReceiptBatch, ReceiptVerdicts, Verdict
from workers.agent import receipt_store
from workers.agent.receipt_sender import ReceiptSender
from workers.agent.receipt_store import KeptReceipt, ReceiptStore, ReceiptStoreError
from workers.agent.receipts import SignedReceipt
from workers.agent.signatures import SignatureVerifier

GLOBAL_ID = -217


class Gateway:
    """Judges everything as recorded."""

    global_id: int | None = GLOBAL_ID

    def __init__(self) -> None:
        self.heads: list[int] = []

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        batch = msgspec.json.decode(body, type=ReceiptBatch)
        self.heads += [int.from_bytes(one.head, "big") for one in batch.receipts]
        return 200, msgspec.json.encode(ReceiptVerdicts((Verdict.RECORDED,) * len(batch.receipts)))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_store, "RETRY_S", 0.01)


def a_receipt(number: int, body: bytes = b"{}") -> KeptReceipt:
    return KeptReceipt(
        signed=SignedReceipt(number.to_bytes(124, "big"), b"s" * 64, body, b"t" * 125),
        ticket=f"ticket-{number}", stub="stub", keyset=b"k", keyset_digest=b"d" * 32,
    )  # fmt: skip


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  another thread's doing
            await asyncio.sleep(0.001)


async def test_a_full_disk_stops_new_jobs_loses_nothing_and_is_over_when_there_is_room(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = ReceiptStore(tmp_path, "w", clock, grace_s=0)
    await store.keep(a_receipt(1))
    # As many pages as there are: the next receipts find the disk full.
    [(pages,)] = store._connection.execute("PRAGMA page_count").fetchall()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    kept = [store.keep(a_receipt(number, body=b"x" * 4000)) for number in range(2, 12)]
    await until(lambda: not store.accepting)
    assert not any(one.done() for one in kept[5:])
    # What is on the disk can still be delivered, if not noted; the sender goes on.
    gateway = Gateway()
    verifier = SignatureVerifier(clock, gateway, None)
    sender = ReceiptSender(store, gateway, verifier, random.Random(1), grace_s=0.01)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sender.run())
        await until(lambda: bool(gateway.heads))
        store._connection.execute("PRAGMA max_page_count = 100000")
        await asyncio.gather(*kept)
        await until(lambda: store.unacknowledged == 0)
        running.cancel()
    assert store.accepting
    assert set(gateway.heads) == set(range(1, 12))
    await store.aclose()


async def test_a_file_that_is_no_database_stops_the_start_with_its_place(clock: ManualClock, tmp_path: Path) -> None:
    (tmp_path / "receipts-w.sqlite3").write_bytes(b"this is not a database" * 500)
    with pytest.raises(ReceiptStoreError, match=str(tmp_path)):
        ReceiptStore(tmp_path, "w", clock)
    # Nothing was made of it: the operator may still have it looked at.
    assert (tmp_path / "receipts-w.sqlite3").read_bytes().startswith(b"this is not")


async def test_a_damaged_file_is_found_out_at_the_start_and_not_by_the_receipt_that_is_lost_in_it(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = ReceiptStore(tmp_path, "w", clock, grace_s=0)
    await asyncio.gather(*(store.keep(a_receipt(number, body=b"x" * 2000)) for number in range(200)))
    await store.aclose()
    file = tmp_path / "receipts-w.sqlite3"
    raw = bytearray(file.read_bytes())
    for page in range(8, len(raw) // 4096 - 1):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    file.write_bytes(raw)
    with pytest.raises(ReceiptStoreError, match=r"damaged|malformed"):
        ReceiptStore(tmp_path, "w", clock)


async def test_damage_while_it_runs_refuses_jobs_and_ends_neither_sender_nor_agent(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = ReceiptStore(tmp_path, "w", clock, grace_s=0)
    await store.keep(a_receipt(1))
    store._connection.execute("ALTER TABLE receipts RENAME TO elsewhere")
    with pytest.raises(ReceiptStoreError):
        await store.due(1)
    gateway = Gateway()
    sender = ReceiptSender(store, gateway, SignatureVerifier(clock, gateway, None), random.Random(1), grace_s=0.01)
    lost = store.keep(a_receipt(2))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sender.run())
        await until(lambda: not store.accepting and sender._failures > 0)
        store._connection.execute("ALTER TABLE elsewhere RENAME TO receipts")
        await lost
        await until(lambda: store.unacknowledged == 0)
        running.cancel()
    assert gateway.heads == [1, 2]
    await store.aclose()


async def test_a_file_that_another_process_holds_stops_the_start(clock: ManualClock, tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path, "w", clock)
    await store.keep(a_receipt(1))
    await store.aclose()
    other = sqlite3.connect(tmp_path / "receipts-w.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(ReceiptStoreError, match="locked"):
            ReceiptStore(tmp_path, "w", clock)
    finally:
        other.close()
    again = ReceiptStore(tmp_path, "w", clock)
    assert again.unacknowledged == 1
    await again.aclose()
