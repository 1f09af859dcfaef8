"""What one target has to do, as far as this process knows: its own requests, and the target's last heartbeat.

A heartbeat counts everybody's requests but is up to two seconds old; our own count is exact but only ours. The
estimate is the heartbeat plus what we have started and finished since. Nothing here decides anything.
"""

import itertools

from cocoon.enrolment import Heartbeat
from workers.breaker import Breaker
from workers.ewma import PeakEWMA, PrefillRate

RATE_TAU_S = 60.0
EXCESS_TAU_S = 10.0
TOKENS_MEAN_WEIGHT = 0.05
RATE_DEFAULT = 2000.0
"""Prompt tokens per second assumed when no target of the model has been measured."""
TTFT_S_MIN = 1e-4


class TargetLoad:
    """The load of one target; every prompt size is the admission's upper bound in tokens, times are monotonic.

    Bounds overestimate tokens by a factor that is alike everywhere, and rates are measured in the same unit, so the
    factor cancels out.
    """

    __slots__ = (
        "_at_heartbeat",
        "_enrolled_capacity",
        "_ids",
        "_waiting",
        "_waiting_tokens",
        "breaker",
        "capacity",
        "draining",
        "excess",
        "in_flight",
        "offences",
        "rate",
        "reported_queued",
        "reported_total",
        "tokens_mean",
    )

    def __init__(self, capacity: int) -> None:
        self.breaker = Breaker()
        self.rate = PrefillRate(RATE_TAU_S)
        self.excess = PeakEWMA(EXCESS_TAU_S)
        """Seconds by which first tokens come later than prefill alone explains."""
        self.in_flight = 0
        self.draining = False
        self.offences = 0.0
        """Recent claims for more than was owed, decayed; routing's affair, and not forgotten with a restart."""
        self.reported_total = 0
        self.reported_queued = 0
        self.tokens_mean = 0.0
        self.capacity = capacity
        """Requests it may have in flight: what it enrolled with, or less while its heartbeats say so."""
        self._enrolled_capacity = capacity
        self._at_heartbeat = 0
        self._waiting: dict[int, tuple[float, int, int]] = {}
        self._waiting_tokens = 0
        self._ids = itertools.count()

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of our requests that have not had their first token."""
        return self._waiting_tokens

    @property
    def in_flight_estimate(self) -> int:
        """Requests in flight from all gateways: never less than our own."""
        estimate = self.reported_total + self.in_flight - self._at_heartbeat
        return max(self.in_flight, estimate)

    def set_capacity(self, capacity: int) -> None:
        """What the target has enrolled with now."""
        if capacity != self._enrolled_capacity:
            self._enrolled_capacity = self.capacity = capacity

    def restarted(self, now: float) -> None:
        """The target is a new process: its measurements start again."""
        self.breaker.restarted(now)
        self.rate = PrefillRate(RATE_TAU_S)
        self.excess = PeakEWMA(EXCESS_TAU_S)
        self.reported_total = self.reported_queued = 0
        self._at_heartbeat = self.in_flight
        self.draining = False

    def report(self, heartbeat: Heartbeat) -> None:
        """Take in a heartbeat. A capacity above the enrolled one is ignored: enrolling again raises it."""
        self.reported_total = heartbeat.running + heartbeat.queued
        self.reported_queued = heartbeat.queued
        self.capacity = min(heartbeat.capacity, self._enrolled_capacity)
        self._at_heartbeat = self.in_flight
        self.draining = heartbeat.draining

    def begin(self, prompt_tokens: int, now: float) -> int:
        """A request is sent; returns what `first_token` and `end` call it."""
        request = next(self._ids)
        self.in_flight += 1
        # What it has to wait for: the prompts before it, and its own.
        self._waiting_tokens += prompt_tokens
        self._waiting[request] = (now, prompt_tokens, self._waiting_tokens)
        mean = self.tokens_mean
        self.tokens_mean = mean + (prompt_tokens - mean) * TOKENS_MEAN_WEIGHT if mean else float(prompt_tokens)
        return request

    def first_token(self, request: int, now: float) -> None:
        """The first token came: learn from its delay. Later calls for the same request change nothing."""
        entry = self._leave_queue(request)
        if entry is None:
            return
        started, _, ahead = entry
        ttft_s = max(now - started, TTFT_S_MIN)
        self.rate.observe(max(ahead, 1) / ttft_s, now)
        assert self.rate.measured is not None, "just observed"
        self.excess.observe(max(ttft_s - ahead / self.rate.measured, 0.0), now)

    def end(self, request: int, now: float, *, gave_up: bool) -> None:
        """The request is over, once. `gave_up`: nobody waits for its first token any longer, which says "slow"."""
        assert self.in_flight > 0, "begun before"
        self.in_flight -= 1
        entry = self._leave_queue(request)
        if entry is not None and gave_up:
            late_s = self._late_s(entry, now)
            if late_s > self.excess.get(now):
                self.excess.observe(late_s, now)

    def overdue_s(self, now: float) -> float:
        """By how much the oldest request is already later than its prompt explains: a stuck target shows here first."""
        for entry in self._waiting.values():
            return self._late_s(entry, now)
        return 0.0

    def _late_s(self, entry: tuple[float, int, int], now: float) -> float:
        started, _, ahead = entry
        rate = self.rate.measured or RATE_DEFAULT
        return max(now - started - ahead / rate, 0.0)

    def _leave_queue(self, request: int) -> tuple[float, int, int] | None:
        entry = self._waiting.pop(request, None)
        if entry is not None:
            self._waiting_tokens -= entry[1]
        return entry


def saturation(in_flight: int, capacity: int) -> float:
    """`k / (1 - k)`, the growth of a queue's length with its use; finite even where reports overshoot capacity."""
    return in_flight / (capacity - in_flight) if in_flight < capacity else float(in_flight + 1)


def median(values: list[float], default: float) -> float:
    """The upper median, or `default` of nothing."""
    return sorted(values)[len(values) // 2] if values else default
