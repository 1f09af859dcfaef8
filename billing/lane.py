"""A lane: concurrent calls of one process, grouped into the batches that a store handles at the cost of one.

Whatever waits when the store becomes free is the next batch, so that a lone caller never waits for company. Callers
may vanish at any moment; money does not.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from billing.ports import BillingError, LedgerUnavailableError

Member = TypeVar("Member")
Answer = TypeVar("Answer")

log = structlog.get_logger()


class _Waiting(Generic[Member, Answer]):
    __slots__ = ("answer", "member")

    def __init__(self, member: Member, answer: "asyncio.Future[Answer]") -> None:
        self.member = member
        self.answer = answer


class Lane(Generic[Member, Answer]):
    """A bounded queue in front of `run`, which answers each member of a batch with a value or an error of its own.

    When `run` raises instead, nothing of the batch has happened; the batch is halved until the one member that causes
    it stands alone. `LedgerUnavailableError` alone is everybody's.

    With `vanished`, a member whose caller is gone is not started any more, and `vanished` hears of every answer that
    nobody received. Without it, every member is run whether or not its caller still waits.

    `linger_s` is how long a batch that is not full waits for company; 0 takes what is there.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Member]], Awaitable[Sequence[Answer | BillingError]]],
        *,
        batch_max: int,
        queue_max: int,
        vanished: Callable[[Member], None] | None = None,
        linger_s: float = 0.0,
    ) -> None:
        self._name = name
        self._run = run
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._vanished = vanished
        self._linger_s = linger_s
        self._queue: deque[_Waiting[Member, Answer]] = deque()
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    async def ask(self, member: Member) -> Answer:
        """The answer to one member.

        Raises:
            LedgerUnavailableError: the queue is full or the lane is closed.
            BillingError: whatever the member was answered with.
        """
        waiting = self._enqueue(member)
        if waiting is None:
            raise LedgerUnavailableError(f"the {self._name} queue is full or closed")
        answer = waiting.answer
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come in the very turn in which the caller was cancelled.
            if answer.done() and not answer.cancelled() and answer.exception() is None and self._vanished is not None:
                self._vanished(member)
            raise

    def leave(self, member: Member) -> bool:
        """Enqueue a member whose answer nobody waits for; False when there is no room."""
        answer = self.submit(member)
        if answer is not None:
            answer.add_done_callback(_retrieve)
        return answer is not None

    def submit(self, member: Member) -> "asyncio.Future[Answer] | None":
        """Enqueue a member and return its answer to come; None when there is no room."""
        waiting = self._enqueue(member)
        return None if waiting is None else waiting.answer

    def close(self) -> None:
        """Take no more members; `serve` returns when those in the queue are answered."""
        self._closed = True
        self._wake.set()
        self._full.set()

    async def serve(self) -> None:
        """Run batches until closed. One task of the owner."""
        try:
            while True:
                while not self._queue:
                    if self._closed:
                        return
                    self._wake.clear()
                    await self._wake.wait()
                await self._linger()
                batch = self._take()
                if batch:
                    await self._serve_batch(batch)
        finally:
            self._closed = True
            while self._queue:
                _fail(self._queue.popleft(), LedgerUnavailableError(f"the {self._name} lane was stopped"))

    def _enqueue(self, member: Member) -> _Waiting[Member, Answer] | None:
        if self._closed or len(self._queue) >= self._queue_max:
            return None
        waiting: _Waiting[Member, Answer] = _Waiting(member, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._wake.set()
        if len(self._queue) >= self._batch_max:
            self._full.set()
        return waiting

    async def _linger(self) -> None:
        if not self._linger_s or len(self._queue) >= self._batch_max or self._closed:
            return
        self._full.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                await self._full.wait()

    def _take(self) -> list[_Waiting[Member, Answer]]:
        batch: list[_Waiting[Member, Answer]] = []
        while self._queue and len(batch) < self._batch_max:
            waiting = self._queue.popleft()
            if self._vanished is None or not waiting.answer.cancelled():
                batch.append(waiting)
        return batch

    async def _serve_batch(self, batch: list[_Waiting[Member, Answer]]) -> None:
        try:
            answers = await self._run([waiting.member for waiting in batch])
        except asyncio.CancelledError:
            for waiting in batch:
                _fail(waiting, LedgerUnavailableError(f"the {self._name} lane was stopped"))
            raise
        except LedgerUnavailableError as error:
            for waiting in batch:
                _fail(waiting, LedgerUnavailableError(str(error)))
            return
        except Exception as error:  # the task's top frame: neither the lane nor the neighbours end with one member
            if len(batch) > 1:
                half = len(batch) // 2
                await self._serve_batch(batch[:half])
                await self._serve_batch(batch[half:])
                return
            if not isinstance(error, BillingError):
                log.exception("lane_member_failed", lane=self._name)
            _fail(batch[0], error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            self._deliver(waiting, answer)

    def _deliver(self, waiting: _Waiting[Member, Answer], answer: Answer | BillingError) -> None:
        if isinstance(answer, BillingError):
            _fail(waiting, answer)
        elif not waiting.answer.done():
            waiting.answer.set_result(answer)
        elif self._vanished is not None:
            self._vanished(waiting.member)


def _fail(waiting: _Waiting[Member, Answer], error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _retrieve(answer: "asyncio.Future[Answer]") -> None:
    # Asking for the exception tells asyncio that it was not lost by accident.
    if not answer.cancelled() and (error := answer.exception()) is not None:
        log.warning("unattended_member_failed", error=type(error).__name__)
