"""What a worker asks, as its operator writes it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cocoon.enrolment import Ask
from workers.agent.asking import AskMalformedError, ask_source, parse_ask


def test_an_ask_is_exact_ton_per_million_tokens() -> None:
    asked = Ask(model="m", prompt=20_000_000, cached=5_000_000, completion=60_000_001)
    assert parse_ask(" 0.02/0.005/0.060000001\n", model="m", or_ceiling=False) == asked
    assert parse_ask("0.02/0.06", model="m", or_ceiling=True) == Ask("m", 20_000_000, 20_000_000, 60_000_000, True)


@pytest.mark.parametrize(
    "text", ["", "1", "1/2/3/4", "a/b", "-1/2", "1e3/1", "0.0000000001/1", "1/2/3", "1//2", "\u0661/1"]
)
def test_what_is_no_exact_ask_is_refused(text: str) -> None:
    with pytest.raises(AskMalformedError):
        parse_ask(text, model="m", or_ceiling=False)


def test_a_file_is_read_anew_and_nonsense_leaves_the_last_ask(tmp_path: Path) -> None:
    path = tmp_path / "ask"
    source = ask_source(f"@{path}", model="m", or_ceiling=False)
    with capture_logs() as logs:
        assert source.current() is None
        path.write_text("1/2")
        first = source.current()
        assert first is not None
        for nonsense in ("x", "1/2/3", "\x00" * 10_000, "9" * 10_000):
            path.write_text(nonsense)
            assert source.current() == first
        path.write_bytes(b"\xff")
        assert source.current() == first
        path.write_text("3/4")
        changed = source.current()
        assert changed is not None
        assert changed.prompt == 3 * 10**9
        path.write_text("\n")
        assert source.current() is None
    assert [line["event"] for line in logs] == ["ask_unreadable"] * 2


def test_no_ask_is_the_networks_price() -> None:
    assert ask_source(None, model="m", or_ceiling=False).current() is None
