"""Who is live."""

import uuid

import pytest

from cocoon.clock import ManualClock
from cocoon.enrolment import HEARTBEAT_SECONDS, ServedModel
from tests.unit.workers.worker_values import MODEL, a_heartbeat, a_worker, an_upstream, beat_all
from workers.registry import EARLY_HEARTBEATS_MAX, LIVE_S, Registry


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(clock: ManualClock) -> Registry:
    return Registry(clock)


def _live(registry: Registry, model: str = MODEL) -> list[str]:
    return sorted(target.name for target in registry.targets_for(model))


def test_an_enrolled_worker_is_live_from_its_first_heartbeat_until_three_are_missing(
    registry: Registry, clock: ManualClock
) -> None:
    registry.replace_enrolments([a_worker(clock)])
    assert _live(registry) == []

    beat_all(registry, clock)
    clock.advance(LIVE_S)
    assert _live(registry) == ["worker-1"]

    clock.advance(0.001)
    assert _live(registry) == []
    assert LIVE_S == 3 * HEARTBEAT_SECONDS


def test_a_heartbeat_before_the_enrolment_arrives_is_not_lost(registry: Registry, clock: ManualClock) -> None:
    worker = a_worker(clock)
    registry.note_heartbeat(worker.worker_id, a_heartbeat(running=2), clock.monotonic())

    registry.replace_enrolments([worker])

    assert _live(registry) == ["worker-1"]
    assert registry.members()[0].load.in_flight_estimate == 2


def test_heartbeats_of_strangers_take_bounded_room(registry: Registry, clock: ManualClock) -> None:
    for number in range(EARLY_HEARTBEATS_MAX + 10):
        registry.note_heartbeat(uuid.UUID(int=number), a_heartbeat(), clock.monotonic())

    assert len(registry._early) == EARLY_HEARTBEATS_MAX


def test_a_late_heartbeat_does_not_overwrite_a_newer_one(registry: Registry, clock: ManualClock) -> None:
    worker = a_worker(clock)
    registry.replace_enrolments([worker])
    registry.note_heartbeat(worker.worker_id, a_heartbeat(running=3), clock.monotonic())

    registry.note_heartbeat(worker.worker_id, a_heartbeat(running=0), clock.monotonic() - 1)

    assert registry.members()[0].load.in_flight_estimate == 3


def test_a_draining_worker_is_not_offered(registry: Registry, clock: ManualClock) -> None:
    worker = a_worker(clock)
    registry.replace_enrolments([worker])
    registry.note_heartbeat(worker.worker_id, a_heartbeat(draining=True), clock.monotonic())

    assert registry.targets_for(MODEL) == []
    assert registry.models() == {MODEL: 0}


def test_a_worker_whose_keyset_ended_is_not_offered_until_it_enrols_again(
    registry: Registry, clock: ManualClock
) -> None:
    now = int(clock.now().timestamp())
    registry.replace_enrolments([a_worker(clock, not_after=now + 100)])
    clock.advance(100)
    beat_all(registry, clock)
    assert _live(registry) == []

    registry.put_enrolment(a_worker(clock))

    assert _live(registry) == ["worker-1"]


def test_replacing_keeps_what_is_known_of_those_that_stay(registry: Registry, clock: ManualClock) -> None:
    registry.replace_enrolments([a_worker(clock, 1), a_worker(clock, 2)])
    beat_all(registry, clock)
    kept = registry.members()[0]
    kept.load.begin(10, clock.monotonic())

    registry.replace_enrolments([a_worker(clock, 1, url="https://192.0.2.9", host="192.0.2.9"), a_worker(clock, 3)])

    assert _live(registry) == ["worker-1"]
    assert registry.members()[0].load.in_flight == 1
    assert registry.worker(uuid.UUID(int=1)) == a_worker(clock, 1, url="https://192.0.2.9", host="192.0.2.9")
    assert registry.worker(uuid.UUID(int=2)) is None


def test_liveness_is_held_while_no_heartbeat_can_arrive(registry: Registry, clock: ManualClock) -> None:
    registry.replace_enrolments([a_worker(clock, 1), a_worker(clock, 2)])
    registry.note_heartbeat(uuid.UUID(int=1), a_heartbeat(), clock.monotonic())
    registry.hold_liveness(True)
    clock.advance(3600 - 1)

    assert _live(registry) == ["worker-1"]


