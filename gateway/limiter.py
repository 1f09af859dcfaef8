"""Limits of keys and projects, enforced in memory from slices that all processes share.

A request that fits what this process holds of each of its budgets is admitted without I/O. One task exchanges with the
store about every `exchange_s`, for all budgets in use at once, and sooner when a request waits: one that does not fit
what is held waits for the next exchange, at most `wait_s`, unless it is known already that there is nothing to be had.
While the store is away the process goes on alone with what it holds and its part of what was left (`gateway.budgets`).

Nothing here awaits between looking at budgets and taking from them, so that a request takes all of its budgets or none.
"""

import asyncio
import contextlib
import datetime as dt
import itertools
import math
import random
import uuid
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec
import structlog

from cocoon.clock import Clock
from cocoon.ids import job_day
from gateway.auth import Principal
from gateway.budgets import Budget, Flow, Stock
from gateway.errors import OverloadedError
from gateway.limits import (
    CONCURRENCY_RETRY_S,
    LimitState,
    LimitsUnknownError,
    LimitWindow,
    RateLimitedError,
    SpendLimitError,
)
from gateway.permits import NOTHING_LIMITED, SPEND, TOKENS, Gate, GateTable, SlicedPermit
from gateway.slices import (
    Answer,
    Ask,
    FlowAnswer,
    FlowAsk,
    SliceStore,
    SlicesUnavailableError,
    SpendBooks,
    SpendUnavailableError,
    StockAnswer,
    StockAsk,
)

WAITING_MAX = 4096
"""Requests waiting for an exchange; more are refused as overload."""
BUDGETS_PER_TICK_MAX = 2000
"""Budgets in one round; where more are in use, the others come first in the next."""
AGAIN_S = 0.01
"""Between exchanges for requests that still wait."""
PROBE_S = 3.0
"""How often a process without anything to ask says that it lives."""
CLOSE_S_MAX = 1.0
"""How long giving everything back may take at the end."""

log = structlog.get_logger()


class LimitTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds. `permit_ttl_s` and `spend_ttl_s`: when a dead process's shares return."""

    exchange_s: float = 0.1
    wait_s: float = 0.25
    retry_s: float = 0.25
    books_s: float = 1.0
    permit_ttl_s: float = 10.0
    spend_ttl_s: float = 60.0


_Due = tuple[Budget, tuple[int, int]]


class _Waiter:
    __slots__ = ("answer", "arrived", "asked", "gate", "nano", "tokens")

    def __init__(self, gate: Gate, tokens: int, nano: int, arrived: float) -> None:
        self.gate = gate
        self.tokens = tokens
        self.nano = nano
        self.arrived = arrived
        self.asked = False
        self.answer: asyncio.Future[SlicedPermit] = asyncio.get_running_loop().create_future()


