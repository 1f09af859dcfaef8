"""Fixtures that every folder of tests may ask for."""

import datetime as dt
import functools
import time
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.fixtures_postgres", "tests.fixtures_redis", "tests.fixtures_gateway", "tests.fixtures_chain"]

# How long an example takes says how busy the machine is: Hypothesis fails one that takes 200 ms, unless told not to.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("steady", settings.get_profile("explore"), derandomize=True)
settings.load_profile("steady")
"""The same examples in every run, so that a change is judged by what it changes. `make explore` looks for new ones."""


LONG_ENOUGH_S = 60.0
"""How much of a day a test needs that asks for `one_day`."""


@pytest.fixture
def one_day() -> None:
    """The test begins and ends on one UTC day, by real clocks, its own and the database's: else it would see two."""
    now = dt.datetime.now(dt.UTC)
    midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
    left_s = (midnight - now).total_seconds()
    if left_s < LONG_ENOUGH_S:
        time.sleep(left_s + 0.1)


@pytest.fixture(autouse=True)
def _logs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that configures logs does so for itself: a logger that kept the setting would write past the next one."""
    monkeypatch.setattr(structlog, "configure", functools.partial(_configure, structlog.configure))
    yield
    structlog.reset_defaults()


def _configure(configure: object, **settings: object) -> None:
    assert callable(configure)
    configure(**{**settings, "cache_logger_on_first_use": False})
