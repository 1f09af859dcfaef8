"""The verifying client against a real gateway and real agents with a simulated TEE."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from attestation.policy import load_policy
from cocoon_client import AsyncOpenAI, OpenAI
from cocoon_client.errors import AttestationUnavailableError, NotTrustedError
from cocoon_client.trust import Trust
from tests.fixtures_attested import FOREIGN_SEED, machine, policy_environment, worker_environment
from tests.fixtures_gateway import MODEL, Stack

NETWORK = -3
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}


@pytest.fixture
async def attested(stack: Stack, tmp_path: Path) -> Stack:
    await stack.start_gateway(upstream=False, **policy_environment(tmp_path))
    await stack.start_worker("one", stack.engine, **worker_environment())
    return stack


def trust(folder: Path, **changes: Any) -> Trust:
    raw = (folder / "p.toml").read_bytes()
    policy = load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())
    return Trust(**{"policy": policy, "network": NETWORK, "allow_simulated": True} | changes)


def client_of(stack: Stack, trusted: Trust) -> AsyncOpenAI:
    url = f"http://127.0.0.1:{stack.port}/v1"
    return AsyncOpenAI(base_url=url, api_key=stack.api_key, cocoon=trusted, max_retries=0, timeout=60)


async def test_an_openai_client_asks_workers_that_it_verified(attested: Stack, tmp_path: Path) -> None:
    async with client_of(attested, trust(tmp_path)) as client:
        whole = await client.chat.completions.create(**ASKED)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **ASKED, stream=True, stream_options={"include_usage": True}
            )
        ]
        kept = client.cocoon.newest

    said = whole.choices[0].message.content
    assert said
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said
    assert chunks[-1].usage is not None
    assert kept is not None
    assert kept.streamed
    # Charges are written a moment later, under the job id that the client chose.
    query = "SELECT 1 FROM usage WHERE job_id::text = $1"
    await attested.until_true(lambda: attested.rows(query, kept.receipt_id), bool)


async def test_completions_and_embeddings_are_sealed_too(stack: Stack, tmp_path: Path) -> None:
    stack.endpoints = ["chat", "completions", "embeddings"]
    await stack.start_gateway(upstream=False, **policy_environment(tmp_path))
    await stack.start_worker("one", stack.engine, **worker_environment())
    async with client_of(stack, trust(tmp_path)) as client:
        one = await client.completions.create(model=MODEL, prompt="hello", max_tokens=9)
        await client.completions.create(model=MODEL, prompt=["hello", "there"], max_tokens=9)
        bounded = await client.completions.create(model=MODEL, prompt="hello")
        stream = [
            chunk.choices[0].text
            async for chunk in await client.completions.create(model=MODEL, prompt="hello", stream=True)
            if chunk.choices
        ]
        vectors = await client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
        kept = client.cocoon.newest

    assert one.choices[0].text == "".join(stream) == bounded.choices[0].text
    assert len(vectors.data) == 2
    assert kept is not None
    assert kept.endpoint == "embeddings"
    assert all(b"hello" in request.body or b'"a"' in request.body for request in stack.engine.requests)


async def test_the_synchronous_client_does_the_same(attested: Stack, tmp_path: Path) -> None:
    import asyncio

    def ask() -> str | None:
        url = f"http://127.0.0.1:{attested.port}/v1"
        with OpenAI(base_url=url, api_key=attested.api_key, cocoon=trust(tmp_path), timeout=60) as client:
            return client.chat.completions.create(**ASKED).choices[0].message.content

    assert await asyncio.to_thread(ask)


async def test_simulated_workers_get_nothing_unless_they_are_allowed(attested: Stack, tmp_path: Path) -> None:
    async with client_of(attested, trust(tmp_path, allow_simulated=False)) as client:
        with pytest.raises(NotTrustedError, match="simulated"):
            await client.chat.completions.create(**ASKED)
    assert attested.engine.requests == []


async def test_workers_of_other_vendors_get_nothing(attested: Stack, tmp_path: Path) -> None:
    raw = machine(seed=FOREIGN_SEED).policy_toml(bind_manifest=False)
    policy = load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())
    async with client_of(attested, trust(tmp_path, policy=policy)) as client:
        with pytest.raises(NotTrustedError, match="foreign_root"):
            await client.chat.completions.create(**ASKED)
    assert attested.engine.requests == []


async def test_a_gateway_with_unattested_workers_only_gets_no_prompt(stack: Stack, tmp_path: Path) -> None:
    policy_environment(tmp_path)
    await stack.start_gateway(upstream=False)
    await stack.start_worker("bare", stack.engine)
    async with client_of(stack, trust(tmp_path)) as client:
        with pytest.raises(AttestationUnavailableError):
            await client.chat.completions.create(**ASKED)
    assert stack.engine.requests == []
