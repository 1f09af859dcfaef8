"""Decides, before any work, whether a job may run: its ticket, its uniqueness, and the room for it.

Decisions are synchronous, so nothing can happen between a check and its use.
"""

import asyncio
import contextlib
import heapq
import uuid
from collections.abc import Generator

from cocoon.clock import Clock
from cocoon.errors import MalformedError
from cocoon.sealed import ReplayedError
from cocoon.ticket import Ticket, open_ticket, plain_request_digest
from workers.agent import refusals
from workers.agent.keys import Identity, KeyRing
from workers.agent.refusals import RefusedError

REPLAY_ENTRIES_MAX = 2**20
_REPLAY_MARGIN_S = 120
"""How long a ticket is remembered past its end: a wall clock set back by less revives nothing."""


class ReplaySet:
    """The attempts seen, until their tickets have expired. Full means that nothing new is admitted."""

    def __init__(self, entries_max: int = REPLAY_ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._seen: set[tuple[uuid.UUID, int]] = set()
        self._by_end: list[tuple[int, uuid.UUID, int]] = []

    def __contains__(self, attempt: tuple[uuid.UUID, int]) -> bool:
        return attempt in self._seen

    def full(self, now_s: float) -> bool:
        """Whether there is no room, after forgetting what has expired."""
        while self._by_end and self._by_end[0][0] + _REPLAY_MARGIN_S < now_s:
            _, job_id, attempt = heapq.heappop(self._by_end)
            self._seen.discard((job_id, attempt))
        return len(self._seen) >= self._entries_max

    def add(self, ticket: Ticket) -> None:
        """Remember an attempt."""
        assert len(self._seen) < self._entries_max, "ask `full` first"
        self._seen.add((ticket.job_id, ticket.attempt))
        heapq.heappush(self._by_end, (ticket.not_after, ticket.job_id, ticket.attempt))


class Admission:
    """The gate of one agent. `running` never exceeds `capacity`."""

    def __init__(self, clock: Clock, keys: KeyRing, capacity: int, *, replay: ReplaySet | None = None) -> None:
        self._clock = clock
        self._keys = keys
        self._replay = replay if replay is not None else ReplaySet()
        self.capacity = capacity
        self.running = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def authenticate(self, header: str | None) -> tuple[Ticket, bytes, Identity]:
        """The ticket, its exact bytes, and the identity it was made for; all that can be checked without the body.

        Raises:
            RefusedError: missing, forged, expired, for another network, or already used.
        """
        identities = self._keys.enrolled()
        if not identities:
            raise RefusedError(refusals.NOT_ENROLLED)
        if header is None:
            raise RefusedError(refusals.NO_TICKET)
        for identity in identities:
            assert identity.ticket_key is not None, "only enrolled identities are offered"
            try:
                ticket, raw = open_ticket(identity.ticket_key, header)
            except MalformedError:
                continue
            self._check(ticket, identity)
            return ticket, raw, identity
        raise RefusedError(refusals.BAD_TICKET)

    def _check(self, ticket: Ticket, identity: Identity) -> None:
        if ticket.global_id != identity.global_id or ticket.stake != identity.stake:
            raise RefusedError(refusals.FOREIGN_TICKET)
        if self._clock.now().timestamp() > ticket.not_after:
            raise RefusedError(refusals.EXPIRED_TICKET)
        if (ticket.job_id, ticket.attempt) in self._replay:
            raise RefusedError(refusals.REPLAYED)

    def check_room(self) -> None:
        """Refuse what could not run anyway, before its body is uploaded.

        Raises:
            RefusedError: draining, or at capacity.
        """
        if self.draining:
            raise RefusedError(refusals.DRAINING)
        if self.running >= self.capacity:
            raise RefusedError(refusals.BUSY)

    @staticmethod
    def check_body(ticket: Ticket, body: bytes) -> None:
        """The ticket must be for exactly these bytes.

        Raises:
            RefusedError: it is not.
        """
        if plain_request_digest(body) != ticket.request_digest:
            raise RefusedError(refusals.OTHER_REQUEST)

    @contextlib.contextmanager
    def slot(self, ticket: Ticket, identity: Identity) -> Generator[None]:
        """One place among `capacity`, and the ticket spent. Checks again what may have changed during the upload.

        Raises:
            RefusedError: as `authenticate` and `check_room`, or the replay set is full.
        """
        self._check(ticket, identity)
        self.check_room()
        if self._replay.full(self._clock.now().timestamp()):
            raise RefusedError(refusals.REPLAY_FULL)
        self._replay.add(ticket)
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if self.running == 0:
                self._idle.set()

    def admit_sealed(self, identity: Identity, job_id: bytes) -> None:
        """Spend a sealed job, just before its work begins: no ticket whatever makes this worker do it again.

        Raises:
            RefusedError: it was done before, or no more can be remembered.
        """
        if identity.sealed_jobs.full:
            raise RefusedError(refusals.REPLAY_FULL)
        try:
            self._keys.admit_sealed(identity, job_id)
        except ReplayedError as error:
            raise RefusedError(refusals.SEALED_REPLAYED) from error

    async def idle(self) -> None:
        """Return when nothing is running."""
        await self._idle.wait()
