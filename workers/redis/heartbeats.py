"""The heartbeat bus: an agent reports to one gateway process, every process of every replica hears it.

A heartbeat is published for those who listen and stored for `LIVE_S` for those who start later. Losing Redis loses
nothing that two seconds do not bring back, so nothing is retried; while it is away the registry keeps its last
picture instead of losing every worker at once.
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncGenerator

import msgspec
import structlog

from cocoon.clock import Clock
from cocoon.enrolment import Heartbeat
from workers.errors import HeartbeatBusUnavailableError
from workers.redis.connections import Subscription, open_client, translated
from workers.registry import LIVE_S, Registry

CHANNEL = "cocoon:heartbeats"
KEY_PREFIX = "cocoon:heartbeat:"
TTL_MS = int(LIVE_S * 1000)
TIMEOUT_S = 2.0
"""For connecting and for every answer."""
SILENCE_S_MAX = 10.0
"""A subscription this quiet is asked whether it still works."""
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 5.0
BATCH_KEYS_MAX = 500
MESSAGE_BYTES_MAX = 4096

_log = structlog.get_logger(__name__)


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    worker_id: uuid.UUID
    heartbeat: Heartbeat


_message_decoder = msgspec.json.Decoder(_Message)


class HeartbeatBus:
    """Publishes this process's heartbeats and feeds everybody's into the registry."""

    def __init__(self, redis_url: str, registry: Registry, clock: Clock, rng: random.Random) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._redis = open_client(redis_url, timeout_s=TIMEOUT_S)
        self.connected = False

    async def publish(self, worker_id: uuid.UUID, heartbeat: Heartbeat) -> None:
        """Note a heartbeat here, then tell the other processes.

        Raises:
            HeartbeatBusUnavailableError: the others could not be told; it counts here all the same.
        """
        self._registry.note_heartbeat(worker_id, heartbeat, self._clock.monotonic())
        payload = msgspec.json.encode(_Message(worker_id=worker_id, heartbeat=heartbeat))
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(f"{KEY_PREFIX}{worker_id}", payload, px=TTL_MS)
                pipe.publish(CHANNEL, payload)
                await pipe.execute()

    async def run(self) -> None:
        """Follow the bus until cancelled. While it is away, who was live stays live."""
        failures = 0
        while True:
            try:
                await self._follow()
            except HeartbeatBusUnavailableError as error:
                if self.connected or failures == 0:
                    _log.warning("heartbeat_bus_disconnected", error=type(error.__cause__ or error).__name__)
                failures = 1 if self.connected else failures + 1
                self.connected = False
                self._registry.hold_liveness(True)
            pause_s = min(BACKOFF_S_MIN * 2.0 ** min(failures - 1, 10), BACKOFF_S_MAX)
            await asyncio.sleep(pause_s * (0.5 + self._rng.random() / 2))

    async def close(self) -> None:
        """Close every connection."""
        with contextlib.suppress(HeartbeatBusUnavailableError), translated():
            await self._redis.aclose()

    async def _follow(self) -> None:
        async with self._subscription() as messages:
            # Subscribed first, so that nothing falls between the picture and the stream.
            await self._load_current()
            self._registry.hold_liveness(False)
            self.connected = True
            _log.info("heartbeat_bus_connected")
            async for payload in messages:
                self._take(payload, self._clock.monotonic())

    @contextlib.asynccontextmanager
    async def _subscription(self) -> AsyncGenerator[AsyncGenerator[bytes]]:
        pubsub = self._redis.pubsub()
        try:
            with translated():
                await pubsub.subscribe(CHANNEL)
                confirmed = await pubsub.get_message(timeout=TIMEOUT_S)
            if confirmed is None:
                raise HeartbeatBusUnavailableError("the subscription was not confirmed")
            async with contextlib.aclosing(_messages(pubsub)) as messages:
                yield messages
        finally:
            with contextlib.suppress(HeartbeatBusUnavailableError), translated():
                await pubsub.aclose()

    async def _load_current(self) -> None:
        ids = self._registry.worker_ids()
        for start in range(0, len(ids), BATCH_KEYS_MAX):
            keys = [f"{KEY_PREFIX}{worker_id}" for worker_id in ids[start : start + BATCH_KEYS_MAX]]
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.get(key)
                    pipe.pttl(key)
                with translated():
                    answers = await pipe.execute()
            now = self._clock.monotonic()
            for payload, left_ms in zip(answers[::2], answers[1::2], strict=True):
                if isinstance(payload, bytes) and isinstance(left_ms, int) and left_ms > 0:
                    self._take(payload, now - max(TTL_MS - left_ms, 0) / 1000)

    def _take(self, payload: bytes, at: float) -> None:
        if len(payload) > MESSAGE_BYTES_MAX:
            return
        try:
            message = _message_decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # A newer release may say more; older processes then wait for their own heartbeats.
            _log.debug("heartbeat_malformed")
            return
        self._registry.note_heartbeat(message.worker_id, message.heartbeat, at)


async def _messages(pubsub: Subscription) -> AsyncGenerator[bytes]:
    asked = False
    while True:
        with translated():
            message = await pubsub.get_message(timeout=TIMEOUT_S if asked else SILENCE_S_MAX)
        if message is None:
            if asked:
                raise HeartbeatBusUnavailableError("the subscription does not answer")
            with translated():
                await pubsub.ping()
            asked = True
            continue
        asked = False
        if message["type"] == "message" and isinstance(message["data"], bytes):
            yield message["data"]
