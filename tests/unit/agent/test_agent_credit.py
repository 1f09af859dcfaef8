"""How much an operator may owe a worker before it takes no more jobs."""

import datetime as dt
import hashlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from cocoon.clock import ManualClock
from cocoon.errors import MalformedError
from cocoon.paid import Paid
from cocoon.signed_batch import Countersignature, SignedBatch
from tests.unit.agent.agent_values import SETTINGS
from workers.agent.credit import OperatorCredit
from workers.agent.receipt_store import KeptSignature, ReceiptStore, SignatureKind
from workers.agent.settings import SettingsError, parse_settings

CLOCK = ManualClock(dt.datetime(2026, 11, 23, tzinfo=dt.UTC))
PAID = Paid(
    v=1, global_id=-3, payout="0:" + "a1" * 32, wallet="0:" + "b2" * 32, paid_nano=7_000, fee_bps=500, seqno=9,
    gen_utime=1_795_000_000,
)  # fmt: skip
BATCH = SignedBatch(head=b"head", signature=b"s", delegation=b"d")


def charged(number: int, nano: int, kind: SignatureKind = SignatureKind.COUNTERSIGNATURE) -> KeptSignature:
    """What a gateway has signed about the receipt of that number; the agent has verified it."""
    digest = hashlib.sha256(str(number).encode()).digest()
    leaf = Countersignature(global_id=-3, head_sha256=digest, charge_numerator=nano * 10**6).encode()
    return KeptSignature(ticket_sha256=digest, kind=kind, leaf=leaf, index=0, path=b"", batch=BATCH)


@pytest.fixture(name="opened")
async def opened_fixture(tmp_path: Path) -> AsyncGenerator[Callable[[], ReceiptStore]]:
    stores: list[ReceiptStore] = []

    def again() -> ReceiptStore:
        stores.append(ReceiptStore(tmp_path / "state", "w", CLOCK))
        return stores[-1]

    yield again
    await stores[-1].aclose()


class Scene:
    def __init__(self, folder: Path, store: ReceiptStore) -> None:
        self.path = folder / "paid.json"
        self.store = store
        self.credit = OperatorCredit(store, max_nano=1_000, path=self.path, global_id=-3)

    async def shows(self, **changes: Any) -> None:
        self.path.write_bytes(msgspec.structs.replace(PAID, **changes).encode())
        await self.credit.refresh()

    async def writes(self, text: bytes) -> None:
        self.path.write_bytes(text)
        await self.credit.refresh()


async def test_no_more_jobs_are_taken_beyond_the_limit_until_a_payment_is_seen(
    tmp_path: Path, opened: Callable[[], ReceiptStore]
) -> None:
    scene = Scene(tmp_path, opened())
    await scene.shows()
    assert (scene.credit.owed_nano, scene.credit.accepting) == (0, True)
    await scene.store.keep_signatures([charged(1, 600), charged(2, 452)])
    # 1,052 less five per cent, rounded down once for all of it.
    assert (scene.credit.owed_nano, scene.credit.accepting) == (999, True)
    await scene.store.keep_signatures([charged(3, 1)])
    assert scene.credit.accepting
    await scene.store.keep_signatures([charged(4, 3)])
    assert (scene.credit.owed_nano, scene.credit.accepting) == (1_003, False)
    with capture_logs() as logs:
        await scene.shows(paid_nano=7_001)
        assert not scene.credit.accepting
        await scene.shows(paid_nano=7_003)
    assert (scene.credit.owed_nano, scene.credit.accepting) == (1_000, True)
    assert [line["event"] for line in logs] == ["operator_owes_too_much", "operator_paid"]


async def test_a_signature_counts_once_however_often_it_comes(
    tmp_path: Path, opened: Callable[[], ReceiptStore]
) -> None:
    store = opened()
    await store.keep_signatures([charged(1, 5), charged(1, 5), charged(2, 7, SignatureKind.TICKET)])
    await store.keep_signatures([charged(1, 5), charged(3, 11)])
    assert store.charged_numerator == 16 * 10**6
    await store.aclose()
    again = opened()
    await again.keep_signatures([charged(1, 5)])
    assert again.charged_numerator == 16 * 10**6


