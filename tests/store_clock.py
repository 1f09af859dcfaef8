"""A clock that a model in memory and a real Redis share, for tests of what is kept in both."""

from cocoon.clock import ManualClock
from tests.fixtures_redis import RedisServer

CLOCK_KEYS = ("test:clock:s", "test:clock:us")
"""Where Redis finds what time it is."""


class StoreClock(ManualClock):
    """What time it is for the stores under test. Nothing in Redis expires by itself meanwhile."""

    def __init__(self, server: RedisServer | None) -> None:
        super().__init__()
        self.redis = server
        self.advance(0)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        if self.redis is not None:
            us = round(self.monotonic() * 1e6)
            for key, value in zip(CLOCK_KEYS, divmod(us, 1_000_000), strict=True):
                assert self.redis.command("SET", key, str(value)) == b"+OK\r\n"

    def forget(self) -> None:
        """Empty Redis, but for the time."""
        assert self.redis is not None
        assert self.redis.command("FLUSHALL") == b"+OK\r\n"
        self.advance(0)
