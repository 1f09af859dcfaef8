"""What is used of redis-py, whose own types are partly unknown, and the one place where its errors become ours."""

import contextlib
from collections.abc import Generator
from typing import Any, Protocol, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cocoon.cancellation import cancellation_kept
from workers.errors import HeartbeatBusUnavailableError

CONNECTIONS_MAX = 16


class Pipeline(contextlib.AbstractAsyncContextManager["Pipeline"], Protocol):
    """Commands that travel together."""

    def set(self, name: str, value: bytes, *, px: int) -> object:
        """SET with an expiry in milliseconds."""
        ...

    def get(self, name: str) -> object:
        """GET."""
        ...

    def pttl(self, name: str) -> object:
        """Milliseconds until the key expires."""
        ...

    def publish(self, channel: str, message: bytes) -> object:
        """PUBLISH."""
        ...

    async def execute(self) -> list[Any]:
        """Send; the answers in order."""
        ...


class Subscription(Protocol):
    """What is used of `redis.asyncio.client.PubSub`."""

    async def subscribe(self, *channels: str) -> None:
        """SUBSCRIBE; the confirmation comes as a message."""
        ...

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109  redis-py's name
        """The next message, None after `timeout` seconds without one."""
        ...

    async def ping(self) -> object:
        """Ask for a sign of life, which comes as a message."""
        ...

    async def aclose(self) -> None:
        """Give the connection back."""
        ...


class Client(Protocol):
    """What is used of `redis.asyncio.Redis`."""

    def pipeline(self, *, transaction: bool) -> Pipeline:
        """An empty pipeline."""
        ...

    def pubsub(self) -> Subscription:
        """An empty subscription."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def open_client(redis_url: str, *, timeout_s: float) -> Client:
    """A client that connects when used, waits at most `timeout_s` for anything, and retries nothing."""
    from_url = cast("Any", redis.asyncio.BlockingConnectionPool).from_url
    pool = from_url(
        redis_url,
        max_connections=CONNECTIONS_MAX,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return cast("Client", redis.asyncio.Redis.from_pool(pool))


@contextlib.contextmanager
def translated() -> Generator[None]:
    """Raise `HeartbeatBusUnavailableError` for what Redis and the network do, and keep being told to stop.

    One for each wait: redis-py may forget a cancellation, and what comes after it would not.
    """
    try:
        with cancellation_kept():
            yield
    except (RedisError, OSError) as error:
        raise HeartbeatBusUnavailableError from error
