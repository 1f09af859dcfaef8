"""Which target gets a request: two candidates at random, the one with the lower expected cost wins.

The expected cost is in seconds until the first token, without thresholds that could make load slosh:

    (prompts waiting there + this prompt) / measured prefill rate
      + PRESSURE_S * k / (1 - k)              k = requests in flight / capacity
      + what its first tokens lately took beyond that, or what its oldest waiting request is already late
    ... divided by the share of recent requests that it did not fail
    ... times one more for each recent claim for more than it was owed (`Registry.set_standing`)

Where the operator asks for stakes, candidates are drawn in proportion to their weight, `min(stake, capacity)` in
requests in flight; who has no stake gets one request in a hundred, and nobody more than its stake covers
(`workers.covers`).

A target without measurements is taken for the median of its model's targets, so that a newcomer is neither flooded
nor starved. Everything is decided synchronously; clock and dice are injected.
"""

import enum
import math
import random
import uuid
from collections.abc import Callable

import structlog

from cocoon.clock import Clock
from cocoon.endpoints import Endpoint
from workers.covers import Cover, Exploration
from workers.errors import (
    CoverMissedError,
    EndpointUnsupportedError,
    ManifestUnservedError,
    ModelNotFoundError,
    NoWorkerError,
    WorkersBusyError,
)
from workers.load import RATE_DEFAULT, TargetLoad, median, saturation
from workers.registry import Member, Registry, Requirement, Target
from workers.sampling import weighted_pair

PRESSURE_S = 0.25
"""Seconds that a half-used target is worth more than an idle one."""
COST_S_MIN = 0.001
"""Keeps the failure penalty meaningful for targets that are otherwise free."""
FAILURE_RATIO_MAX = 0.95
RATE_KEPT_S = 1.0
"""How long the median rate of a model is kept, of at most `RATES_MAX` models."""
RATES_MAX = 4096
BUSY_RETRY_S = 1.0
"""When to ask again while every target is at capacity."""
LACKING_LOGGED_S = 10.0
"""How often a process says that only workers without a stake are left."""
RETRY_RATIO = 0.2
RETRIES_PER_S_MIN = 5.0
RETRY_BALANCE_MAX = 50.0

_log = structlog.get_logger(__name__)
_MEETS: dict[Requirement, frozenset[str]] = {
    "any": frozenset({"none", "tdx", "tdx+gpu"}),
    "tdx": frozenset({"tdx", "tdx+gpu"}),
    "tdx+gpu": frozenset({"tdx+gpu"}),
}


Quote = Callable[[Target], int | None]
"""What a request costs at most at a target, in any one unit; None where it must not go. Why is the caller's affair."""


def stricter(one: Requirement, other: Requirement) -> Requirement:
    """The requirement that fewer targets meet."""
    return one if _MEETS[one] <= _MEETS[other] else other


class DispatchOutcome(enum.StrEnum):
    """How a dispatch ended, as far as the target is concerned."""

    OK = "ok"
    FAILED_BEFORE_FIRST_BYTE = "failed_before_first_byte"
    FAILED_MID_STREAM = "failed_mid_stream"
    THROTTLED = "throttled"
    CLIENT_GONE = "client_gone"


