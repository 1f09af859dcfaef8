"""Moving averages, the breaker and the load of one target."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workers.worker_values import a_heartbeat
from workers import breaker as limits
from workers.breaker import Breaker, BreakerState
from workers.ewma import Count, PeakEWMA, PrefillRate
from workers.load import TargetLoad, median, saturation


def test_a_peak_average_takes_a_worse_sample_whole_and_a_better_one_slowly() -> None:
    average = PeakEWMA(tau_s=10.0)
    average.observe(1.0, now=0.0)
    average.observe(5.0, now=1.0)
    assert average.get(1.0) == 5.0

    average.observe(0.0, now=2.0)

    assert average.get(2.0) == pytest.approx(5.0 * math.exp(-0.1))


def test_a_peak_average_fades_and_reading_it_changes_nothing() -> None:
    average = PeakEWMA(tau_s=10.0)
    average.observe(4.0, now=0.0)

    assert [average.get(10.0), average.get(10.0), average.get(0.0)] == pytest.approx([4.0 / math.e, 4.0 / math.e, 4.0])


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), min_size=1, max_size=40))
def test_a_peak_average_stays_between_zero_and_its_largest_sample(samples: list[tuple[float, float]]) -> None:
    average = PeakEWMA(tau_s=3.0)
    now = 0.0
    for sample, step in samples:
        now += step
        average.observe(sample, now)
        # The newest sample can only be raised by older, worse ones.
        assert average.get(now) >= 0.0

    assert average.get(now) <= max(sample for sample, _ in samples) * (1 + 1e-9)


def test_a_count_halves_in_its_half_life() -> None:
    count = Count(half_life_s=5.0)
    for _ in range(4):
        count.add(0.0)

    assert [count.get(0.0), count.get(5.0), count.get(10.0)] == pytest.approx([4.0, 2.0, 1.0])


def test_a_prefill_rate_rises_at_once_falls_slowly_and_drifts_to_the_others() -> None:
    rate = PrefillRate(tau_s=60.0)
    assert rate.get(0.0, elsewhere=700.0) == 700.0

    rate.observe(100.0, now=0.0)
    rate.observe(1000.0, now=1.0)
    rate.observe(10.0, now=1.0)

    assert rate.get(1.0, elsewhere=700.0) == 1000.0
    assert rate.get(61.0, elsewhere=700.0) == pytest.approx(700.0 + 300.0 / math.e)


# Breaker


def _opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(limits.CONSECUTIVE_FAILURES_MAX):
        breaker.failed(at)
    assert breaker.state(at) is BreakerState.OPEN
    return breaker


def test_consecutive_failures_open_the_breaker_after_any_number_of_successes() -> None:
    breaker = Breaker()
    for _ in range(1000):
        breaker.succeeded(0.0)
    for _ in range(limits.CONSECUTIVE_FAILURES_MAX - 1):
        breaker.failed(0.0)
    assert breaker.allows(0.0)

    breaker.failed(0.0)

    assert not breaker.allows(0.0)


def test_failures_mixed_with_as_many_successes_open_it_too() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.succeeded(0.0)
        breaker.failed(0.0)
    assert breaker.allows(0.0)

    breaker.failed(0.0)

    assert breaker.state(0.0) is BreakerState.OPEN


def test_rare_failures_do_not_open_it() -> None:
    breaker = Breaker()
    for second in range(600):
        breaker.succeeded(float(second))
        breaker.succeeded(float(second))
        if second % 2:
            breaker.failed(float(second))
        assert breaker.allows(float(second))


def test_one_trial_at_a_time_passes_a_half_open_breaker() -> None:
    breaker = _opened()
    assert not breaker.allows(limits.PAUSE_S_MIN - 0.001)
    assert breaker.state(limits.PAUSE_S_MIN) is BreakerState.HALF_OPEN

    trial = breaker.begin(limits.PAUSE_S_MIN)

    assert trial is not None
    assert not breaker.allows(limits.PAUSE_S_MIN + 100)
    breaker.undecided(trial)
    assert breaker.allows(limits.PAUSE_S_MIN + 100)


def test_a_good_trial_closes_it() -> None:
    breaker = _opened()
    trial = breaker.begin(10.0)
    breaker.succeeded(10.5, trial)

    assert breaker.state(10.5) is BreakerState.CLOSED
    assert breaker.begin(10.5) is None


def test_pauses_double_up_to_their_maximum_until_a_request_succeeds() -> None:
    breaker, now = _opened(), 0.0
    pauses: list[float] = []
    for _ in range(8):
        start = now
        while not breaker.allows(now):
            now += 0.25
        pauses.append(now - start)
        breaker.failed(now, breaker.begin(now))

    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_first_token_of_a_trial_lets_others_pass_but_does_not_shorten_the_next_pause() -> None:
    breaker = _opened()
    trial = breaker.begin(2.0)
    assert trial is not None
    breaker.proved(trial)
    assert breaker.allows(2.0)

    for _ in range(limits.CONSECUTIVE_FAILURES_MAX):
        breaker.failed(2.0)

    assert not breaker.allows(2.0 + 2 * limits.PAUSE_S_MIN - 0.001)
    assert breaker.allows(2.0 + 2 * limits.PAUSE_S_MIN)


def test_outcomes_of_requests_from_before_the_opening_neither_close_nor_prolong_it() -> None:
    breaker = _opened()
    breaker.succeeded(0.1)
    breaker.failed(0.9)

    assert breaker.state(0.95) is BreakerState.OPEN
    assert breaker.allows(limits.PAUSE_S_MIN)


def test_a_request_to_slow_down_is_obeyed_and_is_no_failure() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.throttled(0.0, retry_after_s=7.0)

    assert breaker.state(0.0) is BreakerState.CLOSED
    assert breaker.failure_ratio(0.0) == 0.0
    assert (breaker.allows(6.9), breaker.allows(7.0)) == (False, True)
    assert breaker.cooldown_s(5.0) == 2.0


def test_a_target_cannot_ask_for_an_endless_pause() -> None:
    breaker = Breaker()
    breaker.throttled(0.0, retry_after_s=1e9)

    assert breaker.allows(limits.COOLDOWN_S_MAX)


def test_a_restarted_target_gets_a_trial_at_once_and_old_trials_no_longer_count() -> None:
    breaker = _opened()
    old = breaker.begin(5.0)
    breaker.restarted(5.0)
    assert breaker.state(5.0) is BreakerState.HALF_OPEN
    assert breaker.failure_ratio(5.0) == 0.0

    breaker.failed(5.0, old)

    assert breaker.allows(5.0)


# Load


def test_a_heartbeat_is_corrected_by_what_we_did_since() -> None:
    load = TargetLoad(capacity=8)
    first = load.begin(10, 0.0)
    load.report(a_heartbeat(running=3, queued=1, capacity=8))
    assert load.in_flight_estimate == 4

    load.begin(10, 0.0)
    assert load.in_flight_estimate == 5

    load.end(first, 1.0, gave_up=False)
    assert load.in_flight_estimate == 4


def test_a_heartbeat_older_than_our_requests_does_not_hide_them() -> None:
    load = TargetLoad(capacity=8)
    for _ in range(3):
        load.begin(10, 0.0)
    load.report(a_heartbeat(running=0, capacity=8))

    assert load.in_flight_estimate == 3


def test_a_heartbeat_lowers_capacity_and_never_raises_it_above_the_enrolled_one() -> None:
    load = TargetLoad(capacity=4)
    load.report(a_heartbeat(capacity=1))
    assert load.capacity == 1

    load.report(a_heartbeat(capacity=400))
    assert load.capacity == 4


def test_a_first_token_counts_once_and_teaches_the_rate() -> None:
    load = TargetLoad(capacity=4)
    request = load.begin(1000, now=0.0)
    assert load.waiting_tokens == 1000

    load.first_token(request, now=0.5)
    load.first_token(request, now=5.0)

    assert load.waiting_tokens == 0
    assert load.rate.measured == 2000.0
    assert load.excess.get(0.5) == 0.0


def test_a_delay_that_the_prompt_does_not_explain_shows_as_excess() -> None:
    load = TargetLoad(capacity=4)
    load.first_token(load.begin(1000, now=0.0), now=0.5)

    load.first_token(load.begin(100, now=10.0), now=11.0)

    assert load.excess.get(11.0) == pytest.approx(0.95, abs=0.01)


def test_the_oldest_request_that_still_waits_shows_a_stuck_target() -> None:
    load = TargetLoad(capacity=4)
    load.rate.observe(1000.0, now=0.0)
    oldest = load.begin(500, now=0.0)
    load.begin(500, now=3.0)
    assert load.overdue_s(4.0) == pytest.approx(3.5)

    load.end(oldest, 4.0, gave_up=True)

    assert load.overdue_s(4.0) == pytest.approx(0.0)
    assert load.excess.get(4.0) == pytest.approx(3.5)


def test_saturation_grows_without_bound_but_stays_a_number() -> None:
    values = [saturation(used, 4) for used in range(7)]

    assert values[:4] == [0.0, pytest.approx(1 / 3), 1.0, 3.0]
    assert values == sorted(values)
    assert saturation(0, 0) == 1.0


def test_a_median_of_nothing_is_the_default() -> None:
    assert median([], 7.0) == 7.0
    assert median([3.0, 1.0, 2.0], 7.0) == 2.0
