"""What a key's requests must pass, and the permits of those that did.

A gate is a principal's budgets on one UTC day; key and project share nothing but the request. Keys of one project share
its budgets, so a budget lives as long as a gate leads to it or something is out.
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from gateway.auth import Principal, Project
from gateway.budgets import Budget, Flow, Stock
from gateway.limits import LimitState, Owner, Scope
from gateway.slices import SpendAsk

ONE: Final = 0
TOKENS: Final = 1
SPEND: Final = 2
"""What a request costs of a budget: one, its tokens, or its nano."""
GATES_MAX = 100_000
"""Keys remembered; those unused for longest are forgotten first."""
SWEEP_S = 60.0
UNUSED_S = 600.0
_DAY_MS: Final = 86_400_000
_EPOCH: Final = dt.date(1970, 1, 1)

Parts = tuple[tuple[Budget, int], ...]


class Gate:
    """The budgets of one key's requests on one day. Times of days are Unix milliseconds, as in job ids."""

    __slots__ = ("begins_ms", "day_ends", "ends_ms", "month_ends", "opened_at", "parts", "principal")

    def __init__(self, principal: Principal, day: dt.date, parts: Parts, now: float) -> None:
        self.principal = principal
        self.parts = parts
        self.opened_at = now
        self.begins_ms = (day - _EPOCH).days * _DAY_MS
        self.ends_ms = self.begins_ms + _DAY_MS
        self.day_ends = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), dt.UTC)
        self.month_ends = dt.datetime.combine(next_month(day), dt.time(), dt.UTC)


class Permits(Protocol):
    """What a permit needs of the limiter."""

    def touch(self, budget: Budget) -> None:
        """A budget changed."""
        ...

    def state_of(self, parts: Iterable[tuple[Budget, int]], now: float | None = None) -> LimitState:
        """The limits now."""
        ...


class SlicedPermit:
    """See `gateway.limits.Permit`."""

    __slots__ = ("_costs", "_parts", "_permits", "_state", "_unbooked")

    def __init__(self, permits: Permits | None, parts: Parts, costs: Sequence[int]) -> None:
        self._permits = permits
        self._parts = parts
        self._costs: Sequence[int] | None = costs
        self._state: LimitState | None = None
        self._unbooked = 0

    @property
    def state(self) -> LimitState:
        """See `gateway.limits.Permit.state`."""
        if self._permits is None:
            return _NO_LIMITS
        if self._state is None:
            self._state = self._permits.state_of(self._parts)
        return self._state

    def release(self, tokens_used: int, charge_nano: int = 0) -> None:
        """See `gateway.limits.Permit.release`."""
        costs, self._costs = self._costs, None
        if costs is None or self._permits is None:
            return
        self._unbooked = charge_nano
        for (budget, kind), cost in zip(self._parts, costs):  # noqa: B905  made together, and this is the hot path
            if isinstance(budget, Stock):
                # What will be charged stays in use until the books say so.
                budget.give(cost if kind == ONE else cost - charge_nano)
            elif kind == TOKENS:
                budget.spare -= tokens_used - cost
            if not budget.active:
                self._permits.touch(budget)

    def settled(self) -> None:
        """See `gateway.limits.Permit.settled`."""
        unbooked, self._unbooked = self._unbooked, 0
        if not unbooked or self._permits is None:
            return
        for budget, kind in self._parts:
            if kind == SPEND and isinstance(budget, Stock):
                budget.book(unbooked)
                self._permits.touch(budget)


_NO_LIMITS: Final = LimitState()
NOTHING_LIMITED: Final = SlicedPermit(None, (), ())
"""The permit of keys without limits."""