class Dispatch:
    """One request at one target. It counts as in flight until `finish`, which must be called however it ends."""

    __slots__ = (
        "_clock", "_cover", "_exposed_nano", "_finished", "_member", "_request", "_trial", "keyset_digest", "target"
    )  # fmt: skip

    def __init__(
        self, clock: Clock, member: Member, prompt_tokens: int, now: float, keyset_digest: bytes | None = None,
        cover: Cover | None = None, exposed_nano: int = 0,
    ) -> None:  # fmt: skip
        self.target: Target = member.target
        self.keyset_digest = keyset_digest
        """Which of the worker's keysets the request was sealed for; None when it is not sealed."""
        self._clock = clock
        self._member = member
        self._trial = member.load.breaker.begin(now)
        self._request = member.load.begin(prompt_tokens, now)
        self._finished = False
        self._cover = cover
        self._exposed_nano = exposed_nano
        if cover is not None:
            cover.take(exposed_nano)

    @property
    def target_id(self) -> uuid.UUID:
        """For the next attempt's `exclude`."""
        return self._member.target_id

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._finished

    def first_token(self, now: float) -> None:
        """The first token came at monotonic `now`. Only the first call counts, and none after `finish`."""
        if self._finished:
            return
        load = self._member.load
        load.first_token(self._request, now)
        if self._trial is not None:
            load.breaker.proved(self._trial)

    def finish(self, outcome: DispatchOutcome, *, retry_after_s: float | None = None) -> None:
        """Release the target and count the outcome, once: later calls change nothing.

        `retry_after_s` is what a target that throttles asked for.
        """
        if self._finished:
            return
        self._finished = True
        now = self._clock.monotonic()
        load = self._member.load
        load.end(self._request, now, gave_up=outcome is DispatchOutcome.CLIENT_GONE)
        before = load.breaker.state(now)
        match outcome:
            case DispatchOutcome.OK:
                load.breaker.succeeded(now, self._trial)
            case DispatchOutcome.FAILED_BEFORE_FIRST_BYTE | DispatchOutcome.FAILED_MID_STREAM:
                load.breaker.failed(now, self._trial)
            case DispatchOutcome.THROTTLED:
                load.breaker.undecided(self._trial)
                load.breaker.throttled(now, BUSY_RETRY_S if retry_after_s is None else retry_after_s)
            case DispatchOutcome.CLIENT_GONE:
                load.breaker.undecided(self._trial)
        after = load.breaker.state(now)
        if after is not before:
            _log.info("breaker_changed", target=self.target.name, target_id=str(self.target_id), state=after.value)

    def uncover(self, earned_nano: int = 0) -> None:
        """Give back what the worker's stake had to cover, once: nothing will be booked, or this was, durably."""
        cover, self._cover = self._cover, None
        if cover is not None:
            cover.put_back(self._exposed_nano, min(earned_nano, self._exposed_nano))


