"""The drop-in clients against a gateway in the same process: what travels, what is refused and why."""

import base64
import json
import struct
import time
from typing import Any

import httpx
import msgspec
import openai
import pytest

from attestation.evidence import Evidence
from cocoon.errors import MalformedError
from cocoon.sealed import SealedHeader, key_tag, parse_request
from cocoon_client import AsyncOpenAI, OpenAI
from cocoon_client.errors import (
    AnswerRefusedError,
    AttestationUnavailableError,
    BundleUnavailableError,
    DowngradeError,
    NotSealableError,
    NotTrustedError,
    TrustError,
)
from cocoon_client.openai import AsyncSealingClient, SealingClient
from tests.fake_network import (
    API_KEY,
    BASE_URL,
    MANIFEST,
    MODEL,
    FakeGateway,
    FakeWorker,
    altered,
    error,
    machine,
    trust,
)

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "the plaintext"}], "max_tokens": 9}


def client_of(gateway: FakeGateway, **trusted: Any) -> OpenAI:
    http = SealingClient(trust(**trusted), transport=gateway)
    return OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http, max_retries=0)


def ask(gateway: FakeGateway, **trusted: Any) -> Any:
    with client_of(gateway, **trusted) as client:
        return client.chat.completions.create(**ASKED)


def streamed(gateway: FakeGateway) -> str:
    with client_of(gateway) as client:
        chunks = list(client.chat.completions.create(**ASKED, stream=True))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_request_is_sealed_answered_and_kept() -> None:
    gateway = FakeGateway()
    with client_of(gateway) as client:
        answer = client.chat.completions.create(**ASKED)
        kept = client.cocoon.newest

    assert answer.choices[0].message.content == "a secret answer"
    assert b"plaintext" not in gateway.wire
    (opened,) = gateway.workers[0].opened
    assert json.loads(opened.body)["messages"][0]["content"] == "the plaintext"
    assert kept is not None
    assert kept.request == opened.body
    assert b"a secret answer" in kept.answer


def test_the_clear_header_says_what_the_gateway_has_to_know_and_no_more() -> None:
    gateway = FakeGateway()
    ask(gateway)

    header = parse_request(gateway.requests[-1].content).header
    assert (header.model, header.n, header.stream, header.max_completion) == (MODEL, 1, False, 9)
    assert header.key_tag == key_tag(API_KEY)
    assert 0 < header.max_prompt <= 4096
    assert header.keyset_digests == (gateway.workers[0].digest,)


def test_a_stream_is_opened_as_it_arrives() -> None:
    assert streamed(FakeGateway()) == "a secret answer"


async def test_the_asynchronous_client_does_the_same() -> None:
    gateway = FakeGateway()
    http = AsyncSealingClient(trust(), transport=gateway)
    async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http) as client:
        answer = await client.chat.completions.create(**ASKED)
        chunks = [chunk async for chunk in await client.chat.completions.create(**ASKED, stream=True)]

    assert answer.choices[0].message.content == "a secret answer"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "a secret answer"
    assert gateway.attestations() == 1


def test_the_answer_names_what_was_verified_not_what_the_gateway_says() -> None:
    gateway = FakeGateway()
    with client_of(gateway) as client:
        raw = client.chat.completions.with_raw_response.create(**ASKED)
        kept = client.cocoon.newest

    assert kept is not None
    assert raw.headers["x-cocoon-receipt"] == kept.receipt_id
    assert raw.headers["x-cocoon-keyset"] == gateway.workers[0].digest.hex()
    assert raw.headers["x-cocoon-tee"] == "tdx-simulated"


def test_verified_workers_are_not_asked_for_evidence_again() -> None:
    gateway = FakeGateway()
    with client_of(gateway) as client:
        for _ in range(3):
            client.chat.completions.create(**ASKED)
    assert gateway.attestations() == 1


def test_at_most_eight_workers_can_open_a_request() -> None:
    gateway = FakeGateway(*(FakeWorker(f"worker-{number}") for number in range(10)))
    ask(gateway)
    header = parse_request(gateway.requests[-1].content).header
    assert len(set(header.keyset_digests)) == 8


