"""Which target gets a request."""

import random
import uuid
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.clock import ManualClock
from tests.unit.workers.worker_values import MODEL, a_heartbeat, a_worker, an_upstream, beat_all
from workers.errors import ManifestUnservedError, ModelNotFoundError, NoWorkerError, WorkersBusyError
from workers.registry import Member, Registry
from workers.routing import Dispatch, DispatchOutcome, RetryBudget, Router
from workers.targets import Target

ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)


class Network:
    """A registry of `count` live workers and a router over it."""

    def __init__(self, count: int, *, capacity: int = 4, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.registry = Registry(self.clock)
        self.registry.replace_enrolments(
            [a_worker(self.clock, number, capacity=capacity) for number in range(1, count + 1)]
        )
        beat_all(self.registry, self.clock, capacity)
        self.router = Router(self.registry, self.clock, random.Random(seed))

    def member(self, number: int) -> Member:
        return next(m for m in self.registry.members() if m.target_id == uuid.UUID(int=number))

    def share(self, number: int, rounds: int = 400) -> float:
        """The share of requests that a target gets, one at a time."""
        hits = 0
        for _ in range(rounds):
            dispatch = self.router.choose(MODEL, prompt_tokens_bound=10)
            hits += dispatch.target_id == uuid.UUID(int=number)
            dispatch.finish(DispatchOutcome.CLIENT_GONE)
        return hits / rounds


def test_an_unknown_model_is_not_a_missing_worker() -> None:
    with pytest.raises(ModelNotFoundError):
        Network(1).router.choose("unknown")


def test_a_model_whose_workers_are_silent_has_no_worker() -> None:
    network = Network(2)
    network.clock.advance(60)

    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL)


def test_excluded_targets_are_not_tried_again() -> None:
    network = Network(2)
    assert {network.router.choose(MODEL, exclude=frozenset({ONE})).target_id for _ in range(4)} == {TWO}

    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL, exclude=frozenset({ONE, TWO}))


def test_a_request_that_requires_evidence_goes_to_nobody_unverified() -> None:
    network = Network(1)
    network.registry.set_upstreams([an_upstream()])

    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL, require="tdx")


def test_a_request_can_name_and_avoid_targets() -> None:
    network = Network(3)

    assert network.router.choose(MODEL, only=("worker-2",)).target.name == "worker-2"
    assert network.router.choose(MODEL, only=(str(TWO),)).target.name == "worker-2"
    assert network.router.choose(MODEL, ignore=("worker-1", str(TWO))).target.name == "worker-3"


def test_targets_at_capacity_are_busy_not_missing() -> None:
    network = Network(2, capacity=1)
    held = [network.router.choose(MODEL) for _ in range(2)]
    with pytest.raises(WorkersBusyError) as caught:
        network.router.choose(MODEL)
    assert caught.value.retry_after_s > 0

    held[0].finish(DispatchOutcome.OK)

    assert network.router.choose(MODEL).target_id == held[0].target_id


def test_a_target_that_throttles_is_left_alone_for_as_long_as_it_asked() -> None:
    network = Network(1)
    network.router.choose(MODEL).finish(DispatchOutcome.THROTTLED, retry_after_s=7)
    with pytest.raises(WorkersBusyError) as caught:
        network.router.choose(MODEL)
    assert caught.value.retry_after_s == 7

    network.clock.advance(5)
    beat_all(network.registry, network.clock)
    with pytest.raises(WorkersBusyError):
        network.router.choose(MODEL)
    network.clock.advance(2)

    network.router.choose(MODEL)


def test_a_target_that_keeps_failing_is_left_alone_then_tried_once() -> None:
    network = Network(1)
    for _ in range(3):
        network.router.choose(MODEL).finish(DispatchOutcome.FAILED_MID_STREAM)
    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL)

    network.clock.advance(1)
    trial = network.router.choose(MODEL)
    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL)
    trial.first_token(network.clock.monotonic())

    network.router.choose(MODEL)


def test_a_worker_that_others_fill_is_asked_only_when_nobody_else_is_left() -> None:
    network = Network(2)
    network.registry.note_heartbeat(ONE, a_heartbeat(running=4), network.clock.monotonic())

    chosen = [network.router.choose(MODEL).target_id for _ in range(5)]

    assert chosen == [TWO, TWO, TWO, TWO, ONE]


def test_equal_targets_share_evenly_and_by_chance() -> None:
    network = Network(2)

    assert 0.4 < network.share(1) < 0.6


def test_a_newcomer_is_neither_flooded_nor_starved() -> None:
    network = Network(3)
    for number in (1, 2):
        network.member(number).load.rate.observe(1000.0, network.clock.monotonic())

    assert 0.2 < network.share(3) < 0.5


def test_a_faster_target_is_preferred() -> None:
    network = Network(2)
    network.member(1).load.rate.observe(100.0, network.clock.monotonic())
    network.member(2).load.rate.observe(10_000.0, network.clock.monotonic())

    assert network.share(2) == 1.0


