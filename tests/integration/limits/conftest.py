"""A real Redis for this folder, and a clock that it and the model in memory share.

How long a test takes says nothing about limits: time passes where a test says so. Redis's own clock is read in
`test_redis_keeps_nothing_for_longer_than_it_matters` and in `tests/integration/gateway/test_shared_limits.py`.
"""

import hashlib

import pytest

from gateway.redis import slices
from tests.fixtures_redis import own_redis, redis_server, redis_url
from tests.store_clock import CLOCK_KEYS, StoreClock

__all__ = ["own_redis", "redis_server", "redis_url"]

_TOLD_BY_REDIS = "redis.call('TIME')"
_TOLD_BY_TEST = "{{ redis.call('GET', '{}'), redis.call('GET', '{}') }}".format(*CLOCK_KEYS)
_EXPIRE = "redis.call('PEXPIRE', "
_KEEP = "redis.call('SET', 'test:expiry:' .. "


@pytest.fixture(params=["memory", "redis"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StoreClock:
    """The clock of a store in memory and then of Redis; everything that asks for it is tested with both."""
    if request.param == "memory":
        return StoreClock(None)
    script = slices._SCRIPT
    assert script.count(_TOLD_BY_REDIS) == 1
    assert script.count(_EXPIRE) >= 1
    script = script.replace(_TOLD_BY_REDIS, _TOLD_BY_TEST).replace(_EXPIRE, _KEEP)
    monkeypatch.setattr(slices, "_SCRIPT", script)
    monkeypatch.setattr(slices, "_SCRIPT_SHA", hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest())
    request.getfixturevalue("redis_url")
    return StoreClock(request.getfixturevalue("redis_server"))
