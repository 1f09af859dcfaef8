"""Who could take a request: enrolled workers that still report, and the operator's upstreams.

A snapshot in memory, fed by the enrolment listener and the heartbeat bus, read by routing on every request. It knows
no store, no socket and no policy of choice. Whatever feeds and reads it runs on one event loop.
"""

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence

from cocoon.clock import Clock
from cocoon.endpoints import ENDPOINTS, Endpoint, EndpointName
from cocoon.enrolment import HEARTBEAT_SECONDS, HEARTBEATS_MISSED_MAX, Heartbeat
from workers.covers import Cover, endless_cover
from workers.enrolments import admit, upstream
from workers.load import TargetLoad
from workers.targets import EvidenceLevel, Requirement, Target, Upstream, Worker, upstream_id_of, worker_id_of

__all__ = [
    "LIVE_S",
    "EvidenceLevel",
    "Member",
    "Registry",
    "Requirement",
    "Target",
    "Upstream",
    "Worker",
    "admit",
    "upstream",
    "upstream_id_of",
    "worker_id_of",
]

LIVE_S = HEARTBEAT_SECONDS * HEARTBEATS_MISSED_MAX
"""A worker is live for this long after its last heartbeat."""
EARLY_HEARTBEATS_MAX = 4096
"""Heartbeats kept for workers whose enrolment has not arrived here yet."""


class Member:
    """One target in the registry, with what this process knows about its state."""

    __slots__ = ("cover", "expires_at", "former", "load", "reports", "seen_at", "suspended", "target", "target_id")

    def __init__(self, target: Target, *, expires_at: float, reports: bool) -> None:
        self.target = target
        self.target_id = target.target_id
        self.load = TargetLoad(target.capacity)
        self.reports = reports
        """Whether it sends heartbeats; an upstream does not, and only fails passively."""
        self.expires_at = expires_at
        self.former: tuple[bytes, float] | None = None
        """The keyset before this one, which its agent honours until then: clients may have sealed for it."""
        self.seen_at = -math.inf if reports else math.inf
        self.suspended = False
        """Whether it is kept out of rotation: for what it claimed (`Registry.set_standing`), a slash, a quarantine."""
        self.cover: Cover | None = None if reports else endless_cover(self.target_id)
        """What stands behind it; None where no stake does (`Registry.set_covers`)."""

    def keyset_among(self, digests: frozenset[bytes], now: float) -> bytes | None:
        """Which of these keysets is a worker's, its present one first; never an upstream's."""
        if not isinstance(self.target, Worker):
            return None
        if self.target.keyset_digest in digests:
            return self.target.keyset_digest
        if self.former is not None and self.former[0] in digests and now < self.former[1]:
            return self.former[0]
        return None


