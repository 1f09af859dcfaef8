"""Variables of the environment: what the code reads is documented, and what is documented is read."""

import pathlib
import re
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("attestation", "audit", "billing", "cli", "cocoon", "cocoon_client", "gateway", "workers")
VARIABLE = r"(?:COCOON|OTEL)_[A-Z0-9_]*[A-Z0-9]"


def names(pattern: str, paths: Iterable[pathlib.Path]) -> set[str]:
    return {name for path in paths for name in re.findall(pattern, path.read_text())}


def sources() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def pages() -> list[pathlib.Path]:
    return [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


def test_every_variable_that_settings_and_options_read_is_documented() -> None:
    settings = names(f'"({VARIABLE})"', (path for path in sources() if path.name == "settings.py"))
    options = names(f'envvar="({VARIABLE})"', sources())
    documented = names(f"({VARIABLE})", pages())

    assert {"COCOON_DATABASE_URL", "COCOON_WORKER_KEY", "COCOON_EPOCH_S", "COCOON_STATE_DIR"} <= settings
    assert {"COCOON_ESCROW", "COCOON_TRUST"} <= options
    assert sorted((settings | options) - documented) == []


def test_every_variable_that_is_documented_is_read() -> None:
    read = names(f'"({VARIABLE})"', sources())

    assert sorted(names(f"({VARIABLE})", pages()) - read) == []
