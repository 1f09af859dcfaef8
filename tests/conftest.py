"""Fixtures that every folder of tests may ask for."""

import functools
from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["tests.fixtures_postgres", "tests.fixtures_redis", "tests.fixtures_gateway"]


@pytest.fixture(autouse=True)
def _logs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that configures logs does so for itself: a logger that kept the setting would write past the next one."""
    monkeypatch.setattr(structlog, "configure", functools.partial(_configure, structlog.configure))
    yield
    structlog.reset_defaults()


def _configure(configure: object, **settings: object) -> None:
    assert callable(configure)
    configure(**{**settings, "cache_logger_on_first_use": False})
