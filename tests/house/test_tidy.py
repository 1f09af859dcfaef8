"""The rules of the house that no linter knows. A rule that hurts is changed here, in the open, not worked around."""

import ast
import itertools
import pathlib
import re
import subprocess
from collections import Counter

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = (
    "attestation",
    "audit",
    "benchmarks",
    "billing",
    "cli",
    "cocoon",
    "cocoon_client",
    "gateway",
    "migrations",
    "workers",
)
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 80
FILE_BYTES_MAX = 1_000_000
# Names that say nothing about what is inside.
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "stuff", "shared", "base"}
# Absolute paths of somebody's machine. Those of our own container images are named.
MACHINE_PATH = re.compile(r"(?<![\w.$}~<>*-])/(?:work|home|root|Users|mnt|workspace|builds)/[\w.-]+")
IMAGE_PATHS = {"/home/cocoon", "/root/.cache"}
REGISTRY_HOST = re.compile(
    r"pypi\.(?:org|python)|pythonhosted\.|registry\.(?:npmjs|yarnpkg)|artifactory|jfrog|nexus\.|(?:extra-)?index-url"
)
IGNORE = re.compile(r"#\s*(?:noqa|type:\s*ignore|pyright:\s*ignore|pragma:\s*no cover|nosec|fmt:\s*off)[^#]*")
CODED = re.compile(r"# (?:noqa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|pyright: ignore\[[A-Za-z, ]+\]|fmt: \w+|pragma: no cover)")
REASONED = re.compile(CODED.pattern + r"\s{2,}\S+")


def committed() -> list[pathlib.Path]:
    """Every file that is or would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


def modules() -> list[pathlib.Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def text_of(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_modules_stay_short() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in modules()}

    assert {module: lines for module, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}
    assert len(lengths) > 50


def test_functions_stay_short() -> None:
    long = {
        f"{name(path)}:{node.name}": lines
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }

    assert long == {}


def test_names_say_what_is_inside() -> None:
    empty = {
        name(path)
        for path in [*modules(), *(ROOT / "tests").rglob("*.py")]
        if {path.stem, *path.relative_to(ROOT).parts[:-1]} & EMPTY_NAMES
    }
    classes = {
        f"{name(path)}:{node.name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and re.search(r"(?:Util|Utils|Helper|Manager|Misc)$", node.name)
    }

    assert empty == set()
    assert classes == set()


def test_every_ignore_names_its_rule_and_its_reason() -> None:
    bare = {
        f"{name(path)}:{number + 1}: {match[0].strip()}"
        for path in modules()
        for number, (above, line) in enumerate(itertools.pairwise(["", *path.read_text().splitlines()]))
        for match in IGNORE.finditer(line)
        # A run of lines under one ignore, or under one comment, shares a reason.
        if REASONED.match(match[0]) is None
        and not (CODED.match(match[0]) and (IGNORE.search(above) or above.lstrip().startswith("#")))
    }

    assert bare == set()


def test_nothing_committed_knows_somebodys_machine() -> None:
    found = {
        f"{name(path)}: {match[0]}"
        for path in committed()
        if (text := text_of(path)) is not None
        for match in MACHINE_PATH.finditer(text)
        if match[0] not in IMAGE_PATHS
    }

    assert found == set()


def test_nothing_committed_names_a_package_registry() -> None:
    here = pathlib.Path(__file__)
    found = {
        f"{name(path)}: {match[0]}"
        for path in committed()
        if path != here and (text := text_of(path)) is not None
        for match in REGISTRY_HOST.finditer(text)
    }

    assert found == set()


def test_no_file_is_large() -> None:
    assert {name(path) for path in committed() if path.stat().st_size > FILE_BYTES_MAX} == set()


def test_test_modules_have_names_of_their_own() -> None:
    """pytest imports them by their base name, and two of one name cannot be run together."""
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))

    assert [module for module, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("lock", [*sorted(path.name for path in ROOT.glob("requirements*.lock")), "deploy/build.lock"])
def test_a_lock_pins_everything_with_hashes_and_names_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]

    assert "://" not in text
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[a-z0-9,_-]+\])?==\S+", entry), entry.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_links_between_documents_lead_somewhere() -> None:
    broken = {
        f"{name(path)}: {target}"
        for path in committed()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists()
    }

    assert broken == set()


def test_decisions_are_numbered_without_gaps_and_titled() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [int(path.name[:4]) for path in decisions]

    assert numbers == list(range(1, len(numbers) + 1))
    for path in decisions:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}. "), path.name
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Context",
            "## Decision",
            "## Consequences",
        ], path.name