def test_workers_that_left_are_replaced_by_newly_verified_ones() -> None:
    gateway = FakeGateway()
    gateway.refusing.append(error(503, "sealed_recipients_gone"))
    assert ask(gateway).choices[0].message.content == "a secret answer"
    assert gateway.attestations() == 2


def test_an_error_of_the_gateway_is_what_the_sdk_raises() -> None:
    gateway = FakeGateway()
    gateway.refusing.append(error(402, "insufficient_quota"))
    with pytest.raises(openai.APIStatusError) as caught:
        ask(gateway)
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_quota")


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_of_the_worker_is_an_error_in_its_own_sealed_words(stream: bool) -> None:
    gateway = FakeGateway()
    gateway.workers[0].refusal = b'{"error":{"message":"too long","type":"invalid_request_error","code":"c"}}'
    with client_of(gateway) as client, pytest.raises(openai.BadRequestError, match="too long"):
        client.chat.completions.create(**ASKED, stream=stream)


def test_options_of_a_call_keep_the_sealing() -> None:
    gateway = FakeGateway()
    with client_of(gateway) as client:
        client.with_options(timeout=5).chat.completions.create(**ASKED)
    assert b"plaintext" not in gateway.wire


def test_a_stream_that_is_left_closes_the_connection() -> None:
    gateway = FakeGateway()
    with client_of(gateway) as client, client.chat.completions.create(**ASKED, stream=True) as stream:
        next(iter(stream))
    assert gateway.closed == 1
    assert client.cocoon.newest is None


def test_an_answer_can_be_verified_by_its_own_client() -> None:
    gateway = FakeGateway()
    http = SealingClient(gateway.trust(), transport=gateway, asking=lambda: gateway)
    with OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http) as client:
        with pytest.raises(BundleUnavailableError, match="no answer yet"):
            client.verify()
        client.chat.completions.create(**ASKED)
        kept = client.cocoon.newest
        assert kept is not None
        with pytest.raises(BundleUnavailableError):
            client.verify(wait_s=0)
        gateway.bundle(kept)
        report = client.verify()
        gateway.bundle(kept)
        again = client.verify(kept.receipt_id)

    assert report.holds, report.in_words()
    assert report.step("log consistency").outcome == "not shown"
    assert again.step("log consistency").outcome == "held"


async def test_and_by_an_asynchronous_one() -> None:
    gateway = FakeGateway()
    http = AsyncSealingClient(gateway.trust(), transport=gateway, asking=lambda: gateway)
    async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http) as client:
        await client.chat.completions.create(**ASKED)
        assert client.cocoon.newest is not None
        gateway.bundle(client.cocoon.newest)
        assert (await client.verify()).holds


def test_a_gateway_that_shows_another_receipt_than_it_was_asked_for_is_found_out() -> None:
    gateway = FakeGateway()
    http = SealingClient(gateway.trust(), transport=gateway, asking=lambda: gateway)
    with OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http) as client:
        client.chat.completions.create(**ASKED)
        first = client.cocoon.newest
        client.chat.completions.create(**ASKED)
        second = client.cocoon.newest
        assert first is not None
        assert second is not None
        gateway.bundle(first)
        gateway.bundles[second.receipt_id] = gateway.bundles[first.receipt_id]
        with pytest.raises(MalformedError, match="another receipt"):
            client.verify()


# Attacks


def test_simulated_evidence_is_refused_unless_it_is_allowed() -> None:
    gateway = FakeGateway()
    with pytest.raises(NotTrustedError, match="simulated") as caught:
        ask(gateway, allow_simulated=False)
    assert caught.value.reasons == ("simulated_refused",)
    assert b"plaintext" not in gateway.wire


def test_simulated_evidence_never_counts_on_the_main_network() -> None:
    with pytest.raises(NotTrustedError) as caught:
        ask(FakeGateway(), network=-239)
    assert caught.value.reasons == ("simulated_refused",)


def test_evidence_for_another_nonce_is_refused() -> None:
    gateway = FakeGateway()
    old = gateway.workers[0].shown(b"old" + bytes(29))
    gateway.showing = lambda answer: {**answer, "workers": [old]}
    with pytest.raises(NotTrustedError) as caught:
        ask(gateway)
    assert caught.value.reasons == ("nonce_mismatch",)


