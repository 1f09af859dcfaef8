"""Which block an agent's statements name: the newest plausible one it was told of, else none."""

import datetime as dt

import pytest

from cocoon.clock import ManualClock
from cocoon.statement import Beacon
from workers.agent.tees.beacons import AGE_S_MAX, SKEW_S_MAX, ToldBeacons


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC))


def block(clock: ManualClock, seqno: int, age_s: int = 0) -> Beacon:
    name = seqno.to_bytes(32, "big")
    return Beacon(seqno=seqno, root_hash=name, file_hash=name, gen_utime=int(clock.now().timestamp()) - age_s)


def test_without_a_block_only_the_time_is_named(clock: ManualClock) -> None:
    beacons = ToldBeacons(clock)
    beacons.note(None)
    nothing = Beacon(0, bytes(32), bytes(32), int(clock.now().timestamp()))
    assert beacons.current() == nothing
    beacons.note(nothing)
    clock.advance(5)
    assert beacons.current() == Beacon(0, bytes(32), bytes(32), int(clock.now().timestamp()))


def test_the_newest_block_is_named_whoever_told_of_it(clock: ManualClock) -> None:
    beacons = ToldBeacons(clock)
    beacons.note(block(clock, 7, age_s=10))
    beacons.note(block(clock, 9, age_s=3))
    # Of two gateways one lags; a chain that was begun anew has lower numbers and newer times.
    beacons.note(block(clock, 8, age_s=6))
    assert beacons.current().seqno == 9
    beacons.note(block(clock, 1, age_s=1))
    assert beacons.current().seqno == 1


def test_a_block_of_an_impossible_time_is_not_named(clock: ManualClock) -> None:
    beacons = ToldBeacons(clock)
    beacons.note(block(clock, 7, age_s=AGE_S_MAX + 1))
    beacons.note(block(clock, 8, age_s=-SKEW_S_MAX - 1))
    assert beacons.current().seqno == 0
    beacons.note(block(clock, 9, age_s=-SKEW_S_MAX))
    assert beacons.current().seqno == 9


def test_a_chain_that_is_away_leaves_the_time_before_verifiers_refuse_its_last_block(clock: ManualClock) -> None:
    beacons = ToldBeacons(clock)
    beacons.note(block(clock, 7))
    clock.advance(AGE_S_MAX)
    assert beacons.current().seqno == 7
    clock.advance(1)
    assert beacons.current() == Beacon(0, bytes(32), bytes(32), int(clock.now().timestamp()))
    beacons.note(block(clock, 99))
    assert beacons.current().seqno == 99
