"""`Idempotency-Key`: the same request again gets the first one's answer, without a second charge (PROTOCOL §7).

A request that carries the header claims its key before it runs and ends the claim when its money has moved for good. A
duplicate waits for that end, here or at another process, and is answered from it:

=============================  =============================================================
the first request              the next one with the same key and body
=============================  =============================================================
was completed                  gets the same bytes again, for `KEEP_S`
was completed, too long        409 `already_completed` with the receipt's id
was left half way and charged  409 `charged` with the receipt's id
cost nothing                   runs
still runs                     waits up to `WAIT_S_MAX`, then 409 `idempotency_in_flight`
died with its process          runs once the claim is not renewed any more (`CLAIM_S`)
=============================  =============================================================

The last one moves no money twice: who takes a key over has the dead request's job written off first, so that neither
its journal nor its worker's receipt can charge it later (`billing.postgres.write_off`); if it was charged before that,
there is nothing to take over. Nothing here knows HTTP or which endpoint was asked: whatever walks through the pipeline
has it.
"""

import asyncio
import contextlib
import enum
import re
import uuid
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import msgspec
import structlog

from billing.lane import Lane
from billing.ports import BillingError, Outcome, Posted, Settlement
from cocoon.clock import Clock
from cocoon.errors import MalformedError
from gateway import outcomes
from gateway.auth import secret_of
from gateway.client import Client, ClientGoneError, require_present
from gateway.errors import GatewayError, InvalidRequestError, OverloadedError
from gateway.exchange import Event
from gateway.outcomes import OutcomeRoom, Turn
from gateway.walk import Call, Walk

KEEP_S = 24 * 3600.0
CLAIM_S = 60.0
"""How long the claim of a process that died blocks its key, by the database's clock."""
RENEW_S = CLAIM_S / 4
WAIT_S_MAX = 30.0
POLL_S_FIRST = 0.025
POLL_S_MAX = 1.0
WAITERS_MAX = 128
"""Duplicates that wait at once per process: each asks the store once a second. More are told to come back."""
REPLAY_S_MAX = 60.0
"""How long a client may take to read an answer that is sent again."""
ROOM_BYTES_MAX = 64 * 1024 * 1024
"""Outcomes in memory per process; an answer that finds no room is charged and not kept."""
ENDS_MAX = 10_000
ENDS_BATCH_MAX = 16
FORGET_ENDS_MAX = ENDS_MAX // 2
RESEND_S_FIRST = 0.05
RESEND_S_MAX = 1.0
RENEW_AGAIN_S = 1.0
RENEW_BATCH_MAX = 500
SWEEP_MAX = 500
SWEEPS_MAX = 20
"""Sweeps in a row, of so many rows each; every process sweeps as often as it renews."""
CLOSE_S_MAX = 1.0
KEY_BYTES_MAX = 255
_KEY_FORM = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,%d}[\x21-\x7e])?" % (KEY_BYTES_MAX - 2))

log = structlog.get_logger()


class IdempotencyConflictError(GatewayError):
    """This Idempotency-Key was used before with a different request."""

    code: ClassVar[str] = "idempotency_conflict"


class InFlightError(GatewayError):
    """The first request with this Idempotency-Key is still running."""

    code: ClassVar[str] = "idempotency_in_flight"
    transient: ClassVar[bool] = True
    retry_after_s: ClassVar[float] = POLL_S_MAX


class NotReplayableError(GatewayError):
    """The first request with this Idempotency-Key was charged and cannot be answered again."""

    def __init__(self, job_id: uuid.UUID) -> None:
        super().__init__(f"{(self.__doc__ or '').strip()} The receipt id is {job_id}.")
        self.job_id = job_id


class AlreadyCompletedError(NotReplayableError):
    """The first request with this Idempotency-Key was completed and charged, and its answer is not kept."""

    code: ClassVar[str] = "already_completed"


class ChargedError(NotReplayableError):
    """The first request with this Idempotency-Key was charged, but its client left before the answer was whole."""

    code: ClassVar[str] = "charged"


class Standing(enum.StrEnum):
    """What became of the request that has a key."""

    RUNNING = "running"
    KEPT = "kept"
    COMPLETED = "completed"
    CHARGED = "charged"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Whose request has a key; `outcome` (sealed) when its standing is KEPT and its body was ours."""

    job_id: uuid.UUID
    body_tag: bytes
    standing: Standing
    outcome: bytes | None = None


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a claim: what is remembered for `keep_s`, or nothing (`standing` None) when nothing was charged."""

    turn: Turn
    standing: Standing | None
    outcome: bytes | None = None
    keep_s: float = KEEP_S