class Router:
    """Chooses targets from a registry. `staked`: workers need a stake (`Registry.set_covers`)."""

    def __init__(self, registry: Registry, clock: Clock, rng: random.Random, *, staked: bool = False) -> None:
        self.staked = staked
        self._exploration = Exploration()
        self._lacking_logged_at = -math.inf
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._rates: dict[str, tuple[float, float]] = {}

    def choose(
        self,
        model: str,
        *,
        endpoint: Endpoint | None = None,
        prompt_tokens_bound: int = 0,
        exclude: frozenset[uuid.UUID] = frozenset(),
        require: Requirement = "any",
        only: tuple[str, ...] = (),
        ignore: tuple[str, ...] = (),
        quote: Quote | None = None,
        cheapest: bool = False,
        manifest: bytes | None = None,
        keysets: frozenset[bytes] | None = None,
        exposed_nano: int = 0,
    ) -> Dispatch:
        """A target for a request whose prompt has at most `prompt_tokens_bound` tokens; it counts as dispatched.

        `endpoint` is what it must serve the model at; None is any. `exclude` holds targets already tried, `only` and
        `ignore` name targets by name or id. With `cheapest`, of the targets with room those are chosen from that
        `quote` least, and the expected cost in seconds comes second. `keysets` are the only ones that can do it, for a
        sealed request, and `manifest` is the digest of the only model manifest that will do. `exposed_nano` is the
        most that it can cost anywhere, which a worker's stake has to cover until `Dispatch.uncover`.

        Raises:
            ModelNotFoundError: nobody serves the model.
            EndpointUnsupportedError: nobody serves it at this endpoint.
            WorkersBusyError: those who could are at capacity or asked for a pause.
            CoverMissedError: some of those have room, and this process has no more of their stakes.
            NoWorkerError: none is live, allowed and sound.
            ManifestUnservedError: none of those that are live serves it from this manifest.
        """
        registry = self._registry
        if not registry.knows(model, endpoint):
            raise _unserved(registry, model)
        now = self._clock.monotonic()
        candidates = registry.live_members(model, now, endpoint)
        if manifest is not None:
            candidates = _pinned(candidates, manifest)
        if exclude or require != "any" or only or ignore:
            candidates = _allowed(candidates, exclude, require, only, ignore)
        if keysets is not None:
            candidates = [member for member in candidates if member.keyset_among(keysets, now) is not None]
        if quote is not None:
            candidates = [member for member in candidates if quote(member.target) is not None]
        pool = self._with_room(model, candidates, now, exposed_nano, cheapest=cheapest)
        if cheapest and quote is not None:
            pool = _cheapest(pool, quote)
        member = self._pick(model, pool, prompt_tokens_bound, now)
        keyset_digest = None if keysets is None else member.keyset_among(keysets, now)
        cover = None
        if self.staked:
            cover = member.cover
            self._exploration.note(proven=cover is not None)
        return Dispatch(self._clock, member, prompt_tokens_bound, now, keyset_digest, cover, exposed_nano)

    def has_asks(self, model: str) -> bool:
        """See `Registry.has_asks`."""
        return self._registry.has_asks(model)

    def targets(
        self, model: str, *, endpoint: Endpoint | None = None, require: Requirement = "any",
        only: tuple[str, ...] = (), ignore: tuple[str, ...] = (), manifest: bytes | None = None,
    ) -> list[Target]:  # fmt: skip
        """The live targets that such a request may go to, whether or not they have room.

        Raises:
            ManifestUnservedError: see `choose`.
        """
        members = self._registry.live_members(model, self._clock.monotonic(), endpoint)
        if manifest is not None:
            members = _pinned(members, manifest)
        return [member.target for member in _allowed(members, frozenset(), require, only, ignore)]

    def _with_room(
        self, model: str, candidates: list[Member], now: float, exposed_nano: int, *, cheapest: bool
    ) -> list[Member]:
        """Those to choose from, at least one.

        Raises:
            WorkersBusyError, CoverMissedError, NoWorkerError: see `choose`.
        """
        staked, free, reported_full = self.staked, list[Member](), list[Member]()
        missed = False
        for member in candidates:
            load = member.load
            if load.in_flight >= load.capacity or not load.breaker.allows(now):
                continue
            if staked and (cover := member.cover) is not None and not cover.covers(exposed_nano, now):
                missed = True
                continue
            (free if load.in_flight_estimate < load.capacity else reported_full).append(member)
        # A heartbeat is up to two seconds old: a target that it calls full may be asked when nobody else is left.
        if staked:
            pool = self._backed(free, cheapest=cheapest) or self._backed(reported_full, cheapest=cheapest)
        else:
            pool = free or reported_full
        if not pool:
            if missed:
                raise CoverMissedError(BUSY_RETRY_S)
            raise self._refusal(model, candidates, now)
        return pool

    def _pick(self, model: str, pool: list[Member], prompt_tokens: int, now: float) -> Member:
        count = len(pool)
        if count == 1:
            return pool[0]
        if self.staked and pool[0].cover is not None:
            weights = [min(cover.units, member.load.capacity) for member in pool if (cover := member.cover) is not None]
            first, second = weighted_pair(weights, self._rng)
        else:
            first = int(self._rng.random() * count)
            second = int(self._rng.random() * (count - 1))
            second += second >= first
        one, other = pool[first], pool[second]
        elsewhere = self._median_rate(model, now)
        # The pair is in random order, so this breaks ties at random.
        if cost_s(other.load, prompt_tokens, elsewhere, now) < cost_s(one.load, prompt_tokens, elsewhere, now):
            return other
        return one

    def _backed(self, members: list[Member], *, cheapest: bool) -> list[Member]:
        """Those with a stake; those without one where one of them is due. Nobody looks for them at a higher price."""
        if self._exploration.due and not cheapest:
            unproven = [member for member in members if member.cover is None]
            if unproven:
                return unproven
        return [member for member in members if member.cover is not None]

    def _refusal(self, model: str, candidates: list[Member], now: float) -> NoWorkerError | WorkersBusyError:
        """Busy when time alone helps, and for how long. Time alone brings nobody a stake."""
        if self.staked:
            proven = [member for member in candidates if member.cover is not None]
            if candidates and not proven and now >= self._lacking_logged_at + LACKING_LOGGED_S:
                self._lacking_logged_at = now
                _log.warning("no_worker_has_a_stake", model=model, unproven=len(candidates))
            candidates = proven
        return _refusal(candidates, now)

    def _median_rate(self, model: str, now: float) -> float:
        kept = self._rates.get(model)
        if kept is not None and now < kept[0]:
            return kept[1]
        rates = [
            rate
            for member in self._registry.live_members(model, now)
            if (rate := member.load.rate.measured) is not None
        ]
        value = median(rates, RATE_DEFAULT)
        if len(self._rates) >= RATES_MAX:
            self._rates.clear()
        self._rates[model] = (now + RATE_KEPT_S, value)
        return value


