"""Stakes in routing: in proportion, hardly anything without one, and never more than one covers."""

import random
import uuid
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.clock import ManualClock
from tests.unit.workers.worker_values import MODEL, a_worker, an_upstream, beat_all
from workers.covers import EXPLORED_MAX, PROVEN_PER_EXPLORED, Cover
from workers.errors import NoWorkerError, WorkersBusyError
from workers.registry import Registry
from workers.routing import Dispatch, DispatchOutcome, Router
from workers.sampling import weighted_pair
from workers.targets import Target

ROUNDS = 4_000
STEPS = 400


def account(number: int) -> bytes:
    return bytes([number]) * 32


class Network:
    """Live workers by number, each with a stake worth so many units; None names none, 0 has nothing bonded."""

    def __init__(self, units: Mapping[int, float | None], *, capacity: int = 4, room_nano: int = 10**9) -> None:
        self.clock = ManualClock()
        self.registry = Registry(self.clock)
        workers = [
            a_worker(self.clock, number, capacity=capacity, **({} if value is None else {"stake": account(number)}))
            for number, value in units.items()
        ]
        self.registry.replace_enrolments(workers)
        beat_all(self.registry, self.clock, capacity)
        self.covers = {account(n): self.cover(n, value, room_nano) for n, value in units.items() if value is not None}
        self.registry.set_covers(self.covers)
        self.router = Router(self.registry, self.clock, random.Random(7), staked=True)

    @staticmethod
    def cover(number: int, units: float, room_nano: int) -> Cover:
        cover = Cover(account(number), uuid.UUID(int=number))
        cover.units = units
        claim = cover.claim(0.0)
        cover.answered(claim, room_nano, renews_at=10.0, ends_at=1e9)
        return cover

    def shares(self, rounds: int = ROUNDS) -> Counter[str]:
        """How many of so many requests, one at a time, each target gets."""
        hits: Counter[str] = Counter()
        for _ in range(rounds):
            dispatch = self.router.choose(MODEL, exposed_nano=1)
            hits[dispatch.target.name] += 1
            dispatch.finish(DispatchOutcome.CLIENT_GONE)
            dispatch.uncover()
        return hits

    def try_all(self, exposed_nano: int, most: int = 100) -> list[Dispatch]:
        """Dispatch until nobody has room."""
        dispatched: list[Dispatch] = []
        while len(dispatched) < most:
            try:
                dispatched.append(self.router.choose(MODEL, exposed_nano=exposed_nano))
            except (NoWorkerError, WorkersBusyError):
                break
        return dispatched


def test_requests_are_shared_in_proportion_to_stakes_as_far_as_capacities_go() -> None:
    hits = Network({1: 1.0, 2: 3.0, 3: 1_000.0}, capacity=4).shares()

    # The last has more stake than it has capacity: 1 + 3 + 4 units in all.
    assert abs(hits["worker-1"] / ROUNDS - 1 / 8) < 0.03
    assert abs(hits["worker-2"] / ROUNDS - 3 / 8) < 0.03
    assert abs(hits["worker-3"] / ROUNDS - 4 / 8) < 0.03


class Lattice(random.Random):
    """Draws that go through all of their chances evenly, so that what is counted is a probability and no sample."""

    def __init__(self, steps: int, turns: int) -> None:
        super().__init__(0)
        self._draws = iter(
            [draw for step in range(steps) for turn in range(turns) for draw in ((step + 0.5) / steps, turn / turns)]
        )

    def random(self) -> float:
        return next(self._draws)


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    pieces=st.lists(st.floats(0.05, 1), min_size=2, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_dividing_a_stake_gains_nothing(weights: list[float], pieces: list[float], order: random.Random) -> None:
    mine, others = weights[0], weights[1:]
    divided = [mine * piece / sum(pieces) for piece in pieces]

    def named(mine: list[float]) -> float:
        """Of all that are named, how many are mine. Of equal candidates either wins, so that it is the share."""
        all_of_them = [(weight, True) for weight in mine] + [(weight, False) for weight in others]
        order.shuffle(all_of_them)
        lattice = Lattice(STEPS, turns=3)
        pairs = (weighted_pair([weight for weight, _ in all_of_them], lattice) for _ in range(STEPS * 3))
        return sum(all_of_them[index][1] for pair in pairs for index in pair) / (2 * STEPS * 3)

    expected = mine / sum(weights)
    # Each end of an arc may lie one step of the lattice off.
    assert abs(named([mine]) - expected) <= 2 / STEPS
    assert abs(named(divided) - expected) <= 2 * len(divided) / STEPS


def test_two_equal_candidates_are_always_compared() -> None:
    rng = random.Random(3)

    assert {frozenset(weighted_pair([2.0, 2.0], rng)) for _ in range(200)} == {frozenset({0, 1})}


def test_a_candidate_is_its_own_rival_only_with_more_than_half_of_all_weight() -> None:
    rng = random.Random(3)
    pairs = [weighted_pair([1.0, 2.0, 3.0], rng) for _ in range(500)]

    assert all(one != other for one, other in pairs)
    assert any(one == other for one, other in (weighted_pair([1.0, 9.0], rng) for _ in range(100)))


@pytest.mark.parametrize("units", [None, 0.0])
def test_workers_without_a_stake_share_one_request_in_a_hundred(units: float | None) -> None:
    hits = Network({1: 4.0, **dict.fromkeys(range(2, 10), units)}).shares()

    unproven = ROUNDS - hits["worker-1"]
    assert 0 < unproven <= hits["worker-1"] / PROVEN_PER_EXPLORED
    assert unproven >= ROUNDS / PROVEN_PER_EXPLORED - 2


def test_exploration_starts_with_nothing_and_does_not_add_up() -> None:
    network = Network({1: 4.0, 2: None})
    first = [network.router.choose(MODEL, ignore=("worker-2",)) for _ in range(3)]
    for dispatch in first:
        dispatch.finish(DispatchOutcome.OK)
    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL, only=("worker-2",))

    for _ in range(10 * PROVEN_PER_EXPLORED):
        network.router.choose(MODEL, only=("worker-1",)).finish(DispatchOutcome.OK)

    explored = [network.router.choose(MODEL, only=("worker-2",)) for _ in range(EXPLORED_MAX)]
    assert {dispatch.target.name for dispatch in explored} == {"worker-2"}
    with pytest.raises(NoWorkerError):
        network.router.choose(MODEL, only=("worker-2",))