def test_a_target_that_fails_sometimes_is_avoided() -> None:
    network = Network(2)
    network.member(1).load.breaker.failed(network.clock.monotonic())

    assert network.share(2) == 1.0


def test_a_worker_with_long_prompts_waiting_is_avoided_at_equal_counts() -> None:
    network = Network(2)
    now = network.clock.monotonic()
    network.member(1).load.begin(50_000, now)
    network.member(2).load.begin(10, now)

    assert network.share(2) == 1.0


def test_an_upstream_competes_with_workers() -> None:
    network = Network(1)
    network.registry.set_upstreams([an_upstream()])

    assert {network.router.choose(MODEL).target.name for _ in range(6)} == {"local", "worker-1"}


def test_finishing_twice_releases_once_and_the_first_outcome_counts() -> None:
    network = Network(1)
    dispatch, other = network.router.choose(MODEL), network.router.choose(MODEL)
    dispatch.finish(DispatchOutcome.OK)
    for _ in range(5):
        dispatch.finish(DispatchOutcome.FAILED_MID_STREAM)
        dispatch.first_token(network.clock.monotonic())

    assert network.member(1).load.in_flight == 1
    assert network.member(1).load.breaker.failure_ratio(network.clock.monotonic()) == 0.0
    other.finish(DispatchOutcome.OK)
    assert network.member(1).load.in_flight == 0


def test_a_client_that_leaves_says_nothing_about_health() -> None:
    network = Network(1)
    for _ in range(20):
        network.router.choose(MODEL).finish(DispatchOutcome.CLIENT_GONE)

    network.router.choose(MODEL)


def test_a_dispatch_outlives_its_worker_and_leaves_its_successor_alone() -> None:
    network = Network(1)
    dispatch = network.router.choose(MODEL)
    network.registry.replace_enrolments([])
    network.registry.replace_enrolments([a_worker(network.clock)])
    dispatch.finish(DispatchOutcome.OK)

    assert network.member(1).load.in_flight == 0


OUTCOMES = st.sampled_from(DispatchOutcome)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("choose"), st.integers(0, 5000), st.sets(st.integers(1, 4), max_size=3)),
        st.tuples(st.just("finish"), st.integers(0, 50), OUTCOMES),
        st.tuples(st.just("first"), st.integers(0, 50), st.none()),
        st.tuples(st.just("advance"), st.floats(0, 3), st.none()),
        st.tuples(st.just("beat"), st.integers(1, 4), st.tuples(st.integers(0, 5), st.integers(0, 3))),
        st.tuples(st.just("enrol"), st.sets(st.integers(1, 4)), st.none()),
    ),
    max_size=120,
)


class Walk:
    """Any interleaving of what can happen, with what must hold after each step."""

    def __init__(self) -> None:
        self.network = Network(4, capacity=3, seed=1)
        self.open: list[tuple[Dispatch, Member]] = []

    def take(self, kind: str, first: object, second: object) -> None:
        network = self.network
        match kind, first, second:
            case "choose", int(tokens), set(excluded):
                self.choose(tokens, frozenset(uuid.UUID(int=int(number)) for number in excluded))
            case "finish", int(index), DispatchOutcome() as outcome if self.open:
                dispatch, _ = self.open.pop(index % len(self.open))
                dispatch.finish(outcome, retry_after_s=1.0)
            case "first", int(index), None if self.open:
                self.open[index % len(self.open)][0].first_token(network.clock.monotonic())
            case "advance", float(seconds), None:
                network.clock.advance(seconds)
            case "beat", int(number), (int(running), int(capacity)):
                beat = a_heartbeat(running=running, capacity=capacity)
                network.registry.note_heartbeat(uuid.UUID(int=number), beat, network.clock.monotonic())
            case "enrol", set(numbers), None:
                workers = [a_worker(network.clock, int(number), capacity=3) for number in sorted(numbers)]
                network.registry.replace_enrolments(workers)
            case _:
                pass

    def choose(self, tokens: int, exclude: frozenset[uuid.UUID]) -> None:
        registry, now = self.network.registry, self.network.clock.monotonic()
        sound = {
            member.target_id
            for member in registry.members()
            if registry.is_live(member)
            and member.target_id not in exclude
            and member.load.in_flight < member.load.capacity
            and member.load.breaker.allows(now)
        }
        try:
            dispatch = self.network.router.choose(MODEL, prompt_tokens_bound=tokens, exclude=exclude)
        except (NoWorkerError, WorkersBusyError, ModelNotFoundError):
            assert sound == set()
            return
        assert dispatch.target_id in sound
        member = next(m for m in registry.members() if m.target_id == dispatch.target_id)
        assert member.load.in_flight <= member.load.capacity
        self.open.append((dispatch, member))

    def check(self) -> None:
        counted = Counter(id(member) for _, member in self.open)
        for member in [*self.network.registry.members(), *(member for _, member in self.open)]:
            assert member.load.in_flight == counted[id(member)]


