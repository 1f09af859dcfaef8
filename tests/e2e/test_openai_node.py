"""The official npm client against `cocoon dev`; the assertions are in `tests/clients/npm`."""

from pathlib import Path

import pytest

from tests.e2e.dev_network import MODEL, Network, until
from tests.e2e.node_runtime import find_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[1] / "clients" / "npm"
TESTS_S_MAX = 180
SETTLED_S = 60


def test_the_npm_client_works(network: Network) -> None:
    node = find_node()
    node.install(PROJECT)
    done = node.node(
        "--test", "--test-reporter=tap", "openai.test.mjs", cwd=PROJECT, timeout_s=TESTS_S_MAX,
        environment={
            "COCOON_BASE_URL": network.base_url, "COCOON_API_KEY": network.api_key, "COCOON_MODEL": MODEL,
            "COCOON_LIMITED_KEY": network.new_key("--credit", "1", "--rpm", "1").secret,
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "\n# pass 10\n# fail 0\n" in done.stdout, done.stdout
    # One stream was broken out of, one request aborted, one timed out: each was noticed, and stopped early.
    query = "SELECT completion_tokens FROM usage WHERE outcome = 'client_gone'"
    until(lambda: len(network.rows(query)) == 3, SETTLED_S, network.dev.diagnose)
    assert all(row["completion_tokens"] < 3000 for row in network.rows(query))
