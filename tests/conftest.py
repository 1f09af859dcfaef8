"""Fixtures that every folder of tests may ask for."""

import functools
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


@pytest.fixture(autouse=True)
def _logs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that configures logs does so for itself: a logger that kept the setting would write past the next one."""
    monkeypatch.setattr(structlog, "configure", functools.partial(_configure, structlog.configure))
    yield
    structlog.reset_defaults()


def _configure(configure: object, **settings: object) -> None:
    assert callable(configure)
    configure(**{**settings, "cache_logger_on_first_use": False})