class Registry:
    """Targets by model. Times are the clock's monotonic seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._workers: dict[uuid.UUID, Member] = {}
        self._upstreams: dict[uuid.UUID, Member] = {}
        self._by_model: dict[str, tuple[Member, ...]] = {}
        self._by_endpoint: tuple[dict[str, tuple[Member, ...]], ...] = tuple({} for _ in ENDPOINTS)
        self._asked: frozenset[str] = frozenset()
        self._early: dict[uuid.UUID, tuple[float, Heartbeat]] = {}
        self._held_at: float | None = None
        self._offences: Mapping[uuid.UUID, float] = {}
        self._suspended: frozenset[uuid.UUID] = frozenset()
        self._covers: Mapping[bytes, Cover] = {}

    # Feeding

    def replace_enrolments(self, workers: Iterable[Worker]) -> None:
        """Make the enrolled workers exactly these. Requests in flight and heartbeats of those that stay are kept."""
        before = self._workers
        self._workers = {}
        for worker in workers:
            self._place(worker, before.get(worker.worker_id))
        self._index()

    def put_enrolment(self, worker: Worker) -> None:
        """Add or renew one worker without waiting for the listener."""
        self._place(worker, self._workers.get(worker.worker_id))
        self._index()

    def set_upstreams(self, upstreams: Iterable[Upstream]) -> None:
        """Make the upstreams exactly these."""
        members: dict[uuid.UUID, Member] = {}
        for target in upstreams:
            member = self._upstreams.get(target.upstream_id)
            if member is None:
                member = Member(target, expires_at=math.inf, reports=False)
            member.target = target
            member.load.set_capacity(target.capacity)
            members[target.upstream_id] = member
        self._upstreams = members
        self._index()

    def note_heartbeat(self, worker_id: uuid.UUID, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat that was sent at monotonic `now`; one that is older than the last changes nothing."""
        member = self._workers.get(worker_id)
        if member is None:
            self._keep_early(worker_id, heartbeat, now)
        elif now >= member.seen_at:
            member.seen_at = now
            member.load.report(heartbeat)

    def set_standing(self, offences: Mapping[uuid.UUID, float], suspended: frozenset[uuid.UUID]) -> None:
        """What is held against workers, as decayed counts, and who gets no requests at all.

        Both stay with a worker's id over new enrolments, until they are set again.
        """
        self._offences, self._suspended = offences, suspended
        for member in self._workers.values():
            self._judge(member)

    def set_covers(self, covers: Mapping[bytes, Cover]) -> None:
        """The stakes that were seen, by account. They too stay over new enrolments, until they are set again."""
        self._covers = covers
        for member in self._workers.values():
            self._judge(member)

    def hold_liveness(self, held: bool) -> None:  # noqa: FBT001  the name says what True means
        """While held, whoever was live stays so: no heartbeat can arrive, and silence means nothing.

        Whoever stays silent after the end of the hold is gone `LIVE_S` later.
        """
        now = self._clock.monotonic()
        if held:
            if self._held_at is None:
                self._held_at = now
        elif self._held_at is not None:
            for member in self._workers.values():
                if self._live(member, now):
                    member.seen_at = max(member.seen_at, now)
            self._held_at = None

    # Reading

    def knows(self, model: str, endpoint: Endpoint | None = None) -> bool:
        """Whether anybody serves this model, live or not, at this endpoint or (None) at any."""
        return model in self._members_of(endpoint)

    def endpoints(self, model: str) -> tuple[EndpointName, ...]:
        """Where the model is served, by anybody, live or not."""
        return tuple(endpoint.name for endpoint in ENDPOINTS if model in self._by_endpoint[endpoint.index])

    def has_asks(self, model: str) -> bool:
        """Whether anybody asks for something else than the network's price for this model."""
        return model in self._asked

    def targets_for(self, model: str) -> list[Target]:
        """The live targets of a model."""
        return [member.target for member in self.live_members(model, self._clock.monotonic())]

    def live_members(self, model: str, now: float, endpoint: Endpoint | None = None) -> list[Member]:
        """The members that serve a model at an endpoint (None: at any), report, and do not drain."""
        since = self._live_since(now)
        return [
            member
            for member in self._members_of(endpoint).get(model, ())
            if member.seen_at >= since and member.expires_at > now and not member.load.draining and not member.suspended
        ]

    def models(self) -> dict[str, int]:
        """Live targets by model; a model that nobody serves at the moment counts 0."""
        now = self._clock.monotonic()
        return {model: len(self.live_members(model, now)) for model in self._by_model}

    def tee_types(self, model: str) -> dict[str, int]:
        """Live targets of a model by what protects them; an upstream counts as `none`."""
        counts: dict[str, int] = {}
        for target in self.targets_for(model):
            kind = target.tee_type if isinstance(target, Worker) else "none"
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def manifests(self, model: str) -> dict[str, int]:
        """Live targets of a model by the manifest (hexadecimal) that they serve it from; without those without one."""
        counts: dict[str, int] = {}
        for target in self.targets_for(model):
            if target.manifest_sha256:
                name = target.manifest_sha256.hex()
                counts[name] = counts.get(name, 0) + 1
        return counts

    def context_tokens(self, model: str) -> int | None:
        """What one request may use: the smallest context among live targets (else all), None when unknown."""
        members = self.live_members(model, self._clock.monotonic()) or self._by_model.get(model, ())
        sizes = [
            served.context_tokens
            for member in members
            for served in member.target.served_models()
            if served.id == model
        ]
        return min(sizes, default=None)

    def members(self) -> Sequence[Member]:
        """Every enrolled worker and upstream, live or not."""
        return [*self._workers.values(), *self._upstreams.values()]

    @property
    def held(self) -> bool:
        """Whether liveness is held, because heartbeats cannot arrive."""
        return self._held_at is not None

    def covered(self) -> int:
        """Live workers with a stake that has room."""
        now = self._clock.monotonic()
        return sum(
            self._live(member, now) and member.cover is not None and member.cover.room_nano(now) > 0
            for member in self._workers.values()
        )

    def worker_ids(self) -> list[uuid.UUID]:
        """Every enrolled worker."""
        return list(self._workers)

    def workers(self) -> list[Worker]:
        """Every enrolled worker, live or not."""
        return [member.target for member in self._workers.values() if isinstance(member.target, Worker)]

    def worker(self, worker_id: uuid.UUID) -> Worker | None:
        """An enrolled worker, live or not."""
        member = self._workers.get(worker_id)
        return member.target if member is not None and isinstance(member.target, Worker) else None

    def is_live(self, member: Member) -> bool:
        """Whether the member reports and its keyset is valid; it may be draining."""
        return self._live(member, self._clock.monotonic())

    def _members_of(self, endpoint: Endpoint | None) -> dict[str, tuple[Member, ...]]:
        return self._by_model if endpoint is None else self._by_endpoint[endpoint.index]

    def _live_since(self, now: float) -> float:
        return (now if self._held_at is None else self._held_at) - LIVE_S

    def _live(self, member: Member, now: float) -> bool:
        return member.seen_at >= self._live_since(now) and member.expires_at > now

    def _place(self, worker: Worker, known: Member | None) -> None:
        # The end of the keyset or of what was shown for it, on the clock that routing reads.
        now = self._clock.monotonic()
        ends = min(worker.not_after, worker.attested_until or worker.not_after)
        expires_at = now + ends - self._clock.now().timestamp()
        if known is None:
            known = Member(worker, expires_at=expires_at, reports=True)
        else:
            assert isinstance(known.target, Worker), "workers keep their ids"
            if known.target.boot_id != worker.boot_id:
                known.load.restarted(now)
                known.former = None
            elif known.target.keyset_digest != worker.keyset_digest:
                known.former = (known.target.keyset_digest, known.expires_at)
            known.target = worker
            known.expires_at = expires_at
            known.load.set_capacity(worker.capacity)
        self._workers[worker.worker_id] = known
        self._judge(known)
        early = self._early.pop(worker.worker_id, None)
        if early is not None:
            self.note_heartbeat(worker.worker_id, early[1], early[0])

    def _judge(self, member: Member) -> None:
        worker = member.target
        assert isinstance(worker, Worker), "upstreams are the operator's own"
        member.load.offences = self._offences.get(worker.worker_id, 0.0)
        cover = self._covers.get(worker.stake)
        covered = cover is not None and cover.units > 0 and cover.worker_id == worker.worker_id
        member.cover = cover if covered else None
        slashed = cover is not None and cover.slashed
        member.suspended = worker.quarantined or slashed or worker.worker_id in self._suspended

    def _index(self) -> None:
        self._by_model = self._index_of(None)
        self._by_endpoint = tuple(self._index_of(endpoint) for endpoint in ENDPOINTS)
        targets = [member.target for member in self._workers.values()]
        self._asked = frozenset(ask.model for target in targets if isinstance(target, Worker) for ask in target.asks)

    def _index_of(self, endpoint: Endpoint | None) -> dict[str, tuple[Member, ...]]:
        lists: dict[str, list[Member]] = {}
        for member in self.members():
            for served in member.target.served_models():
                if endpoint is None or endpoint.name in served.endpoints:
                    lists.setdefault(served.id, []).append(member)
        return {model: tuple(members) for model, members in lists.items()}

    def _keep_early(self, worker_id: uuid.UUID, heartbeat: Heartbeat, now: float) -> None:
        if len(self._early) >= EARLY_HEARTBEATS_MAX and worker_id not in self._early:
            oldest = next(iter(self._early))
            del self._early[oldest]
        self._early[worker_id] = (now, heartbeat)
