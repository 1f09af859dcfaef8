"""The compose files are checked without a Docker engine: by schema, and against the code they start."""

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml

from cli.main import SUBCOMMANDS, main

ROOT = pathlib.Path(__file__).parents[3]
COMPOSE = "docker-compose.yml"
GPU = "docker-compose.gpu.yml"
# Images without a shell or a client inside: nothing in them could ask.
WITHOUT_PROBE = {"collector": "distroless", "jaeger": "distroless", "migrate": "ends", "keys": "ends"}
SECRETS = {"COCOON_POSTGRES_PASSWORD", "COCOON_NETWORK_SECRET", "COCOON_ENGINE_API_KEY"}
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?::([-?])([^}]*))?\}")


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def merged() -> dict[str, Any]:
    """The services with the GPU file on top, as far as these tests look."""
    services = load(COMPOSE)["services"]
    for name, override in load(GPU)["services"].items():
        base = services.setdefault(name, {})
        environment = base.get("environment", {}) | override.get("environment", {})
        base |= {**override, "environment": environment}
    return services


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def resolved(text: str, environment: dict[str, str]) -> str:
    """`text` with variables filled in as compose does."""
    return VARIABLE.sub(lambda m: environment.get(m[1]) or ((m[3] or "") if m[2] == "-" else ""), text)


def known_variables() -> set[str]:
    """Every variable that a settings module or a command of ours reads."""
    sources = [*ROOT.glob("*/settings.py"), *ROOT.glob("*/*/settings.py"), *ROOT.glob("cli/*.py")]
    assert sources
    return {name for path in sources for name in re.findall(r'"((?:COCOON|OTEL)_[A-Z0-9_]+)"', path.read_text())}


@pytest.mark.parametrize("name", [COMPOSE, GPU])
def test_the_file_follows_the_compose_specification(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / name)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.strip()) == (0, "ok -- validation done"), done.stdout + done.stderr


@pytest.mark.parametrize("name", [COMPOSE, GPU])
def test_every_image_has_a_fixed_version(name: str) -> None:
    images = {service: spec["image"] for service, spec in load(name)["services"].items() if "image" in spec}
    loose = {
        service: image
        for service, image in images.items()
        if not re.search(r":v?\d+(\.\d+)+[a-z0-9.-]*$", resolved(image, {})) or "latest" in image
    }

    assert images
    assert loose == {}


def test_every_command_of_ours_exists() -> None:
    started: dict[str, str] = {}
    for name, spec in merged().items():
        if spec.get("build"):
            words = [*spec.get("entrypoint", ["cocoon"]), *spec["command"]]
            assert words[0] == "cocoon", name
            started[name] = words[1]

    assert started == {"gateway": "gateway", "keys": "keys", "migrate": "migrate", "worker": "worker"}
    assert set(started.values()) <= set(SUBCOMMANDS)
    context = click.Context(main)
    assert all(isinstance(main.get_command(context, word), click.Command) for word in started.values())


def test_every_variable_given_to_our_programs_is_one_they_read() -> None:
    known = known_variables()
    unknown = {
        (name, variable)
        for name, spec in merged().items()
        if spec.get("build")
        for variable in spec["environment"]
        if variable not in known
    }

    assert {"COCOON_DATABASE_URL", "COCOON_WORKER_KEY", "COCOON_GATEWAY_PROCESSES"} <= known
    assert unknown == set()


def test_what_the_gateway_and_the_worker_are_given_is_accepted() -> None:
    from gateway.settings import read_settings
    from workers.agent.settings import parse_settings

    given = {
        "COCOON_ENV": "development",
        "COCOON_POSTGRES_PASSWORD": "secret",
        "COCOON_NETWORK_SECRET": "ab" * 32,
        "COCOON_WORKER_KEY": "wk-cocoon-" + "k" * 43,
        "COCOON_ENGINE_API_KEY": "engine-secret",
        "COCOON_SERVED_MODEL": "org/model",
    }
    services = load(COMPOSE)["services"]

    def environment(spec: Any) -> dict[str, str]:
        return {name: resolved(str(value), given) for name, value in spec["environment"].items()}

    gateway = read_settings(environment(services["gateway"]))
    cpu = parse_settings(environment(services["worker"]))
    gpu = parse_settings(environment(merged()["worker"]))

    assert gateway.database_url.reveal() == "postgresql://cocoon:secret@postgres:5432/cocoon"
    assert gateway.allow_private_workers
    assert (cpu.embedded, cpu.public_url, cpu.port) == ("xllamacpp", "https://worker:8443", 8443)
    assert (gpu.engine_url, gpu.sglang_attached, gpu.served_model) == ("http://engine:30000", True, "org/model")
    assert cpu.global_id == gpu.global_id == gateway.global_id == -3