def test_evidence_of_another_keyset_is_refused() -> None:
    gateway, foreign = FakeGateway(), FakeWorker("foreign")

    def swapped(answer: Any) -> Any:
        shown = answer["workers"][0]
        evidence = Evidence.decode(base64.b64decode(shown["evidence"]))
        forged = msgspec.structs.replace(evidence, keyset=foreign.raw).encode()
        return {**answer, "workers": [{**shown, "evidence": base64.b64encode(forged).decode()}]}

    gateway.showing = swapped
    with pytest.raises(NotTrustedError) as caught:
        ask(gateway)
    assert caught.value.reasons == ("keyset_mismatch",)


def test_a_worker_of_another_vendor_is_refused() -> None:
    gateway = FakeGateway(FakeWorker(seed=b"\x07" * 32))
    with pytest.raises(NotTrustedError) as caught:
        ask(gateway)
    assert caught.value.reasons == ("foreign_root",)


def test_an_unattested_worker_gets_nothing_even_beside_attested_ones() -> None:
    gateway = FakeGateway()
    bare = {"worker_id": "w", "name": "bare", "tee_type": "none", "evidence": None, "endorsements": None}
    gateway.showing = lambda answer: {**answer, "workers": [bare, *answer["workers"]]}
    ask(gateway)
    assert parse_request(gateway.requests[-1].content).header.keyset_digests == (gateway.workers[0].digest,)

    gateway.showing = lambda answer: {**answer, "workers": [bare]}
    with pytest.raises(NotTrustedError) as caught:
        ask(gateway)
    assert caught.value.reasons == ("evidence_malformed",)


def test_a_gateway_without_evidence_gets_no_prompt() -> None:
    gateway = FakeGateway()
    gateway.showing = lambda answer: {**answer, "workers": []}
    with pytest.raises(AttestationUnavailableError):
        ask(gateway)
    assert b"plaintext" not in gateway.wire


def test_a_worker_with_other_weights_than_the_pinned_ones_is_refused() -> None:
    with pytest.raises(NotTrustedError) as caught:
        ask(FakeGateway(), manifests={MODEL: b"p" * 32})
    assert caught.value.reasons == ("manifest_mismatch",)
    assert ask(FakeGateway(), manifests={MODEL: MANIFEST}).choices


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_a_plain_answer_to_a_sealed_request_is_refused(content_type: str) -> None:
    gateway = FakeGateway()
    gateway.refusing.append(httpx.Response(200, headers={"content-type": content_type}, content=b'{"choices":[]}'))
    with pytest.raises(DowngradeError, match="not sealed"):
        ask(gateway)


def test_a_call_that_cannot_be_sealed_is_not_made() -> None:
    gateway = FakeGateway()
    with client_of(gateway) as client:
        with pytest.raises(NotSealableError):
            client.responses.create(model=MODEL, input="the plaintext")
        with pytest.raises(NotSealableError):
            client.moderations.create(input="the plaintext")
    assert gateway.requests == []


def test_a_client_of_ours_without_trust_does_not_exist() -> None:
    with pytest.raises(TrustError):
        OpenAI(base_url=BASE_URL, api_key=API_KEY)
    with httpx.Client() as plain, pytest.raises(TrustError, match="plainly"):
        OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=plain)


@pytest.mark.parametrize(
    "changes", [{"model": "other"}, {"max_completion": 5000}, {"keyset_digests": (b"\x01" * 32,)}, {"stream": True}]
)
def test_a_gateway_that_changes_the_header_hands_the_worker_nothing_it_can_open(changes: dict[str, Any]) -> None:
    gateway = FakeGateway()
    refused: list[str] = []

    def swapped(raw: bytes) -> bytes:
        (length,) = struct.unpack_from(">I", raw, 4)
        header = altered(raw[8 : 8 + length], SealedHeader, **changes)
        forged = raw[:4] + struct.pack(">I", len(header)) + header + raw[8 + length :]
        from cocoon.sealed import UnopenableError, open_request

        worker = gateway.workers[0]
        try:
            open_request(parse_request(forged), worker.digest, worker.sealed_key)
        except UnopenableError as why:
            refused.append(str(why))
        return raw

    gateway.forwarding = swapped
    ask(gateway)
    assert len(refused) == 1