class GateTable:
    """Gates by key, and the budgets behind them by name."""

    def __init__(self, permit_ttl_s: float, spend_ttl_s: float) -> None:
        self._permit_ttl_s = permit_ttl_s
        self._spend_ttl_s = spend_ttl_s
        self._gates: dict[uuid.UUID, Gate] = {}
        self._budgets: dict[str, Budget] = {}
        self._swept_at = 0.0
        self.spends: dict[str, SpendAsk] = {}
        self.find = self._gates.get

    def budgets(self) -> list[Budget]:
        """Every budget known."""
        return list(self._budgets.values())

    def open(self, principal: Principal, day: dt.date, now: float) -> Gate:
        """The gate of a principal on a day, with the limits that it has now."""
        parts: list[tuple[Budget, int]] = []
        self._add(parts, "key", principal.key_id, principal, principal.customer_id, day, now)
        if principal.project is not None:
            project = principal.project
            self._add(parts, "project", project.project_id, project, principal.customer_id, day, now)
        gate = Gate(principal, day, tuple(parts), now)
        self._close(self._gates.pop(principal.key_id, None))
        for budget, _ in gate.parts:
            budget.gates += 1
        self._gates[principal.key_id] = gate
        if len(self._gates) > GATES_MAX:
            self._close(self._gates.pop(next(iter(self._gates))))
        return gate

    def sweep(self, now: float) -> None:
        """Forget what nobody uses; cheap when it is not time yet."""
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        for key_id, gate in list(self._gates.items()):
            if now - gate.opened_at > UNUSED_S and all(not b.active for b, _ in gate.parts):
                self._close(self._gates.pop(key_id))
        for name, budget in list(self._budgets.items()):
            if not budget.gates and not budget.active and budget.resting:
                del self._budgets[name]
                self.spends.pop(name, None)

    def _close(self, gate: Gate | None) -> None:
        if gate is not None:
            for budget, _ in gate.parts:
                budget.gates -= 1

    def _add(
        self, parts: list[tuple[Budget, int]], owner: Owner, owner_id: uuid.UUID, limits: Principal | Project,
        customer_id: uuid.UUID, day: dt.date, now: float,
    ) -> None:  # fmt: skip
        if limits.requests_per_min is not None:
            name = f"{owner_id}:requests"
            parts.append((self._flow(name, owner, "requests", limits.requests_per_min, now), ONE))
        if limits.tokens_per_min is not None:
            parts.append((self._flow(f"{owner_id}:tokens", owner, "tokens", limits.tokens_per_min, now), TOKENS))
        if limits.concurrency_max is not None:
            name = f"{owner_id}:concurrency"
            parts.append((self._stock(name, owner, "concurrency", limits.concurrency_max, now, None), ONE))
        if limits.spend_day_nano_max is not None:
            ask = SpendAsk(owner_id, customer_id, day, day)
            name = f"{owner_id}:day:{day}"
            parts.append((self._stock(name, owner, "spend_day", limits.spend_day_nano_max, now, ask), SPEND))
        if limits.spend_month_nano_max is not None:
            ask = SpendAsk(owner_id, customer_id, day.replace(day=1), next_month(day) - dt.timedelta(days=1))
            name = f"{owner_id}:month:{day:%Y-%m}"
            parts.append((self._stock(name, owner, "spend_month", limits.spend_month_nano_max, now, ask), SPEND))

    def _flow(self, name: str, owner: Owner, scope: Scope, limit: int, now: float) -> Flow:
        flow = self._budgets.get(name)
        if flow is None:
            flow = self._budgets[name] = Flow(name, owner, scope, limit, now)
        assert isinstance(flow, Flow), "a name is of one kind"
        flow.change_limit(limit)
        return flow

    def _stock(self, name: str, owner: Owner, scope: Scope, limit: int, now: float, ask: SpendAsk | None) -> Stock:
        stock = self._budgets.get(name)
        if stock is None:
            ttl_s, settled = (self._permit_ttl_s, 0) if ask is None else (self._spend_ttl_s, None)
            stock = self._budgets[name] = Stock(name, owner, scope, limit, now, ttl_s=ttl_s, settled=settled)
            if ask is not None:
                self.spends[name] = ask
        assert isinstance(stock, Stock), "a name is of one kind"
        stock.change_limit(limit)
        return stock


def next_month(day: dt.date) -> dt.date:
    """The first day of the month after."""
    return (day.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