def test_secrets_come_from_outside_and_their_absence_stops_compose() -> None:
    found: dict[str, set[str]] = {}
    for name in (COMPOSE, GPU):
        for text in texts(load(name)):
            for variable, operator, _ in VARIABLE.findall(text):
                found.setdefault(variable, set()).add(operator)
    assert {name: found[name] for name in SECRETS} == {name: {"?"} for name in SECRETS}
    assert found["COCOON_ENV"] == {"?"}
    plain = {
        (service, variable)
        for service, spec in merged().items()
        for variable, value in spec.get("environment", {}).items()
        if re.search(r"SECRET|PASSWORD|KEY|TOKEN", variable) and "${" not in str(value)
    }
    assert plain == set()


def test_the_example_environment_names_what_must_be_set_and_gives_no_secret() -> None:
    lines = (ROOT / "deploy/env.example").read_text().splitlines()
    set_here = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    mentioned = {line.lstrip("#").split("=")[0] for line in lines if re.match(r"#?COCOON_[A-Z_]+=", line)}
    used = {
        variable for name in (COMPOSE, GPU) for text in texts(load(name)) for variable, *_ in VARIABLE.findall(text)
    }
    needed = {
        variable for text in texts(load(COMPOSE)) for variable, operator, _ in VARIABLE.findall(text) if operator == "?"
    }

    assert needed <= set(set_here)
    assert set(set_here.values()) == {""}
    assert mentioned <= used


def test_the_filled_in_environment_is_never_committed() -> None:
    done = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == ".env"


def test_every_service_that_can_be_asked_is_asked() -> None:
    services = merged()
    without = {name for name, spec in services.items() if "healthcheck" not in spec}

    assert without == set(WITHOUT_PROBE)
    waited_for = {
        (name, needed): condition["condition"]
        for name, spec in services.items()
        for needed, condition in spec.get("depends_on", {}).items()
    }
    assert {needed for _, needed in waited_for} <= set(services)
    for (_, needed), condition in waited_for.items():
        if condition == "service_healthy":
            assert "healthcheck" in services[needed]


def test_the_probe_programs_are_valid_python() -> None:
    programs = [
        spec["healthcheck"]["test"][3]
        for spec in merged().values()
        if spec.get("healthcheck", {}).get("test", [""])[1:2] in (["python"], ["python3"])
    ]

    assert len(programs) == 3
    for program in programs:
        compile(program, "healthcheck", "exec")


def test_data_lives_in_named_volumes_and_only_our_own_files_are_mounted() -> None:
    declared = set(load(COMPOSE)["volumes"]) | set(load(GPU)["volumes"])
    for name, spec in merged().items():
        for volume in spec.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("./"):
                assert rest.endswith(":ro"), name
                assert (ROOT / source).is_file(), source
            else:
                assert source in declared, source


def test_nothing_is_published_beyond_loopback_by_default() -> None:
    ports = [resolved(port, {}) for spec in merged().values() for port in spec.get("ports", [])]

    assert sorted(ports) == ["127.0.0.1:16686:16686", "127.0.0.1:8080:8080"]


def test_the_time_to_stop_is_longer_than_the_drain() -> None:
    for name in ("gateway", "worker"):
        spec = load(COMPOSE)["services"][name]
        drain_s = float(resolved(spec["environment"]["COCOON_DRAIN_S"], {}))
        grace = resolved(spec["stop_grace_period"], {})
        assert grace.endswith("s")
        assert float(grace[:-1]) >= drain_s + 15, name


def test_the_command_that_makes_the_workers_key_is_one_that_keys_takes() -> None:
    keys = main.get_command(click.Context(main), "keys")
    assert isinstance(keys, click.Group)
    shown = {
        match[1]
        for name in (COMPOSE, "deploy/env.example")
        for match in re.finditer(
            r"run --rm keys (create [a-z0-9 -]*[a-z0-9])$", (ROOT / name).read_text(), re.MULTILINE
        )
    }

    assert len(shown) == 1
    for line in shown:
        name, *arguments = line.split()
        context = keys.commands[name].make_context(name, arguments)
        assert context.params["role"] == "worker"