async def test_the_sum_outgrows_sixty_four_bits_and_outlives_the_process(opened: Callable[[], ReceiptStore]) -> None:
    store = opened()
    await store.keep_paid_before(2**70)
    await store.keep_signatures([charged(1, 2**63), charged(2, 2**63)])
    await store.aclose()
    again = opened()
    assert (again.charged_numerator, again.paid_before_nano) == (2**64 * 10**6, 2**70)


async def test_what_was_paid_before_pays_for_nothing_new(tmp_path: Path, opened: Callable[[], ReceiptStore]) -> None:
    first = Scene(tmp_path, opened())
    await first.shows(paid_nano=10**12)
    await first.store.keep_signatures([charged(1, 10_000)])
    assert not first.credit.accepting
    await first.store.aclose()
    after = Scene(tmp_path, opened())
    await after.credit.refresh()
    assert (after.credit.owed_nano, after.credit.accepting) == (9_500, False)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"\xff", b"x" * 5_000,
        msgspec.structs.replace(PAID, global_id=-239, paid_nano=10**12).encode(),
        msgspec.structs.replace(PAID, wallet="0:" + "c3" * 32, paid_nano=10**12).encode(),
        msgspec.structs.replace(PAID, payout="0:" + "c3" * 32, paid_nano=10**12).encode(),
        msgspec.structs.replace(PAID, paid_nano=6_999, fee_bps=10_000).encode(),
        PAID.encode().replace(b'"v": 1', b'"v": 2'),
        PAID.encode().replace(b"7000", b"-1"),
    ],
    ids=["empty", "nothing", "no text", "long", "network", "wallet", "contract", "back", "version", "negative"],
)  # fmt: skip
async def test_a_file_that_says_nothing_usable_pays_nothing(
    tmp_path: Path, opened: Callable[[], ReceiptStore], text: bytes
) -> None:
    scene = Scene(tmp_path, opened())
    await scene.shows()
    await scene.store.keep_signatures([charged(1, 2_000)])
    with capture_logs() as logs:
        await scene.writes(text)
        await scene.writes(text)
        scene.path.unlink()
        await scene.credit.refresh()
    assert (scene.credit.owed_nano, scene.credit.accepting) == (1_900, False)
    assert [line["event"] for line in logs] == ["paid_file_unreadable", "operator_owes_too_much"]


async def test_without_a_first_look_everything_is_owed(tmp_path: Path, opened: Callable[[], ReceiptStore]) -> None:
    scene = Scene(tmp_path, opened())
    await scene.credit.refresh()
    await scene.store.keep_signatures([charged(1, 1_001)])
    assert (scene.credit.owed_nano, scene.credit.accepting) == (1_001, False)


async def test_without_a_limit_nothing_is_refused(opened: Callable[[], ReceiptStore]) -> None:
    store = opened()
    credit = OperatorCredit(store, max_nano=None, path=None, global_id=None)
    await store.keep_signatures([charged(1, 10**15)])
    await credit.refresh()
    assert credit.accepting


def test_limit_and_file_are_set_together(tmp_path: Path) -> None:
    both = {"COCOON_OPERATOR_CREDIT_MAX": "0.5", "COCOON_PAID_FILE": str(tmp_path / "paid.json")}
    settings = parse_settings(SETTINGS | both)
    assert (settings.credit_max_nano, settings.paid_file) == (500_000_000, tmp_path / "paid.json")
    assert parse_settings(SETTINGS).credit_max_nano is None
    for name, value in both.items():
        with pytest.raises(SettingsError, match="are set together"):
            parse_settings(SETTINGS | {name: value})
    with pytest.raises(SettingsError, match="COCOON_OPERATOR_CREDIT_MAX must be an amount"):
        parse_settings(SETTINGS | both | {"COCOON_OPERATOR_CREDIT_MAX": "-1"})


def test_a_file_is_read_as_it_was_written() -> None:
    assert Paid.decode(PAID.encode()) == PAID
    with pytest.raises(MalformedError, match="not what a wallet was paid"):
        Paid.decode(b"[]")
