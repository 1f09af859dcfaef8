"""A real Redis for this folder."""

from tests.fixtures_redis import own_redis, redis_server, redis_url

__all__ = ["own_redis", "redis_server", "redis_url"]
