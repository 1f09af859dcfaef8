import datetime as dt
import json
import subprocess
import sys

import pytest

from cocoon.clock import ManualClock, SystemClock
from cocoon.errors import CocoonError, MalformedError


class SilentError(CocoonError):
    code = "silent"


def test_the_docstrings_first_line_is_the_default_message() -> None:
    assert str(MalformedError()) == "The bytes are not in the format they claim to be in."
    assert str(MalformedError("other")) == "other"
    assert str(SilentError()) == "silent"


def test_logs_are_one_json_object_a_line_on_standard_error() -> None:
    program = (
        "import structlog\nfrom cocoon.logs import configure_logging\n"
        "configure_logging('gateway')\nlog = structlog.get_logger()\n"
        "log.debug('hidden')\nlog.info('request_settled', text='a\\nb')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('flush_failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.splitlines())

    assert done.stdout == ""
    assert (first["event"], first["process"], first["level"], first["text"]) == (
        "request_settled",
        "gateway",
        "info",
        "a\nb",
    )
    assert dt.datetime.fromisoformat(first["timestamp"]).tzinfo is not None
    assert "ZeroDivisionError" in second["exception"]


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(dt.datetime(2026, 5, 5, tzinfo=dt.UTC))
    before = clock.monotonic()
    clock.advance(1.5)

    assert clock.now() == dt.datetime(2026, 5, 5, 0, 0, 1, 500_000, tzinfo=dt.UTC)
    assert clock.monotonic() == before + 1.5
    with pytest.raises(AssertionError):
        clock.advance(-1)


def test_the_system_clock_is_utc_and_monotonic() -> None:
    clock = SystemClock()

    assert clock.now().tzinfo is dt.UTC
    assert clock.monotonic() <= clock.monotonic()