class SlicedLimiter:
    """The limiter of one process. `run` must be running; `processes` is how many there are at least."""

    def __init__(
        self, store: SliceStore, books: SpendBooks, clock: Clock, rng: random.Random, *,
        terms: LimitTerms | None = None, processes: int = 1,
    ) -> None:  # fmt: skip
        self._store = store
        self._books = books
        self._clock = clock
        self._rng = rng
        self._terms = terms or LimitTerms()
        self._gates = GateTable(self._terms.permit_ttl_s, self._terms.spend_ttl_s)
        self._active: dict[str, Budget] = {}
        self._waiting: deque[_Waiter] = deque()
        self._wake = asyncio.Event()
        self._read = asyncio.Event()
        self._generation = ""
        self._processes_min = processes
        self._processes = processes
        self._epoch = 1
        self._alone = False
        self._ticked_at = self._sent_at = -math.inf

    @property
    def alone(self) -> bool:
        """Whether this process decides alone: the store does not answer."""
        return self._alone

    async def acquire(self, principal: Principal, *, job_id: uuid.UUID, tokens: int, nano: int) -> SlicedPermit:
        """See `gateway.limits.Limiter.acquire`."""
        gate = self._gates.find(principal.key_id)
        if gate is None or gate.principal is not principal or not gate.begins_ms <= job_id.int >> 80 < gate.ends_ms:
            gate = self._gates.open(principal, job_day(job_id), self._clock.monotonic())
        if not gate.parts:
            return NOTHING_LIMITED
        permit = self._take(gate, tokens, nano)
        if permit is not None:
            return permit
        return await self._acquire_later(gate, tokens, nano)

    async def run(self) -> None:
        """Exchange with the store, and read what was spent, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._exchange_for_ever())
            group.create_task(self._read_for_ever())

    async def close(self) -> None:
        """Give back what is held and close the store."""
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                self._active = {b.name: b for b in self._gates.budgets() if not b.resting}
                for budget in self._active.values():
                    budget.asked_at, budget.demand = -math.inf, 0
                self._ticked_at = -math.inf
                if self._active and not self._alone:
                    await self.exchange()
        except TimeoutError:
            log.info("limits_not_returned", count=len(self._active))
        finally:
            await self._store.close()

    # Deciding

    def _take(self, gate: Gate, tokens: int, nano: int) -> SlicedPermit | None:
        asked = (1, tokens, nano)
        costs: list[int] = []
        for budget, kind in gate.parts:
            cost = asked[kind]
            if kind == TOKENS and cost > budget.limit:
                cost = budget.limit
            if budget.spare < cost:
                return None
            costs.append(cost)
        for (budget, _), cost in zip(gate.parts, costs):  # noqa: B905  made above, and this is the hot path
            budget.take(cost)
            if not budget.active:
                self._activate(budget)
        return SlicedPermit(self, gate.parts, costs)

    async def _acquire_later(self, gate: Gate, tokens: int, nano: int) -> SlicedPermit:
        now = self._clock.monotonic()
        for budget, _ in gate.parts:
            budget.asked_at = now
            self._activate(budget)
        if self._alone:
            return self._take_alone(gate, tokens, nano, now)
        self._refuse(gate, tokens, nano, now)
        if len(self._waiting) >= WAITING_MAX:
            raise OverloadedError("too many requests wait for their limits")
        waiter = _Waiter(gate, tokens, nano, now)
        self._waiting.append(waiter)
        self._wake.set()
        try:
            async with asyncio.timeout(self._terms.wait_s):
                return await waiter.answer
        except (TimeoutError, asyncio.CancelledError) as error:
            answer = waiter.answer
            granted = answer.done() and not answer.cancelled() and answer.exception() is None
            if isinstance(error, asyncio.CancelledError):
                # The answer may have come in the very turn in which the caller was cancelled.
                if granted:
                    answer.result().release(0)
                answer.cancel()
                raise
            if granted:
                return answer.result()
            answer.cancel()
        now = self._clock.monotonic()
        if waiter.asked:
            # The store has answered and others hold the rest: it may be theirs to use.
            self._refuse(gate, tokens, nano, now, patient=False)
        return self._take_alone(gate, tokens, nano, now)

    def _take_alone(self, gate: Gate, tokens: int, nano: int, now: float) -> SlicedPermit:
        """Decide with what is here: what is spare, and this process's part of what was left."""
        costs: list[int] = []
        for budget, kind in gate.parts:
            cost = _cost(budget, kind, tokens, nano)
            if isinstance(budget, Flow):
                cost = budget.alone_cost(cost, self._processes)
                wait = budget.alone_wait_s(cost, now, self._epoch, self._processes)
            else:
                if budget.settled is None:
                    raise LimitsUnknownError
                refused = budget.alone_refused(cost, now, self._epoch, self._processes)
                if refused and kind == SPEND and cost <= budget.limit - budget.settled - budget.in_use:
                    raise LimitsUnknownError
                wait = _until_s(budget, gate, self._clock.now()) if refused else 0.0
            if wait:
                raise self._refusal(gate, budget, wait, now)
            costs.append(cost)
        for (budget, _), cost in zip(gate.parts, costs, strict=True):
            if isinstance(budget, Flow):
                budget.take_alone(cost, now)
            else:
                budget.take_alone(cost)
        return SlicedPermit(self, gate.parts, costs)

    def _refuse(self, gate: Gate, tokens: int, nano: int, now: float, *, patient: bool = True) -> None:
        """Raise if a limit is known to be reached; when not `patient`, also where only waiting might have helped."""
        longest, tightest = 0.0, None
        for budget, kind in gate.parts:
            cost = _cost(budget, kind, tokens, nano)
            if isinstance(budget, Flow):
                wait = budget.refusal_s(cost, now)
            else:
                wait = budget.refusal_s(cost, now, _until_s(budget, gate, self._clock.now()))
            if not patient and not wait and budget.spare < cost and now - budget.known_at < self._terms.wait_s * 2:
                wait = _until_s(budget, gate, self._clock.now())
            if wait > longest:
                longest, tightest = wait, budget
        if tightest is not None:
            raise self._refusal(gate, tightest, longest, now)

    def _refusal(self, gate: Gate, budget: Budget, wait: float, now: float) -> RateLimitedError:
        if budget.scope in {"spend_day", "spend_month"}:
            period, until = ("day", gate.day_ends) if budget.scope == "spend_day" else ("month", gate.month_ends)
            return SpendLimitError(
                f"The {budget.owner}'s spend limit of {_ton(budget.limit)} TON per {period} does not cover this "
                f"request. It starts anew at {until:%Y-%m-%d} 00:00 UTC.",
                retry_after_s=wait,
                scope=budget.scope,
                state=self.state_of(gate.parts, now),
            )
        what = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrency": "requests at once"}
        return RateLimitedError(
            f"The {budget.owner}'s limit of {budget.limit} {what[budget.scope]} is reached.",
            retry_after_s=wait,
            scope=budget.scope,
            state=self.state_of(gate.parts, now),
        )

    # For permits

    def state_of(self, parts: Iterable[tuple[Budget, int]], now: float | None = None) -> LimitState:
        """The tightest of key and project, for headers."""
        moment = self._clock.monotonic() if now is None else now
        tightest: dict[str, LimitWindow] = {}
        for budget, _ in parts:
            if isinstance(budget, Flow):
                window = budget.window(moment)
                known = tightest.get(budget.scope)
                if known is None or window.remaining < known.remaining:
                    tightest[budget.scope] = window
        return LimitState(requests=tightest.get("requests"), tokens=tightest.get("tokens"))

    def touch(self, budget: Budget) -> None:
        """A budget changed by the end of a request."""
        if not budget.active:
            self._activate(budget)

    def _activate(self, budget: Budget) -> None:
        budget.active = True
        self._active[budget.name] = budget
        if isinstance(budget, Stock) and budget.settled is None:
            self._read.set()

    # Exchanging

    async def _exchange_for_ever(self) -> None:
        while True:
            pause = self._terms.exchange_s if self._active else PROBE_S
            if self._alone:
                pause = self._terms.retry_s * self._rng.uniform(0.5, 1.0)
                await asyncio.sleep(pause)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
            self._wake.clear()
            await self.exchange()
            if self._waiting:
                await asyncio.sleep(AGAIN_S)
                self._wake.set()

    async def exchange(self) -> None:
        """One exchange: for those who wait, and, when it is time, for every budget in use."""
        # Nothing is told to a store that may not be there: ask for its name first.
        if (self._alone or not self._generation) and not await self._join():
            return
        sent = self._clock.monotonic()
        due = self._due(sent)
        asks = [budget.plan(sent, *needs) for budget, needs in due]
        if not asks and sent - self._sent_at < PROBE_S:
            return
        try:
            answer = await self._store.exchange(self._generation, asks)
        except SlicesUnavailableError as error:
            self._lose(due, error)
            return
        self._sent_at = sent
        self._processes = max(answer.processes, self._processes_min)
        if answer.answers is None:
            self._lose(due)
            if await self._join():
                self._wake.set()
            return
        for (budget, _), ask, one in zip(due, asks, answer.answers, strict=True):
            _apply(budget, ask, one, sent)
            if budget.resting and sent - budget.asked_at > PROBE_S:
                budget.active = False
                self._active.pop(budget.name, None)
        self._serve(sent)
        self._gates.sweep(sent)

    async def _join(self) -> bool:
        """Learn the store's generation; to one that has forgotten everything, everything known will be told."""
        try:
            answer = await self._store.exchange("", [])
        except SlicesUnavailableError as error:
            self._lose([], error)
            return False
        if self._alone:
            self._alone = False
            log.info("limits_shared", processes=answer.processes)
        self._sent_at = self._clock.monotonic()
        self._processes = max(answer.processes, self._processes_min)
        if answer.generation != self._generation:
            if self._generation:
                log.warning("limits_store_forgot", budgets=len(self._gates.budgets()))
            self._generation = answer.generation
            for budget in self._gates.budgets():
                self._activate(budget)
                if isinstance(budget, Flow):
                    budget.joining = True
        self._ticked_at = -math.inf
        return True

    def _due(self, now: float) -> list[_Due]:
        """Budgets to ask for, with the least and all that waiting requests need of them."""
        needs: dict[str, tuple[int, int]] = {}
        for waiter in self._waiting:
            if waiter.answer.done():
                continue
            for budget, kind in waiter.gate.parts:
                cost = _cost(budget, kind, waiter.tokens, waiter.nano)
                least, total = needs.get(budget.name, (cost, 0))
                needs[budget.name] = (least, min(total + cost, max(budget.limit, cost)))
                self.touch(budget)
        names = dict.fromkeys(needs)
        if now - self._ticked_at >= self._terms.exchange_s * 0.9:
            self._ticked_at = now
            for name in list(itertools.islice(self._active, BUDGETS_PER_TICK_MAX)):
                names[name] = None
                # Who has had a turn goes to the end.
                self._active[name] = self._active.pop(name)
        budgets = (self._active[name] for name in names)
        return [
            (budget, needs.get(budget.name, (0, 0)))
            for budget in budgets
            if not isinstance(budget, Stock) or budget.settled is not None
        ]

    def _serve(self, sent: float) -> None:
        """Decide about those who waited when the exchange was sent; the others wait for the next."""
        now = self._clock.monotonic()
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if waiter.answer.done():
                continue
            permit = self._take(waiter.gate, waiter.tokens, waiter.nano)
            if permit is not None:
                waiter.answer.set_result(permit)
                continue
            if waiter.arrived <= sent:
                waiter.asked = True
                try:
                    self._refuse(waiter.gate, waiter.tokens, waiter.nano, now)
                except RateLimitedError as error:
                    waiter.answer.set_exception(error)
                    continue
            self._waiting.append(waiter)

    def _lose(self, due: list[_Due], error: SlicesUnavailableError | None = None) -> None:
        """What was sent may not have happened. With an error the store is away: from now on alone."""
        for budget, _ in due:
            if isinstance(budget, Flow):
                budget.lose()
        if error is None:
            return
        if not self._alone:
            self._alone = True
            self._epoch += 1
            log.warning("limits_alone", error=str(error), processes=self._processes)
        now = self._clock.monotonic()
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if waiter.answer.done():
                continue
            try:
                waiter.answer.set_result(self._take_alone(waiter.gate, waiter.tokens, waiter.nano, now))
            except (RateLimitedError, LimitsUnknownError) as refusal:
                waiter.answer.set_exception(refusal)

    # The books

    async def _read_for_ever(self) -> None:
        while True:
            await self.read_books()
            self._read.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._terms.books_s):
                    await self._read.wait()

    async def read_books(self) -> None:
        """Read what the spend budgets in use have used up for good."""
        stocks = [b for b in self._active.values() if isinstance(b, Stock) and b.name in self._gates.spends]
        if not stocks:
            return
        for stock in stocks:
            stock.begin_reading()
        try:
            answers = await self._books.spent([self._gates.spends[stock.name] for stock in stocks])
        except SpendUnavailableError as error:
            log.warning("spend_not_read", error=str(error), count=len(stocks))
            return
        for stock, settled in zip(stocks, answers, strict=True):
            stock.end_reading(settled)
        if self._waiting:
            self._wake.set()


