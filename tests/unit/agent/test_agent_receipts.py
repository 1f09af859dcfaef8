"""The worker's own copy of its receipts: kept before anything else, sent until judged, bounded, never silently lost."""

import asyncio
import datetime as dt
import hashlib
import random
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cocoon.clock import ManualClock
from cocoon.receipt_batch import RECEIPTS_PATH, ReceiptBatch, ReceiptVerdicts, Verdict
from tests.unit.agent.agent_values import SETTINGS
from workers.agent import receipt_store
from workers.agent.receipt_sender import ReceiptSender
from workers.agent.receipt_store import KeptReceipt, ReceiptStore, ReceiptStoreError
from workers.agent.receipts import SignedReceipt
from workers.agent.settings import SettingsError, parse_settings
from workers.agent.signatures import SignatureVerifier

KEYSET = b"a keyset"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))


def a_receipt(number: int = 0, *, keyset: bytes = KEYSET, body: bytes = b"{}") -> KeptReceipt:
    head = number.to_bytes(124, "big")
    return KeptReceipt(
        signed=SignedReceipt(head=head, signature=b"s" * 64, body=body, ticket=b"t" * 125),
        ticket=f"ticket-{number}", stub="stub", keyset=keyset, keyset_digest=hashlib.sha256(keyset).digest(),
    )  # fmt: skip


def numbers(batch: ReceiptBatch) -> list[int]:
    return [int.from_bytes(one.head, "big") for one in batch.receipts]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  another task's doing
            await asyncio.sleep(0.001)


async def test_a_receipt_is_due_after_its_grace_with_all_that_its_judge_needs(clock: ManualClock) -> None:
    store = ReceiptStore(None, "w", clock, grace_s=5)
    await store.keep(a_receipt(7))
    assert await store.due(10) is None
    clock.advance(5)
    due = await store.due(10)
    await store.aclose()
    assert due is not None
    [one] = due.batch.receipts
    assert (one.head, one.signature, one.body) == ((7).to_bytes(124, "big"), b"s" * 64, b"{}")
    assert (one.ticket, one.stub, due.batch.keysets[one.keyset]) == ("ticket-7", "stub", KEYSET)


async def test_receipts_of_a_killed_agent_are_there_after_its_restart(clock: ManualClock, tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path / "state", "w", clock, grace_s=0)
    await asyncio.gather(*(store.keep(a_receipt(number)) for number in range(600)))
    # What a killed process leaves behind: the files as they are, the log not folded into the database.
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in (tmp_path / "state").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    await store.aclose()
    again = ReceiptStore(copied, "w", clock, grace_s=0)
    due = await again.due(1000)
    assert again.unacknowledged == 600
    await again.aclose()
    assert due is not None
    assert numbers(due.batch) == list(range(600))