def test_a_gateway_that_adds_itself_to_the_recipients_is_found_out_by_the_worker_and_the_client() -> None:
    """It can seal a body of its own, but not one that the client's worker takes for the client's."""
    gateway, own = FakeGateway(), FakeWorker("gateway")
    gateway.answering = lambda parts: own_answer(own)

    def own_answer(worker: FakeWorker) -> list[bytes]:
        from cocoon.sealed import Recipient, seal_request
        from tests.sealing import RECIPIENTS, TERMS, counted

        sent = seal_request(
            TERMS, b'{"model":"smol"}', [Recipient(worker.digest, worker.sealed_key.public_key)], counted()
        )
        assert RECIPIENTS
        return worker.answer(parse_request(sent.raw))

    with pytest.raises(AnswerRefusedError, match="was not sealed for"):
        ask(gateway)


def cut(parts: list[bytes]) -> list[bytes]:
    return parts[:-1]


def doubled(parts: list[bytes]) -> list[bytes]:
    return [parts[0], parts[1], *parts[1:]]


def dropped(parts: list[bytes]) -> list[bytes]:
    return [parts[0], *parts[2:]]


def flipped(parts: list[bytes]) -> list[bytes]:
    return [parts[0], parts[1][:-1] + bytes((parts[1][-1] ^ 1,)), *parts[2:]]


def followed(parts: list[bytes]) -> list[bytes]:
    return [*parts, b"more"]


@pytest.mark.parametrize("spoil", [cut, doubled, dropped, flipped, followed])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_not_whole_and_untouched_is_refused(spoil: Any, stream: bool) -> None:
    gateway = FakeGateway()
    gateway.answering = spoil
    with pytest.raises(AnswerRefusedError, match="does not hold"):
        streamed(gateway) if stream else ask(gateway)


def test_a_stream_that_was_cut_off_never_shows_its_end_mark() -> None:
    gateway = FakeGateway()
    gateway.answering = cut
    seen: list[bytes] = []

    def read() -> None:
        headers = {"authorization": f"Bearer {API_KEY}"}
        body = {**ASKED, "stream": True}
        http = SealingClient(trust(), transport=gateway)
        with http.stream("POST", BASE_URL + "/chat/completions", json=body, headers=headers) as response:
            seen.extend(response.iter_bytes())

    with pytest.raises(AnswerRefusedError):
        read()
    assert b"secret" in b"".join(seen)
    assert b"[DONE]" not in b"".join(seen)


@pytest.mark.parametrize(
    ("what", "changes", "why"),
    [
        ("body_changes", {"c_req": bytes(32)}, "commits to another"),
        ("body_changes", {"c_resp": bytes(32)}, "commits to another"),
        ("body_changes", {"rolling": bytes(32)}, "another sealed request or answer"),
        ("body_changes", {"sealed_digest": bytes(32)}, "another sealed request or answer"),
        ("body_changes", {"keyset_digest": bytes(32)}, "of another keyset"),
        ("ticket_changes", {"request_digest": bytes(32)}, "for another request"),
        ("ticket_changes", {"max_completion": 1}, "more than its ticket allows"),
    ],
)
def test_a_receipt_for_something_else_is_refused(what: str, changes: dict[str, Any], why: str) -> None:
    gateway = FakeGateway()
    setattr(gateway.workers[0], what, changes)
    with pytest.raises(AnswerRefusedError, match=why):
        ask(gateway)


def test_a_receipt_by_another_workers_key_is_refused() -> None:
    gateway = FakeGateway()
    gateway.workers[0].receipt_key = FakeWorker().receipt_key
    with pytest.raises(AnswerRefusedError, match="does not verify"):
        ask(gateway)


def test_the_policy_of_the_tests_is_simulated() -> None:
    assert machine().policy_toml()
    assert trust().policy.simulated
    assert time.time() < 2**33
