"""The README's verifying example against the development network and its real model."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.dev_network import MODEL, Network, clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

README = Path(__file__).parents[2] / "README.md"
COCOON = [sys.executable, "-m", "cli.main"]
RUN_S_MAX = 120


def trusted(network: Network) -> list[str]:
    return ["--trust", str(network.dev.state.root / "trust.toml")]


@pytest.fixture
def proxy(network: Network, tmp_path: Path) -> Iterator[str]:
    """The base URL of `cocoon proxy` before the network, with its folder at `tmp_path`."""
    command = [
        *COCOON, "proxy", "--base-url", network.base_url, "--port", "0", "--state", str(tmp_path), "--allow-simulated",
        *trusted(network),
    ]  # fmt: skip
    environment = {**clean_environment(), "COCOON_API_KEY": network.api_key}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield line.split()[2].rstrip(",")
        finally:
            process.terminate()
            process.wait(60)


def verify(network: Network, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COCOON, "verify", *trusted(network), *arguments]
    return subprocess.run(
        command, env={**clean_environment(), "COCOON_API_KEY": network.api_key},
        timeout=RUN_S_MAX, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_answer_through_the_proxy_is_verified_and_verified_again_offline(
    network: Network, proxy: str, tmp_path: Path
) -> None:
    with openai.OpenAI(base_url=proxy, api_key=network.api_key, max_retries=0, timeout=120) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "What is a cocoon?"}], max_tokens=16
        )
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-cocoon-tee"] == "tdx-simulated"
    receipt_id = raw.headers["x-cocoon-receipt"]

    saved = tmp_path / "proof.json"
    asked = verify(
        network, receipt_id, "--base-url", network.base_url, "--state", str(tmp_path), "--wait", "60",
        "--allow-simulated", "--save", str(saved),
    )  # fmt: skip
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "VERIFIED" in asked.stdout

    elsewhere = ["--state", str(tmp_path / "elsewhere")]
    offline = verify(network, str(saved), "--allow-simulated", "--json", *elsewhere)
    report = json.loads(offline.stdout)
    assert (offline.returncode, report["holds"], report["simulated"]) == (0, True, True), offline.stdout
    missing = {step["name"] for step in report["steps"] if step["outcome"] != "held"}
    assert missing <= {"log consistency", "anchor", "manifest", "beacon"}

    # With a liteserver of one's own the chain answers for the bond, and for the block where the agent had heard of one.
    liteservers = str(network.dev.state.root / "chain" / "liteserver.json")
    looked = verify(network, str(saved), "--allow-simulated", "--json", "--liteservers", liteservers, *elsewhere)
    steps = {step["name"]: step for step in json.loads(looked.stdout)["steps"]}
    assert (looked.returncode, steps["stake"]["outcome"]) == (0, "held"), looked.stdout
    assert "are bonded" in steps["stake"]["sentence"]
    assert steps["beacon"]["outcome"] == "held" or "names no block" in steps["beacon"]["sentence"]

    unallowed = verify(network, str(saved), *elsewhere)
    assert unallowed.returncode == 1
    assert "failed     evidence" in unallowed.stdout


def test_the_sdk_example_prints_an_answer_and_what_its_receipt_proves(network: Network, tmp_path: Path) -> None:
    [block] = re.findall(r"^```py\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    folder = network.dev.state.root
    block = block.replace("http://127.0.0.1:8080/v1", network.base_url).replace(".cocoon/", f"{folder}/")
    script = tmp_path / "example.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={**clean_environment(), "COCOON_API_KEY": network.api_key},
        timeout=RUN_S_MAX, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("VERIFIED: every required step holds.\n"), done.stdout
