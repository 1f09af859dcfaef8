"""What the README tells a newcomer to type does what it says. Only the port is changed, because 8080 may be taken."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.dev_network import Network, clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_S_MAX = 120


def example(language: str, network: Network) -> str:
    """The README's only block of this language, for the port of `network`."""
    [block] = [text for kind, text in BLOCK.findall(README.read_text()) if kind == language]
    assert "http://127.0.0.1:8080/v1" in block
    return block.replace("http://127.0.0.1:8080/v1", network.base_url)


def run(command: list[str], network: Network, folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**clean_environment(), "COCOON_API_KEY": network.api_key}, timeout=RUN_S_MAX,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="the example needs curl on PATH")
def test_the_curl_example_streams_an_answer_and_its_cost(network: Network, tmp_path: Path) -> None:
    shown = run(["bash", "-euo", "pipefail", "-c", example("bash", network)], network, tmp_path)
    *events, done = [line.removeprefix("data: ") for line in shown.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert chunks[-1]["usage"]["cost_nano"] > 0


def test_the_sdk_example_prints_an_answer_and_its_cost(network: Network, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example("python", network))
    shown = run([sys.executable, str(script)], network, tmp_path)
    assert re.search(r"\S.*\n[1-9]\d* tokens for 0\.\d*[1-9]\d* TON\n\Z", shown, re.DOTALL), shown


def test_the_key_is_where_the_readme_says(network: Network) -> None:
    assert "`make dev` prints the key" in README.read_text()
    assert network.api_key in network.dev.output.read_text()
    assert json.loads((network.dev.state.root / "dev.json").read_text())["api_key"] == network.api_key
    assert (network.dev.state.root / "dev.json").stat().st_mode & 0o077 == 0