def test_a_network_where_nobody_has_a_stake_serves_nobody() -> None:
    with pytest.raises(NoWorkerError):
        Network({1: None, 2: 0.0}).router.choose(MODEL)


def test_who_asks_for_the_cheapest_is_not_sent_to_somebody_unproven() -> None:
    network = Network({1: 4.0, 2: None})
    for _ in range(2 * PROVEN_PER_EXPLORED):
        network.router.choose(MODEL, only=("worker-1",)).finish(DispatchOutcome.OK)

    def quote(target: Target) -> int:
        return 1 if target.name == "worker-2" else 2

    assert network.router.choose(MODEL, quote=quote, cheapest=True).target.name == "worker-1"
    assert network.router.choose(MODEL).target.name == "worker-2"


def test_the_operators_own_upstreams_need_no_stake() -> None:
    network = Network({1: None})
    network.registry.set_upstreams([an_upstream(capacity=2)])

    assert [dispatch.target.name for dispatch in network.try_all(10**15)] == ["local", "local"]


def test_a_stake_stands_only_for_the_worker_that_it_is_registered_for() -> None:
    network = Network({1: 4.0, 2: 4.0})
    network.covers[account(2)].worker_id = uuid.UUID(int=1)
    network.registry.set_covers(network.covers)

    assert {dispatch.target.name for dispatch in network.try_all(1)} == {"worker-1"}


def test_a_slashed_worker_gets_nothing_whatever_is_left_to_explore() -> None:
    network = Network({1: 4.0, 2: 4.0})
    network.shares(300)
    slashed = network.covers[account(2)]
    slashed.slashed, slashed.units = True, 0.0
    network.registry.set_covers(network.covers)

    assert network.shares(300) == Counter({"worker-1": 300})
    assert network.registry.models() == {MODEL: 1}


def test_a_stake_covers_so_much_and_no_more_until_it_comes_back() -> None:
    network = Network({1: 4.0}, capacity=100, room_nano=25)
    held = network.try_all(10)
    assert len(held) == 2
    with pytest.raises(WorkersBusyError) as caught:
        network.router.choose(MODEL, exposed_nano=10)
    assert caught.value.retry_after_s > 0
    network.router.choose(MODEL, exposed_nano=5).finish(DispatchOutcome.OK)

    held[0].finish(DispatchOutcome.OK)
    with pytest.raises(WorkersBusyError):
        network.router.choose(MODEL, exposed_nano=10)
    held[0].uncover()
    held[0].uncover()

    assert len(network.try_all(10)) == 1


def test_what_was_earned_stays_exposed() -> None:
    network = Network({1: 4.0}, capacity=100, room_nano=25)
    for _ in range(2):
        dispatch = network.router.choose(MODEL, exposed_nano=10)
        dispatch.finish(DispatchOutcome.OK)
        dispatch.uncover(8)

    with pytest.raises(WorkersBusyError):
        network.router.choose(MODEL, exposed_nano=10)
    assert network.covers[account(1)].used_nano == 0


def test_a_target_without_room_is_passed_over_for_others() -> None:
    network = Network({1: 4.0, 2: 1.0}, capacity=100, room_nano=1_000)
    full = network.covers[account(1)]
    full.take(995)

    assert {network.router.choose(MODEL, exposed_nano=10).target.name for _ in range(20)} == {"worker-2"}


def test_a_stake_that_the_store_has_not_confirmed_for_too_long_covers_nothing() -> None:
    network = Network({1: 4.0})
    cover = network.covers[account(1)]
    cover.ends_at = network.clock.monotonic() + 1.0
    network.router.choose(MODEL, exposed_nano=1)
    network.clock.advance(1.0)

    with pytest.raises(WorkersBusyError):
        network.router.choose(MODEL, exposed_nano=1)


def test_nothing_is_asked_where_the_operator_asks_for_no_stake() -> None:
    network = Network({1: None, 2: 0.0, 3: 4.0}, room_nano=0)
    router = Router(network.registry, network.clock, random.Random(1))

    names = {router.choose(MODEL, exposed_nano=10**9).target.name for _ in range(12)}

    assert names == {"worker-1", "worker-2", "worker-3"}
    assert all(cover.used_nano == 0 for cover in network.covers.values())