def _cost(budget: Budget, kind: int, tokens: int, nano: int) -> int:
    """What a request takes of a budget: more than a whole limit counts as the whole."""
    if kind == TOKENS:
        return min(tokens, budget.limit)
    return nano if kind == SPEND else 1


def _apply(budget: Budget, ask: Ask, answer: Answer, sent: float) -> None:
    if isinstance(budget, Flow):
        assert isinstance(ask, FlowAsk), "a flow asks as one"
        assert isinstance(answer, FlowAnswer), "and is answered as one"
        budget.apply(ask, answer, sent)
    else:
        assert isinstance(ask, StockAsk), "a stock asks as one"
        assert isinstance(answer, StockAnswer), "and is answered as one"
        budget.apply(ask, answer, sent)


_NANO_DIGITS: Final = 9


def _ton(nano: int) -> str:
    text = f"{nano:0{_NANO_DIGITS + 1}d}"
    return f"{text[:-_NANO_DIGITS]}.{text[-_NANO_DIGITS:]}".rstrip("0").rstrip(".")


def _until_s(budget: Budget, gate: Gate, now: dt.datetime) -> float:
    """When a stock that is used up may have room again, at the latest."""
    if budget.scope == "concurrency":
        return CONCURRENCY_RETRY_S
    end = gate.day_ends if budget.scope == "spend_day" else gate.month_ends
    return max((end - now).total_seconds(), CONCURRENCY_RETRY_S)