async def test_a_receipt_that_was_acknowledged_is_not_sent_again_not_even_after_a_restart(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = ReceiptStore(tmp_path, "w", clock, grace_s=0)
    for number in range(3):
        await store.keep(a_receipt(number))
    due = await store.due(2)
    assert due is not None
    await store.acknowledge(due.ids, [Verdict.RECORDED, Verdict.REFUSED])
    await store.aclose()
    again = ReceiptStore(tmp_path, "w", clock, grace_s=0)
    rest = await again.due(10)
    assert again.unacknowledged == 1
    await again.aclose()
    assert rest is not None
    assert numbers(rest.batch) == [2]


async def test_only_its_owner_may_read_the_file_and_only_one_agent_may_have_it(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = ReceiptStore(tmp_path / "state", "w", clock)
    [path] = (tmp_path / "state").glob("*.sqlite3")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with pytest.raises(ReceiptStoreError):
        ReceiptStore(tmp_path / "state", "w", clock)
    other = ReceiptStore(tmp_path / "state", "another-name", clock)
    await other.aclose()
    await store.aclose()
    with pytest.raises(ReceiptStoreError):
        ReceiptStore(path, "w", clock)


async def test_a_full_store_takes_no_job_until_something_is_acknowledged_and_drops_only_acknowledged_ones(
    clock: ManualClock,
) -> None:
    store = ReceiptStore(None, "w", clock, grace_s=0, rows_max=8)
    for number in range(4):
        assert store.accepting
        await store.keep(a_receipt(number))
    assert not store.accepting
    for number in range(4, 8):  # jobs that were running when it filled up
        await store.keep(a_receipt(number))
    due = await store.due(6)
    assert due is not None
    await store.acknowledge(due.ids, [Verdict.RECORDED] * 6)
    assert store.accepting
    for number in range(8, 12):
        await store.keep(a_receipt(number))
    left = await store.due(100)
    rows = store._rows
    await store.aclose()
    assert left is not None
    assert numbers(left.batch) == [6, 7, 8, 9, 10, 11]
    assert rows <= 8


async def test_acknowledged_receipts_and_their_keysets_go_after_a_day(clock: ManualClock) -> None:
    store = ReceiptStore(None, "w", clock, grace_s=0)
    await store.keep(a_receipt(1, keyset=b"old"))
    due = await store.due(1)
    assert due is not None
    await store.acknowledge(due.ids, [Verdict.RECORDED])
    clock.advance(receipt_store.ACKNOWLEDGED_S_MAX + 1)
    await store.keep(a_receipt(2, keyset=b"new"))
    due = await store.due(1)
    assert due is not None
    await store.acknowledge(due.ids, [Verdict.RECORDED])
    counts = [store._connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("receipts", "keysets")]
    await store.aclose()
    assert counts == [1, 1]


async def test_a_disk_that_refuses_stops_new_jobs_and_loses_nothing(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_store, "RETRY_S", 0.005)
    store = ReceiptStore(None, "w", clock, grace_s=0)
    insert, refusing = store._insert, True

    def refuse(*arguments: Any) -> None:
        if refusing:
            raise sqlite3.OperationalError("disk I/O error")
        insert(*arguments)

    monkeypatch.setattr(store, "_insert", refuse)
    kept = store.keep(a_receipt(1))
    await until(lambda: not store.accepting)
    assert not kept.done()
    refusing = False
    await asyncio.wait_for(kept, 60)
    due = await store.due(10)
    assert store.accepting
    await store.aclose()
    assert due is not None
    assert numbers(due.batch) == [1]


async def test_a_batch_is_bounded_in_bytes_and_keysets(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_store, "BATCH_BYTES_MAX", 10_000)
    store = ReceiptStore(None, "w", clock, grace_s=0)
    for number in range(10):
        await store.keep(a_receipt(number, body=b"b" * 4000))
    due = await store.due(100)
    assert due is not None
    assert numbers(due.batch) == [0, 1]
    await store.acknowledge(range(1, 11), [Verdict.RECORDED] * 10)
    for number in range(20):
        await store.keep(a_receipt(number, keyset=b"keyset %d" % number))
    due = await store.due(100)
    await store.aclose()
    assert due is not None
    assert len(due.batch.keysets) == len(due.batch.receipts) == receipt_store.BATCH_KEYSETS_MAX


class StubLink:
    """Answers each delivery as told."""

    def __init__(self, *answers: tuple[int, list[str] | bytes]) -> None:
        self._answers = list(answers)
        self.global_id = -217
        self.sent: list[ReceiptBatch] = []

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert path == RECEIPTS_PATH
        self.sent.append(msgspec.json.decode(body, type=ReceiptBatch))
        status, answer = self._answers.pop(0)
        if isinstance(answer, bytes):
            return status, answer
        return status, msgspec.json.encode(ReceiptVerdicts(tuple(Verdict(word) for word in answer)))


def a_sender(clock: ManualClock, store: ReceiptStore, link: StubLink, grace_s: float = 5) -> ReceiptSender:
    return ReceiptSender(store, link, SignatureVerifier(clock, link, None), random.Random(1), grace_s=grace_s)


async def _delivery(
    clock: ManualClock, *answers: tuple[int, list[str] | bytes], look: Callable[[ReceiptStore], Awaitable[None]]
) -> list[bool]:
    store = ReceiptStore(None, "w", clock, grace_s=0)
    for number in range(2):
        await store.keep(a_receipt(number))
    sender = a_sender(clock, store, StubLink(*answers))
    outcomes: list[bool] = []
    for _ in answers:
        due = await store.due(10)
        assert due is not None
        outcomes.append(await sender.deliver(due))
    await look(store)
    await store.aclose()
    return outcomes


@pytest.mark.parametrize(
    "answer",
    [(0, b""), (401, b""), (503, b"{}"), (200, b"not json"), (200, b'{"verdicts":["recorded"]}'),
     (200, b'{"verdicts":["recorded","no such verdict"]}')],
)  # fmt: skip
async def test_without_a_usable_answer_everything_is_still_due(clock: ManualClock, answer: tuple[int, bytes]) -> None:
    async def look(store: ReceiptStore) -> None:
        assert store.unacknowledged == 2
        due = await store.due(10)
        assert due is not None
        assert numbers(due.batch) == [0, 1]

    assert await _delivery(clock, answer, look=look) == [False]


@pytest.mark.parametrize("final", [v.value for v in Verdict if v is not Verdict.PENDING])
async def test_final_verdicts_end_it_and_pending_ones_come_back_later_and_later(clock: ManualClock, final: str) -> None:
    async def look(store: ReceiptStore) -> None:
        assert store.unacknowledged == 1
        waits: list[float] = []
        for _ in range(9):
            waited = 0.0
            while (due := await store.due(10)) is None:
                clock.advance(1)
                waited += 1
            assert numbers(due.batch) == [1]
            waits.append(waited)
            sender = a_sender(clock, store, StubLink((200, ["pending"])))
            await sender.deliver(due)
        assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]

    assert await _delivery(clock, (200, [final, "pending"]), look=look) == [True]


async def test_the_sender_delivers_by_itself_and_survives_failures(clock: ManualClock) -> None:
    store = ReceiptStore(None, "w", clock, grace_s=0)
    link = StubLink((503, b""), (200, ["recorded"]))
    await store.keep(a_receipt(5))
    sender = a_sender(clock, store, link, grace_s=0.01)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sender.run())
        await until(lambda: store.unacknowledged == 0)
        running.cancel()
    await store.aclose()
    assert [numbers(batch) for batch in link.sent] == [[5], [5]]


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"COCOON_WORKER_STATE": "/kept/here"}, Path("/kept/here")),
        ({"COCOON_WORKER_STATE": "/kept/here", "COCOON_ENV": "development"}, Path("/kept/here")),
        ({"COCOON_ENV": "development"}, None),
        ({"HOME": "/me"}, Path("/me/.local/state/cocoon")),
        ({"HOME": "/me", "XDG_STATE_HOME": "/state"}, Path("/state/cocoon")),
    ],
)
def test_receipts_are_kept_where_told_else_in_the_users_state_else_in_memory(
    variables: dict[str, str], folder: Path | None
) -> None:
    assert parse_settings({**SETTINGS, **variables}).state_folder == folder


def test_in_production_receipts_are_never_kept_in_memory_by_accident() -> None:
    with pytest.raises(SettingsError, match="COCOON_WORKER_STATE"):
        parse_settings({**SETTINGS, "HOME": ""})
