"""One attempt at one target: its answer, its counts, and its end, which is reported to routing exactly once."""

import uuid

from cocoon.clock import Clock
from cocoon.errors import CocoonError, MalformedError
from cocoon.http1 import HopError
from cocoon.money import Price
from cocoon.usage import TokenUsage
from gateway.admission import Bounds
from gateway.exchange import State
from workers.routing import Dispatch, DispatchOutcome
from workers.targets import Worker
from workers.transport import Answer, Batch, End, TransportError

_NONE = TokenUsage()


class AttemptFailedError(CocoonError):
    """The worker, not the request, failed this attempt."""

    code = "attempt_failed"
    transient = True


class AttemptBusyError(AttemptFailedError):
    """The worker is at its capacity; `retry_after_s` is its own estimate."""

    code = "attempt_busy"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the worker is busy")
        self.retry_after_s = retry_after_s


class Attempt:
    """The mutable part of an attempt."""

    def __init__(self, number: int, dispatch: Dispatch, clock: Clock, price: Price) -> None:
        self.number = number
        self.dispatch = dispatch
        self.price = price
        self.first_token_s: float | None = None
        self._clock = clock
        self._began = clock.monotonic()
        self._answer: Answer | None = None
        self._counted = _NONE
        self._end: End | None = None

    @property
    def worker_id(self) -> uuid.UUID | None:
        """The worker to pay; None for an upstream without an agent."""
        target = self.dispatch.target
        return target.worker_id if isinstance(target, Worker) else None

    @property
    def worker_name(self) -> str:
        """What the client is told about who answered."""
        return self.dispatch.target.name

    @property
    def salt(self) -> str | None:
        """The commitment salt that the agent drew."""
        return self._answer.salt if self._answer is not None else None

    @property
    def finish_reason(self) -> str:
        """Why the engine stopped; empty when it never said."""
        return self._end.finish_reason if self._end is not None else ""

    @property
    def receipt_head(self) -> bytes | None:
        """The signed head's exact bytes, when the answer came with a receipt."""
        return self._end.receipt_head if self._end is not None else None

    @property
    def receipt_signature(self) -> bytes | None:
        """The signature over the head."""
        return self._end.receipt_signature if self._end is not None else None

    def reported(self) -> TokenUsage:
        """The counts as the worker gave them."""
        return self._end.usage if self._end is not None else self._counted

    def usage(self, bounds: Bounds) -> TokenUsage:
        """The counts to charge: what was reported, never more than was authorised."""
        return self.reported().capped(prompt_max=bounds.prompt, completion_max=bounds.completion)

    def opened(self, answer: Answer) -> None:
        """The worker accepted the job."""
        self._answer = answer

    async def next(self) -> Batch:
        """The next batch.

        Raises:
            AttemptFailedError: the answer broke.
        """
        assert self._answer is not None, "opened before"
        try:
            batch = await self._answer.next()
        except (HopError, MalformedError, TransportError) as error:
            raise AttemptFailedError(str(error)) from error
        if batch.usage is not None:
            self._counted = batch.usage
        if self.first_token_s is None and (batch.data or self._counted.completion):
            now = self._clock.monotonic()
            self.first_token_s = now - self._began
            self.dispatch.first_token(now)
        if batch.end is not None:
            if batch.end.failure is not None:
                raise AttemptFailedError(batch.end.failure)
            self._end = batch.end
        return batch

    def failed(self, outcome: DispatchOutcome, retry_after_s: float | None = None) -> None:
        """End it as failed: abort the worker and tell routing."""
        self._close()
        self.dispatch.finish(outcome, retry_after_s=retry_after_s)
        self.dispatch.uncover()

    def finish(self, state: State) -> None:
        """End it as the exchange ended. After `failed`, nothing changes: the first end wins."""
        self._close()
        match state:
            case State.COMPLETED | State.REFUSED:
                self.dispatch.finish(DispatchOutcome.OK)
            case State.CLIENT_GONE:
                self.dispatch.finish(DispatchOutcome.CLIENT_GONE)
            case _:
                self.dispatch.finish(DispatchOutcome.FAILED_MID_STREAM)

    def _close(self) -> None:
        if self._answer is not None:
            self._answer.close()
