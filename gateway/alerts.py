"""Watches thresholds and sends what was crossed, in one process of all at a time; requests never wait for it.

At least once: a message is noted as delivered after the receiver said so, and a process that dies in between has it
sent again, with the same id and the same bytes. Attempts are bounded and further and further apart.
"""

import asyncio
import random
import uuid

import structlog

from billing.alerts import Outgoing
from billing.ports import BillingError
from billing.postgres.alerts import (
    DELIVERED,
    GIVEN_UP,
    PENDING,
    alert_turn,
    drop_old_alerts,
    due_alerts,
    note_attempt,
    note_crossings,
)
from billing.postgres.pool import Connection, Pool
from cocoon.clock import Clock
from cocoon.ids import new_job_id
from cocoon.webhooks import signed_headers
from gateway.settings import AlertSettings
from gateway.webhooks import WebhookFailedError, WebhookPoster

ATTEMPTS_MAX = 12
"""With the default first pause, the last one is about two days after the crossing."""
RETRY_FACTOR = 4
RETRY_S_MAX = 6 * 3600.0
SENT_AT_ONCE_MAX = 16
STANDBY_S_MAX = 10.0
"""How often a process that does not have the turn asks for it."""
TIDY_S = 3600.0
log = structlog.get_logger()


class AlertSender:
    """One process's readiness to watch and send."""

    def __init__(self, pool: Pool, settings: AlertSettings, clock: Clock, rng: random.Random) -> None:
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._poster = WebhookPoster(allow_private=settings.allow_private)

    async def run(self) -> None:
        """Watch and send while it is this process's turn, until cancelled. An interval of 0 leaves it to others."""
        interval = self._settings.interval_s
        while interval:
            try:
                async with alert_turn(self._pool) as connection:
                    if connection is not None:
                        await self._serve(connection)
            except BillingError as error:
                log.warning("alerts_interrupted", code=error.code)
            await asyncio.sleep(min(STANDBY_S_MAX, 2 * interval))
        await asyncio.Event().wait()

    async def _serve(self, connection: Connection) -> None:
        tidy_at = self._clock.monotonic()
        while True:
            if self._clock.monotonic() >= tidy_at:
                await drop_old_alerts(connection)
                tidy_at += TIDY_S
            crossed = await note_crossings(connection, top_up=self._settings.top_up, new_id=self._new_id)
            if crossed:
                log.info("alerts_noted", count=crossed)
            await self._send_due(connection)
            await asyncio.sleep(self._settings.interval_s)

    async def _send_due(self, connection: Connection) -> None:
        messages = await due_alerts(connection, SENT_AT_ONCE_MAX)
        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(self._send(message)) for message in messages]
        for message, task in zip(messages, sent, strict=True):
            await self._note(connection, message, task.result())

    async def _send(self, message: Outgoing) -> str:
        """What became of one attempt: an HTTP status, or a short reason."""
        timestamp = int(self._clock.now().timestamp())
        headers = signed_headers(message.secret, f"msg_{message.alert_id.hex}", timestamp, message.body)
        try:
            return str(await self._poster.post(message.url, headers, message.body))
        except WebhookFailedError as error:
            return str(error) or error.code

    async def _note(self, connection: Connection, message: Outgoing, outcome: str) -> None:
        attempts = message.attempts + 1
        # A redirect is no delivery: it is not followed.
        delivered = outcome.startswith("2")
        state = DELIVERED if delivered else GIVEN_UP if attempts >= ATTEMPTS_MAX else PENDING
        pause_s = min(self._settings.retry_s * RETRY_FACTOR ** min(message.attempts, 20), RETRY_S_MAX)
        await note_attempt(
            connection,
            message.alert_id,
            outcome=outcome,
            state=state,
            retry_s=pause_s * self._rng.uniform(0.8, 1.2),
        )
        log.info("alert_sent", alert_id=str(message.alert_id), outcome=outcome, attempts=attempts, state=state)

    def _new_id(self) -> uuid.UUID:
        return new_job_id(self._clock, self._rng)