@given(steps=STEPS)
@settings(max_examples=150, deadline=None)
def test_only_sound_targets_are_chosen_and_in_flight_counts_are_exact_after_any_interleaving(
    steps: list[tuple[str, object, object]],
) -> None:
    walk = Walk()
    for kind, first, second in steps:
        walk.take(kind, first, second)
        walk.check()
    members = {id(member): member for _, member in walk.open}
    for dispatch, _ in walk.open:
        dispatch.finish(DispatchOutcome.OK)

    assert [(m.load.in_flight, m.load.waiting_tokens) for m in members.values()] == [(0, 0)] * len(members)


def test_a_stuck_worker_of_two_gets_a_small_share() -> None:
    """Twenty requests a second; one worker answers in 0.4 s, the other never, and is given up after 10 s."""
    network = Network(2, capacity=64)
    arrivals = random.Random(5)
    events: list[tuple[float, int, Dispatch, str]] = []
    chosen: Counter[uuid.UUID] = Counter()
    start = network.clock.monotonic()
    serial = 0
    while (now := network.clock.monotonic()) - start < 60:
        beat_all(network.registry, network.clock, 64)
        dispatch = network.router.choose(MODEL, prompt_tokens_bound=200)
        chosen[dispatch.target_id] += 1
        serial += 3
        if dispatch.target_id == ONE:
            events.append((now + 10, serial, dispatch, "timeout"))
        else:
            events.extend([(now + 0.1, serial, dispatch, "first"), (now + 0.4, serial + 1, dispatch, "done")])
        until = now + arrivals.expovariate(20)
        for event in sorted(event for event in events if event[0] <= until):
            network.clock.advance(max(event[0] - network.clock.monotonic(), 0))
            if event[3] == "first":
                event[2].first_token(network.clock.monotonic())
            else:
                good = event[3] == "done"
                event[2].finish(DispatchOutcome.OK if good else DispatchOutcome.FAILED_BEFORE_FIRST_BYTE)
        events = [event for event in events if event[0] > until]
        network.clock.advance(max(until - network.clock.monotonic(), 0))

    assert chosen.total() > 1000
    assert chosen[ONE] / chosen.total() < 0.03


def test_a_retry_budget_allows_a_share_of_requests_and_a_few_a_second() -> None:
    clock = ManualClock()
    budget = RetryBudget(clock, ratio=0.25, per_s_min=1.0, balance_max=10)
    assert [budget.try_spend() for _ in range(11)] == [True] * 10 + [False]

    for _ in range(8):
        budget.note_request()
    assert [budget.try_spend() for _ in range(3)] == [True, True, False]

    clock.advance(1.0)
    assert [budget.try_spend() for _ in range(2)] == [True, False]

    clock.advance(1e6)
    assert sum(budget.try_spend() for _ in range(100)) == 10


def test_the_cheapest_with_room_is_chosen_and_cost_breaks_the_tie() -> None:
    network = Network(4, capacity=1)
    costs = {1: 5, 2: 3, 3: 3, 4: None}

    def quote(target: Target) -> int | None:
        return costs[target.target_id.int]

    chosen = [network.router.choose(MODEL, quote=quote, cheapest=True) for _ in range(3)]
    assert [dispatch.target_id.int for dispatch in chosen[2:]] == [1]
    assert {dispatch.target_id.int for dispatch in chosen[:2]} == {2, 3}
    # The fourth has room and may not be used: those that may are busy.
    with pytest.raises(WorkersBusyError):
        network.router.choose(MODEL, quote=quote)
    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL, quote=lambda _: None)


def test_only_targets_that_a_request_may_go_to_are_named() -> None:
    network = Network(3)
    named = network.router.targets(MODEL, only=("worker-1", "worker-2"), ignore=("worker-2",))
    assert [target.target_id for target in named] == [ONE]
    assert network.router.targets("unknown") == []


# Pinned weights


def test_a_pinned_manifest_goes_to_workers_that_serve_it_and_to_nobody_else() -> None:
    network = Network(0)
    pins = {1: b"\x01" * 32, 2: b"\x02" * 32, 3: b""}
    workers = [a_worker(network.clock, number, manifest_sha256=pin) for number, pin in pins.items()]
    network.registry.replace_enrolments(workers)
    network.registry.set_upstreams([an_upstream()])
    beat_all(network.registry, network.clock, 4)
    for number in (1, 2):
        for _ in range(4):
            assert network.router.choose(MODEL, manifest=pins[number]).target_id == uuid.UUID(int=number)
        # Its room is used up, and the others are still not asked.
        with pytest.raises(WorkersBusyError):
            network.router.choose(MODEL, manifest=pins[number])
    with pytest.raises(ManifestUnservedError):
        network.router.choose(MODEL, manifest=b"\x03" * 32)
    with pytest.raises(ManifestUnservedError):
        network.router.targets(MODEL, manifest=b"\x03" * 32)
    assert network.registry.manifests(MODEL) == {"01" * 32: 1, "02" * 32: 1}
    with pytest.raises(NoWorkerError) as excluded:
        network.router.choose(MODEL, manifest=pins[1], exclude=frozenset({uuid.UUID(int=1)}))
    assert excluded.type is NoWorkerError