def test_after_a_hold_the_silent_are_gone_in_the_usual_time(registry: Registry, clock: ManualClock) -> None:
    registry.replace_enrolments([a_worker(clock)])
    beat_all(registry, clock)
    registry.hold_liveness(True)
    clock.advance(100)
    registry.hold_liveness(True)
    clock.advance(100)
    registry.hold_liveness(False)
    clock.advance(LIVE_S)
    assert _live(registry) == ["worker-1"]

    clock.advance(0.001)

    assert _live(registry) == []


def test_a_hold_does_not_bring_the_dead_back(registry: Registry, clock: ManualClock) -> None:
    registry.replace_enrolments([a_worker(clock)])
    beat_all(registry, clock)
    clock.advance(LIVE_S + 1)
    registry.hold_liveness(True)
    registry.hold_liveness(False)

    assert _live(registry) == []


def test_a_worker_that_reports_during_a_hold_is_live(registry: Registry, clock: ManualClock) -> None:
    registry.replace_enrolments([a_worker(clock)])
    registry.hold_liveness(True)
    clock.advance(100)
    beat_all(registry, clock)

    assert _live(registry) == ["worker-1"]


def test_upstreams_are_live_without_heartbeats(registry: Registry, clock: ManualClock) -> None:
    registry.set_upstreams([an_upstream()])
    clock.advance(1e6)

    assert _live(registry) == ["local"]
    registry.set_upstreams([])
    assert registry.knows(MODEL) is False


def test_models_count_live_targets_and_name_the_silent_ones(registry: Registry, clock: ManualClock) -> None:
    other = (ServedModel(id="other", context_tokens=99),)
    registry.replace_enrolments([a_worker(clock, 1), a_worker(clock, 2, models=other)])
    registry.set_upstreams([an_upstream()])
    registry.note_heartbeat(uuid.UUID(int=1), a_heartbeat(), clock.monotonic())

    assert registry.models() == {MODEL: 2, "other": 0}
    assert registry.context_tokens(MODEL) == 1024
    assert registry.context_tokens("other") == 99
    assert registry.context_tokens("unknown") is None


def test_a_new_boot_starts_with_a_clean_record(registry: Registry, clock: ManualClock) -> None:
    registry.replace_enrolments([a_worker(clock)])
    breaker = registry.members()[0].load.breaker
    for _ in range(3):
        breaker.failed(clock.monotonic())
    registry.replace_enrolments([a_worker(clock)])
    assert not breaker.allows(clock.monotonic())

    registry.replace_enrolments([a_worker(clock, boot_id=b"boot-two")])

    assert breaker.allows(clock.monotonic())


def test_a_worker_leaves_with_its_evidence_and_comes_back_with_fresh_one(
    registry: Registry, clock: ManualClock
) -> None:
    now = int(clock.now().timestamp())
    registry.replace_enrolments([a_worker(clock, evidence="tdx", attested_until=now + 60, not_after=now + 3600)])
    for second in (0.0, 59.9, 0.2):
        clock.advance(second)
        beat_all(registry, clock)
        assert bool(_live(registry)) == (second != 0.2)
    registry.put_enrolment(a_worker(clock, evidence="tdx", attested_until=now + 120, not_after=now + 3600))
    beat_all(registry, clock)
    assert _live(registry) == ["worker-1"]


def test_a_quarantined_worker_reports_and_gets_nothing(registry: Registry, clock: ManualClock) -> None:
    held = a_worker(clock, tee_type="tdx-simulated", quarantined=True)
    registry.replace_enrolments([held])
    beat_all(registry, clock)
    assert _live(registry) == []
    assert registry.is_live(registry.members()[0])
    # A lifted suspension does not end a quarantine, nor the other way round.
    registry.set_standing({}, frozenset({held.worker_id}))
    registry.set_standing({}, frozenset())
    assert _live(registry) == []
    registry.put_enrolment(a_worker(clock, tee_type="tdx-simulated", evidence="tdx"))
    beat_all(registry, clock)
    assert (_live(registry), registry.tee_types(MODEL)) == (["worker-1"], {"tdx-simulated": 1})


def test_upstreams_are_counted_as_protected_by_nothing(registry: Registry, clock: ManualClock) -> None:
    registry.set_upstreams([an_upstream()])
    registry.replace_enrolments([a_worker(clock, tee_type="tdx")])
    beat_all(registry, clock)
    assert registry.tee_types(MODEL) == {"none": 1, "tdx": 1}