def cost_s(load: TargetLoad, prompt_tokens: int, elsewhere: float, now: float) -> float:
    """Expected seconds to the first token, failures priced in; `elsewhere` is the rate of an unmeasured target."""
    in_flight = load.in_flight_estimate
    tokens = load.waiting_tokens + prompt_tokens
    if load.reported_queued and in_flight > load.in_flight:
        # Others' requests that wait there; of their sizes we only know ours.
        tokens += min(load.reported_queued, in_flight - load.in_flight) * load.tokens_mean
    excess_s = load.excess.get(now)
    late_s = load.overdue_s(now)
    cost = (
        COST_S_MIN
        + tokens / load.rate.get(now, elsewhere)
        + PRESSURE_S * saturation(in_flight, load.capacity)
        + (max(excess_s, late_s))
    )
    failures = load.breaker.failure_ratio(now)
    if failures:
        cost /= 1.0 - min(failures, FAILURE_RATIO_MAX)
    return cost * (1.0 + load.offences) if load.offences else cost


def _allowed(
    members: list[Member],
    exclude: frozenset[uuid.UUID],
    require: Requirement,
    only: tuple[str, ...],
    ignore: tuple[str, ...],
) -> list[Member]:
    meets = _MEETS[require]
    return [
        member
        for member in members
        if member.target_id not in exclude
        and member.target.evidence in meets
        and (not only or member.target.name in only or str(member.target_id) in only)
        and member.target.name not in ignore
        and str(member.target_id) not in ignore
    ]


def _pinned(members: list[Member], manifest: bytes) -> list[Member]:
    pinned = [member for member in members if member.target.manifest_sha256 == manifest]
    if members and not pinned:
        raise ManifestUnservedError
    return pinned


def _cheapest(members: list[Member], quote: Quote) -> list[Member]:
    quoted = [(cost, member) for member in members if (cost := quote(member.target)) is not None]
    least = min(cost for cost, _ in quoted)
    return [member for cost, member in quoted if cost == least]


def _unserved(registry: Registry, model: str) -> ModelNotFoundError | EndpointUnsupportedError:
    endpoints = registry.endpoints(model)
    if not endpoints:
        return ModelNotFoundError()
    names = ", ".join(endpoints)
    return EndpointUnsupportedError(f"The model {model!r} is not served at this endpoint, only for {names}.")


def _refusal(candidates: list[Member], now: float) -> NoWorkerError | WorkersBusyError:
    """Busy when time alone helps, and for how long."""
    waits: list[float] = []
    for member in candidates:
        pause_s = member.load.breaker.cooldown_s(now)
        if pause_s > 0:
            waits.append(pause_s)
        elif member.load.breaker.allows(now):
            waits.append(BUSY_RETRY_S)
    return WorkersBusyError(min(waits)) if waits else NoWorkerError()


class RetryBudget:
    """How many retries the gateway may add to its load: a share of its requests, and a few a second besides.

    Without it, an outage of half the workers doubles the load on the other half.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        ratio: float = RETRY_RATIO,
        per_s_min: float = RETRIES_PER_S_MIN,
        balance_max: float = RETRY_BALANCE_MAX,
    ) -> None:
        assert min(ratio, per_s_min) >= 0, "a budget does not shrink by itself"
        assert balance_max >= 1, "a budget that can be spent"
        self._clock = clock
        self._ratio = ratio
        self._per_s_min = per_s_min
        self._balance_max = balance_max
        self._balance = balance_max
        self._at = clock.monotonic()

    def note_request(self) -> None:
        """A first attempt was made."""
        self._balance = min(self._balance + self._ratio, self._balance_max)

    def try_spend(self) -> bool:
        """Take one retry from the budget; False when it is used up."""
        now = self._clock.monotonic()
        self._balance = min(self._balance + (now - self._at) * self._per_s_min, self._balance_max)
        self._at = now
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
