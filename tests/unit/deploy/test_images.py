"""The Dockerfile and the configuration it goes with, checked without a Docker engine."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[3]


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of each line of the Dockerfile, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions():
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            current = found[stage] = [("FROM", image)]
        else:
            current.append((name, rest))
    return found


def packages() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_the_compose_targets_exist_and_run_as_nobody_in_particular() -> None:
    targets = {
        spec["build"]["target"]
        for spec in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
        if "build" in spec
    }
    assert targets == {"gateway", "worker"}
    for target in targets:
        users = [rest for name, rest in stages()[target] if name == "USER"]
        assert users == ["10001:10001"]
        assert ("ENTRYPOINT", '["cocoon"]') in stages()[target]
        assert ("CMD", f'["{target}"]') in stages()[target]


def test_base_images_are_pinned_to_one_python() -> None:
    images = {steps[0][1] for name, steps in stages().items() if steps[0][1] not in stages()}

    assert images == {"python:3.12-slim"}


def test_nothing_is_installed_that_the_locks_do_not_name() -> None:
    installs = [
        command
        for name, rest in instructions()
        if name == "RUN"
        for command in rest.split("&&")
        if "pip install" in command
    ]

    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes -r" in command or "--no-deps --no-index" in command, command


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]

    assert "*" in ignored
    assert set(packages()) < set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in allowed, source
    assert sorted(allowed) == sorted(copied)


def test_the_build_lock_repeats_the_development_lock() -> None:
    development = (ROOT / "requirements-dev.lock").read_text()
    blocks = re.split(r"\n(?=\S)", (ROOT / "deploy/build.lock").read_text().rstrip())

    assert [block.split("==")[0] for block in blocks] == [
        "hatchling",
        "packaging",
        "pathspec",
        "pluggy",
        "trove-classifiers",
    ]
    for block in blocks:
        assert block in development, block.split()[0]


def test_the_wheel_holds_every_module_and_every_statement(tmp_path: pathlib.Path) -> None:
    """What the build stage runs; a forgotten .sql file would only fail in production."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in packages()
        for suffix in ("py", "sql")
        for path in (ROOT / package).rglob(f"*.{suffix}")
    }

    assert len([name for name in sources if name.endswith(".sql")]) > 3
    assert sources - held == set()
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in held)
    entry_points = next(name for name in held if name.endswith("entry_points.txt"))
    assert "cocoon = cli.main:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def collector() -> Any:
    return yaml.safe_load((ROOT / "deploy/otel-collector.yaml").read_text())


def test_the_collectors_pipelines_use_what_is_defined_and_define_what_is_used() -> None:
    config = collector()
    service = config["service"]
    used = {
        kind: {name for pipeline in service["pipelines"].values() for name in pipeline[kind]}
        for kind in ("receivers", "processors", "exporters")
    } | {"extensions": set(service["extensions"])}

    assert used == {kind: set(config[kind]) for kind in used}
    assert {name.split("/")[0] for name in service["pipelines"]} <= {"traces", "metrics", "logs"}


def test_the_collector_limits_its_memory_before_anything_else() -> None:
    for pipeline in collector()["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_spans_are_sent_where_the_collector_listens_and_from_there_to_jaeger() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    port = collector()["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    exporter = collector()["exporters"]["otlp/jaeger"]["endpoint"]

    for name in ("gateway", "worker"):
        assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://collector:{port}"
    assert exporter.split(":")[0] in services


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed here")
def test_nginx_accepts_its_configuration(tmp_path: pathlib.Path) -> None:
    text = (ROOT / "deploy/nginx.conf").read_text()
    text = text.replace("user nginx;\n", "").replace("/var/run/nginx.pid", str(tmp_path / "pid"))
    config = tmp_path / "nginx.conf"
    config.write_text(text)
    done = subprocess.run(
        ["nginx", "-t", "-q", "-c", str(config), "-p", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
