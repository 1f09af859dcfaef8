"""The contracts' own tests, which need Node.js: type check, build compared with what is committed, and the sandbox."""

from pathlib import Path

import pytest

from tests.e2e.node_runtime import find_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2] / "contracts"
TESTS_S_MAX = 600
TYPES_S_MAX = 300


def test_the_contracts_javascript_has_no_type_errors() -> None:
    node = find_node()
    node.install(PROJECT)

    done = node.node(
        "node_modules/typescript/bin/tsc",
        "--project",
        "tsconfig.json",
        cwd=PROJECT,
        timeout_s=TYPES_S_MAX,
        environment={},
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [path.name for path in sorted((PROJECT / "tests").glob("*.test.mjs"))])
def test_the_contracts_pass_their_tests_in_the_sandbox(name: str) -> None:
    node = find_node()
    node.install(PROJECT)

    done = node.node(
        "--test", "--test-reporter=tap", f"tests/{name}", cwd=PROJECT, timeout_s=TESTS_S_MAX, environment={}
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert "\n# fail 0\n" in done.stdout, done.stdout
    assert "\n# skipped 0\n" in done.stdout, done.stdout
    assert "\n# pass 0\n" not in done.stdout, done.stdout