class ClaimStore(Protocol):
    """Durable claims, shared by all replicas; time is the store's.

    Every method raises `BillingError`, transient when the store is away, and may be repeated.
    """

    async def claim(self, turn: Turn, claim_s: float) -> Claim:
        """Take the key for `claim_s` and return our own claim, or return whose it is.

        A claim past its time is taken over: at once when it has ended, and when it still ran, once its job is written
        off; if that job had been charged, the claim has ended as COMPLETED or CHARGED.
        """
        ...

    async def renew(self, turns: Sequence[Turn], claim_s: float) -> None:
        """Let running claims end no sooner than in `claim_s`; those that somebody took over are his."""
        ...

    async def end(self, ends: Sequence[Ended]) -> None:
        """End claims; those that somebody took over are his."""
        ...

    async def sweep(self, limit: int) -> int:
        """Delete up to `limit` claims past their time; returns how many."""
        ...


class Idempotency:
    """Claims keys for requests and ends the claims; an async context manager that owns its tasks."""

    def __init__(self, store: ClaimStore, clock: Clock, room: OutcomeRoom | None = None) -> None:
        self._store = store
        self._clock = clock
        self.room = room or OutcomeRoom(ROOM_BYTES_MAX)
        self._running: dict[uuid.UUID, Turn] = {}
        self._waiters = 0
        self._ends: Lane[Ended, None] = Lane("claims", self._write, batch_max=ENDS_BATCH_MAX, queue_max=ENDS_MAX)
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._tasks = [
            self._group.create_task(self._ends.serve(), name="claims end"),
            self._group.create_task(self._keep_house(), name="claims renew"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        # What is not written in time expires, and is then decided by the books.
        self._ends.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(self._tasks[:1], timeout=CLOSE_S_MAX)
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    @property
    def running(self) -> int:
        """Claims of this process that have not ended."""
        return len(self._running)

    async def replayed(self, walk: Walk, call: Call, client: Client) -> bool:
        """Answer from the first request with this key (True), or leave the walk the turn to run under it (False).

        Raises:
            InvalidRequestError: the key is empty, too long or not printable ASCII.
            IdempotencyConflictError: it stands for another request.
            InFlightError: the first request has not ended in `WAIT_S_MAX`.
            AlreadyCompletedError, ChargedError: it was charged and cannot be sent again.
            LedgerUnavailableError: the store is away.
        """
        turn = self._turn(walk, call)
        claim = await self._claimed(turn, client)
        if claim.job_id == turn.job_id:
            walk.turn = self._running[turn.job_id] = turn
            client.record(turn.recording)
            return False
        sealed = claim.outcome or b""
        if not self.room.take(len(sealed)):
            raise OverloadedError
        try:
            # A sealed request runs under the id in its header, which is the same for the same body.
            job_id = claim.job_id if walk.sealed is None else uuid.UUID(bytes=walk.sealed.header.job_id)
            outcome = _opened(turn, claim, job_id)
            walk.exchange.note(Event.REPLAY)
            await _replay(outcome, job_id, client)
        finally:
            self.room.give_back(len(sealed))
        return True

    def settled(self, turn: Turn, settlement: Settlement, posted: Posted | None) -> None:
        """The request's money has moved; or, with None, nobody knows, and the claim is left to expire."""
        if posted is None:
            self._leave(turn)
            return
        match settlement.outcome:
            case Outcome.COMPLETED:
                outcome = turn.recording.outcome
                sealed = None if outcome is None else turn.seal(outcome)
                self._end(
                    Ended(turn=turn, standing=Standing.COMPLETED if sealed is None else Standing.KEPT, outcome=sealed)
                )
            case Outcome.CLIENT_GONE if settlement.numerator:
                self._end(Ended(turn=turn, standing=Standing.CHARGED))
            case _:
                self.forget(turn)

    def forget(self, turn: Turn) -> None:
        """Nothing was charged: a retry may run."""
        self._end(Ended(turn=turn, standing=None))

    # Claims

    def _turn(self, walk: Walk, call: Call) -> Turn:
        assert walk.principal is not None, "authenticated before"
        assert call.authorization is not None, "authenticated before"
        assert walk.request is not None, "read before"
        key = call.idempotency_key
        if key is None or _KEY_FORM.fullmatch(key) is None:
            raise InvalidRequestError(
                f"Idempotency-Key must be 1 to {KEY_BYTES_MAX} printable ASCII characters.",
                code="invalid_idempotency_key",
            )
        return Turn(
            secret_of(call.authorization), key, call.path, walk.body, job_id=walk.job_id,
            customer_id=walk.principal.customer_id, key_id=walk.principal.key_id, model=walk.request.model,
            room=self.room,
        )  # fmt: skip

    async def _claimed(self, turn: Turn, client: Client) -> Claim:
        """Our own claim, or that of a request which has ended."""
        claim = await self._ask(turn)
        if claim.standing is not Standing.RUNNING or claim.job_id == turn.job_id:
            return claim
        if self._waiters >= WAITERS_MAX:
            raise InFlightError
        self._waiters += 1
        try:
            deadline = self._clock.monotonic() + WAIT_S_MAX
            pause_s = POLL_S_FIRST
            while self._clock.monotonic() + pause_s <= deadline:
                await asyncio.sleep(pause_s)
                require_present(client)
                pause_s = min(2 * pause_s, POLL_S_MAX)
                claim = await self._ask(turn)
                if claim.standing is not Standing.RUNNING or claim.job_id == turn.job_id:
                    return claim
            raise InFlightError
        finally:
            self._waiters -= 1

    async def _ask(self, turn: Turn) -> Claim:
        try:
            claim = await self._store.claim(turn, CLAIM_S)
        except BaseException:
            # It may have been granted all the same, and then it would block the key for nobody.
            if len(self._ends) < FORGET_ENDS_MAX:
                self.forget(turn)
            raise
        if claim.body_tag != turn.body_tag:
            raise IdempotencyConflictError
        return claim

    # Ends

    def _end(self, ended: Ended) -> None:
        answer = self._ends.submit(ended)
        if answer is None:
            log.warning("claim_left_to_expire", job_id=str(ended.turn.job_id))
            self._leave(ended.turn)
            return
        answer.add_done_callback(lambda done: self._written(ended.turn, done))

    def _written(self, turn: Turn, done: "asyncio.Future[None]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            log.warning("claim_left_to_expire", job_id=str(turn.job_id), error=type(error).__name__)
        self._leave(turn)

    def _leave(self, turn: Turn) -> None:
        self._running.pop(turn.job_id, None)
        turn.recording.close()

    async def _write(self, ends: Sequence[Ended]) -> list[BillingError | None]:
        delay_s = RESEND_S_FIRST
        while True:
            try:
                await self._store.end(ends)
                return [None] * len(ends)
            except BillingError as error:
                if not error.transient:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RESEND_S_MAX)

    async def _sweep(self) -> None:
        for _ in range(SWEEPS_MAX):
            if await self._store.sweep(SWEEP_MAX) < SWEEP_MAX:
                return

    async def _keep_house(self) -> None:
        while True:
            pause_s = RENEW_S
            try:
                turns = list(self._running.values())
                for first in range(0, len(turns), RENEW_BATCH_MAX):
                    await self._store.renew(turns[first : first + RENEW_BATCH_MAX], CLAIM_S)
                await self._sweep()
            except BillingError as error:
                if self._running:
                    log.warning("claims_not_renewed", count=len(self._running), error=error.code)
                pause_s = RENEW_AGAIN_S
            await asyncio.sleep(pause_s)


def _opened(turn: Turn, claim: Claim, job_id: uuid.UUID) -> outcomes.Outcome:
    """What to send again; raises what to say instead."""
    if claim.standing is Standing.CHARGED:
        raise ChargedError(job_id)
    if claim.outcome is None:
        raise AlreadyCompletedError(job_id)
    try:
        return turn.open(claim.outcome, claim.job_id)
    except MalformedError as error:
        log.error("outcome_did_not_open", job_id=str(job_id))
        raise AlreadyCompletedError(job_id) from error


async def _replay(outcome: outcomes.Outcome, job_id: uuid.UUID, client: Client) -> None:
    client.always([(b"x-cocoon-replayed", str(job_id).encode())])
    headers = list(outcome.headers)
    try:
        async with asyncio.timeout(REPLAY_S_MAX):
            if outcome.stream:
                await client.begin_stream(headers)
                await client.finish(outcome.body)
            else:
                await client.answer(headers, outcome.body)
    except TimeoutError:
        raise ClientGoneError from None
