"""Moving averages over time that has to be told: up at once, down slowly.

Latencies have long tails, and a plain average forgets a spike before anyone has reacted to it. A peak average takes
a worse sample whole and lets better ones pull it down over `tau_s` seconds (Finagle's and Tower's peak EWMA).
"""

import math


class PeakEWMA:
    """A peak average of non-negative samples that fades towards zero while nothing is observed.

    Fading matters to a balancer: a target that looked slow once would otherwise never be tried again.
    """

    __slots__ = ("_at", "_tau_s", "_value")

    def __init__(self, tau_s: float) -> None:
        assert tau_s > 0, "a time constant"
        self._tau_s = tau_s
        self._value = 0.0
        self._at = -math.inf

    def observe(self, sample: float, now: float) -> None:
        """Add a sample (>= 0) taken at monotonic `now`; time that goes back counts as none."""
        assert sample >= 0, "samples are not negative"
        weight = self._weight(now)
        faded = self._value * weight
        self._value = sample if sample >= faded else faded + sample * (1.0 - weight)
        self._at = max(self._at, now)

    def get(self, now: float) -> float:
        """The average at `now`; reading changes nothing."""
        return self._value * self._weight(now)

    def _weight(self, now: float) -> float:
        return math.exp(-max(now - self._at, 0.0) / self._tau_s) if self._value else 0.0


class Count:
    """A count of events that halves every `half_life_s` seconds."""

    __slots__ = ("_at", "_rate", "_value")

    def __init__(self, half_life_s: float) -> None:
        assert half_life_s > 0, "a half-life"
        self._rate = math.log(2) / half_life_s
        self._value = 0.0
        self._at = -math.inf

    def add(self, now: float) -> None:
        """One more event at `now`."""
        self._value = self.get(now) + 1.0
        self._at = max(self._at, now)

    def get(self, now: float) -> float:
        """What is left of the events so far."""
        return self._value * math.exp(-max(now - self._at, 0.0) * self._rate) if self._value else 0.0

    def clear(self) -> None:
        """Forget every event."""
        self._value = 0.0


class PrefillRate:
    """Prompt tokens per second as far as they can be seen from outside: the best recent one.

    A first token's delay is prefill plus whatever else got in the way, so a single sample only bounds the rate from
    below. The estimate rises at once and falls slowly; what is not prefill shows up as the caller's residual.
    """

    __slots__ = ("_at", "_tau_s", "_value")

    def __init__(self, tau_s: float) -> None:
        assert tau_s > 0, "a time constant"
        self._tau_s = tau_s
        self._value: float | None = None
        self._at = -math.inf

    @property
    def measured(self) -> float | None:
        """The last estimate, None before the first sample."""
        return self._value

    def observe(self, tokens_per_s: float, now: float) -> None:
        """Add a sample (> 0)."""
        assert tokens_per_s > 0, "a rate"
        if self._value is None or tokens_per_s >= self._value:
            self._value = tokens_per_s
        else:
            weight = math.exp(-max(now - self._at, 0.0) / self._tau_s)
            self._value = self._value * weight + tokens_per_s * (1.0 - weight)
        self._at = max(self._at, now)

    def get(self, now: float, elsewhere: float) -> float:
        """The estimate, drifting towards the rate `elsewhere` as it grows old; `elsewhere` itself when new."""
        if self._value is None:
            return elsewhere
        weight = math.exp(-max(now - self._at, 0.0) / self._tau_s)
        return elsewhere + (self._value - elsewhere) * weight
