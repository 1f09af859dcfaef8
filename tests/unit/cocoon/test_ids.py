import datetime as dt
import random
import uuid

import pytest

from cocoon.clock import ManualClock, unix_ms
from cocoon.errors import MalformedError
from cocoon.ids import (
    ADMIN_KEY_PREFIX,
    API_KEY_PREFIX,
    WORKER_KEY_PREFIX,
    is_secret_key,
    job_day,
    new_job_id,
    new_secret_key,
    secret_key_hash,
)


def at(moment: dt.datetime) -> uuid.UUID:
    return new_job_id(ManualClock(moment), random.Random(1))


def test_a_job_id_is_laid_out_as_rfc_9562_says() -> None:
    moment = dt.datetime(2022, 2, 22, 19, 22, 22, tzinfo=dt.UTC)

    job_id = at(moment)

    assert job_id.version == 7
    assert job_id.variant == uuid.RFC_4122
    assert job_id.bytes[:6].hex() == "017f22e279b0"  # the RFC's own example instant


def test_random_bits_fill_the_rest_and_differ() -> None:
    clock = ManualClock()
    rng = random.Random(7)
    ids = {new_job_id(clock, rng) for _ in range(1000)}

    assert len(ids) == 1000
    seen_ones = seen_zeros = 0
    for job_id in ids:
        seen_ones |= job_id.int
        seen_zeros |= ~job_id.int
    varying = seen_ones & seen_zeros & (2**80 - 1)
    assert varying.bit_count() == 74


def test_job_ids_sort_by_time() -> None:
    clock = ManualClock()
    rng = random.Random(3)
    ids = []
    for _ in range(50):
        ids.append(new_job_id(clock, rng))
        clock.advance(0.001)

    assert ids == sorted(ids)


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (dt.datetime(2026, 3, 1, 0, 0, 0, tzinfo=dt.UTC), dt.date(2026, 3, 1)),
        (dt.datetime(2026, 3, 1, 23, 59, 59, 999_999, tzinfo=dt.UTC), dt.date(2026, 3, 1)),
        (dt.datetime(2028, 2, 29, 12, 0, tzinfo=dt.UTC), dt.date(2028, 2, 29)),
        (dt.datetime(2026, 3, 2, 1, 30, tzinfo=dt.timezone(dt.timedelta(hours=3))), dt.date(2026, 3, 1)),
    ],
)
def test_the_day_of_a_job_is_its_utc_day(moment: dt.datetime, day: dt.date) -> None:
    assert job_day(at(moment)) == day


@pytest.mark.parametrize(
    "job_id",
    [
        uuid.UUID(int=0),
        uuid.UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479"),
        uuid.UUID("017f22e2-79b0-7cc3-0000-c4dc0c0c07398"[:36]),
    ],
)
def test_the_day_of_something_else_is_refused(job_id: uuid.UUID) -> None:
    with pytest.raises(MalformedError):
        job_day(job_id)


def test_a_day_beyond_the_calendar_is_refused_not_a_crash() -> None:
    job_id = uuid.UUID(int=(2**48 - 1) << 80 | 7 << 76 | 2 << 62)

    with pytest.raises(MalformedError):
        job_day(job_id)


def test_milliseconds_are_exact() -> None:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    wrong = [
        ms for ms in range(1_764_000_000_000, 1_764_000_002_000) if unix_ms(epoch + dt.timedelta(milliseconds=ms)) != ms
    ]

    assert wrong == []


def test_a_naive_moment_has_no_milliseconds() -> None:
    with pytest.raises(TypeError):
        unix_ms(dt.datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("prefix", [API_KEY_PREFIX, ADMIN_KEY_PREFIX, WORKER_KEY_PREFIX])
def test_a_new_key_has_its_prefix_and_256_bits(prefix: str) -> None:
    key = new_secret_key(prefix, random.Random(1))

    assert key.startswith(prefix)
    assert len(key) == len(prefix) + 43
    assert is_secret_key(key)
    assert new_secret_key(prefix, random.Random(2)) != key


@pytest.mark.parametrize(
    "text", ["", "sk-cocoon-", "sk-other-" + "a" * 43, "sk-cocoon-" + "a" * 43 + "\n", "sk-cocoon-" + "é" * 43]
)
def test_other_texts_are_not_keys(text: str) -> None:
    assert not is_secret_key(text)


def test_a_key_is_stored_as_its_sha256() -> None:
    assert secret_key_hash("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
