"""The bound of a prompt against the real tokenizer and template of the development model, without a generation."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.pricing import ModelOffer
from cocoon.endpoints import CHAT
from cocoon.money import Price, ceiling
from cocoon.usage import TokenUsage
from gateway.admission import bound, parse_request
from workers.agent.engines.xllamacpp import bundled_model
from workers.agent.engines.xllamacpp_server import ServerConfig

pytest.importorskip("xllamacpp")

CONTEXT = 4096
KEY = "engine-key"
OFFER = ModelOffer(
    model="m", context_tokens=2**31 - 1, default_max_completion=16, template_tokens_per_message=16, base_tokens=64,
    price=Price(version=1, prompt=1_000_003, cached=500_000, completion=3_000_001),
)  # fmt: skip
Count = Callable[[dict[str, Any]], int]


@pytest.fixture(scope="module")
def count() -> Iterator[Count]:
    """How many tokens the engine makes of a request's prompt."""
    config = ServerConfig(
        model_path=bundled_model(), served_model="m", api_key=KEY, capacity=1, context_tokens=CONTEXT, threads=1,
        batch_tokens=64,
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.agent.engines.xllamacpp_server"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(config))
        process.stdin.close()
        address = process.stdout.readline().decode().strip()
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=address, headers=headers, trust_env=False, timeout=30) as client:

            def counted(body: dict[str, Any]) -> int:
                shown = client.post("/apply-template", json=body)
                assert shown.status_code == 200, shown.text
                asked = {"content": shown.json()["prompt"], "add_special": True, "parse_special": True}
                return len(client.post("/tokenize", json=asked).json()["tokens"])

            yield counted
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


TEXT = st.text(max_size=300) | st.text(st.sampled_from("\u0000\u00e9\U0001f600\u4e2d \n<|im_end|>"), max_size=100)
CONTENT = TEXT | st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXT), min_size=1, max_size=3)
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "system"]), CONTENT)
    | st.builds(lambda content: {"role": "assistant", "content": content}, TEXT),
    min_size=1, max_size=6,
)  # fmt: skip
TOOL = st.builds(
    lambda name, text: {
        "type": "function",
        "function": {"name": name, "description": text, "parameters": {"type": "object", "properties": {}}},
    },
    st.from_regex(r"[a-z]{1,8}", fullmatch=True), TEXT,
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(messages=MESSAGES, tools=st.lists(TOOL, max_size=2), escaped=st.booleans())
def test_no_prompt_of_text_and_tools_has_more_tokens_than_its_bound_and_costs_more_than_its_hold(
    count: Count, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, escaped: bool
) -> None:
    messages = [*messages, {"role": "user", "content": "go on"}]
    body = {"model": "m", "messages": messages} | ({"tools": tools} if tools else {})
    # The most compact writing is the one that bytes bound least well.
    raw = json.dumps(body, ensure_ascii=escaped, separators=(",", ":")).encode(errors="surrogatepass")
    bounds = bound(parse_request(CHAT, raw), raw, OFFER)
    tokens = count(json.loads(raw))
    assert tokens <= bounds.prompt, (tokens, bounds.prompt)
    held = ceiling(OFFER.price.numerator(TokenUsage(prompt=bounds.prompt, completion=bounds.completion)))
    charged = ceiling(OFFER.price.numerator(TokenUsage(prompt=tokens, completion=bounds.completion)))
    assert charged.nano <= held.nano


def test_every_single_byte_can_be_a_token_and_the_bound_still_holds(count: Count) -> None:
    for character in ("\U0001f9ff", "\u0e01", "\u2603", "\x01", "\u07ff"):
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": character * 500}]}
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        assert count(body) <= bound(parse_request(CHAT, raw), raw, OFFER).prompt
