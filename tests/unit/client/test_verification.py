"""`verify` on a whole proof, and on proofs of which one thing was changed: each is found at its own step."""

import functools
import hashlib
import random
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.evidence import Evidence
from cocoon.bundle import Batched, Inclusion, ReceiptBundle
from cocoon.errors import MalformedError
from cocoon.receipt import ReceiptBody, body_digest
from cocoon.signed_batch import Countersignature
from cocoon_client.openai import SealingClient
from cocoon_client.opening import Opening
from cocoon_client.verification.log import Growth
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.steps import Report
from cocoon_client.verification.walk import verify
from tests.fake_network import API_KEY, BASE_URL, MANIFEST, MODEL, FakeGateway, FakeWorker, altered
from tests.signing_values import Operator

NAMES = [
    "same receipt", "receipt signature", "receipt key", "keyset digest", "ticket", "countersignature", "evidence",
    "freshness", "beacon", "manifest", "stake", "commitments", "sealing", "log inclusion", "log consistency", "anchor",
]  # fmt: skip


class Scene(msgspec.Struct):
    gateway: FakeGateway
    bundle: ReceiptBundle
    opening: Opening

    def report(self, opening: Opening | None = None, **bundle: Any) -> Report:
        changed = msgspec.structs.replace(self.bundle, **bundle)
        return verify(Proof(bundle=changed, opening=opening or self.opening), self.gateway.trust())

    def opened(self, **changes: Any) -> Opening:
        return msgspec.structs.replace(self.opening, **changes)


def asked(gateway: FakeGateway, *, stream: bool = True) -> Opening:
    client = SealingClient(gateway.trust(), transport=gateway)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a prompt"}], "stream": stream}
    answer = client.post(BASE_URL + "/chat/completions", json=body, headers={"authorization": f"Bearer {API_KEY}"})
    assert answer.status_code == 200
    kept = client.kept.newest
    assert kept is not None
    return kept


@functools.cache
def scene() -> Scene:
    gateway = FakeGateway()
    opening = asked(gateway)
    return Scene(gateway, gateway.bundle(opening), opening)


def only_failure(report: Report) -> tuple[str, str]:
    """The one step that failed, and its sentence."""
    assert not report.holds
    (step,) = [step for step in report.steps if step.outcome == "failed"]
    return step.name, step.sentence


def failures(report: Report) -> set[str]:
    assert not report.holds
    return {step.name for step in report.steps if step.outcome == "failed"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_whole_proof_holds_and_every_step_says_so(stream: bool) -> None:
    gateway = FakeGateway()
    opening = asked(gateway, stream=stream)
    report = verify(Proof(bundle=gateway.bundle(opening), opening=opening), gateway.trust())

    assert report.holds, report.in_words()
    assert [step.name for step in report.steps] == NAMES
    unasked = {"log consistency", "anchor", "beacon", "stake"}
    assert {step.name for step in report.steps if step.outcome != "held"} == unasked
    assert report.simulated
    assert "SIMULATED" in report.in_words()


def test_a_proof_survives_its_file() -> None:
    proof = Proof(bundle=scene().bundle, opening=scene().opening)
    read = Proof.decode(proof.encode())
    assert read == proof
    assert verify(read, scene().gateway.trust()).holds


def test_a_bare_bundle_can_be_read_and_says_what_it_cannot_show() -> None:
    proof = Proof.decode(scene().bundle.encode())
    report = verify(proof, scene().gateway.trust())
    assert not report.holds
    assert report.step("commitments").outcome == "not shown"
    assert report.step("evidence").outcome == "held"
    assert not [step for step in report.steps if step.outcome == "failed"], report.in_words()


def test_a_file_that_is_neither_is_malformed() -> None:
    with pytest.raises(MalformedError):
        Proof.decode(b"{}")


def test_what_is_not_there_is_not_shown_and_never_held() -> None:
    report = scene().report(
        ticket_signed=None, countersigned=None, keyset=scene().bundle.keyset, log=None, evidence=None, manifest=None
    )
    missing = {step.name for step in report.steps if step.outcome == "not shown" and step.required}
    assert missing == {"ticket", "countersignature", "log inclusion"}
    assert not report.holds


def test_without_pinned_keys_nothing_that_needs_them_is_shown() -> None:
    trust = msgspec.structs.replace(scene().gateway.trust(), operator_key=b"", log_key="")
    report = verify(Proof(bundle=scene().bundle, opening=scene().opening), trust)
    missing = {step.name for step in report.steps if step.outcome == "not shown" and step.required}
    assert missing == {"ticket", "countersignature", "log inclusion"}


# Attacks


def test_simulated_evidence_fails_unless_it_was_allowed() -> None:
    trust = msgspec.structs.replace(scene().gateway.trust(), allow_simulated=False)
    report = verify(Proof(bundle=scene().bundle, opening=scene().opening), trust)
    name, sentence = only_failure(report)
    assert name == "evidence"
    assert "simulated" in sentence
    assert "SIMULATED" in report.in_words()


@pytest.mark.parametrize("at", range(0, 124, 9))
def test_a_head_with_a_flipped_bit_is_refused(at: int) -> None:
    head = bytearray(scene().bundle.head)
    head[at] ^= 1
    assert not scene().report(head=bytes(head)).holds


def test_an_altered_body_is_refused() -> None:
    body = altered(scene().bundle.body, ReceiptBody, finish_reason="length")
    assert {"same receipt", "receipt signature"} <= failures(scene().report(body=body))


def test_a_receipt_for_another_request_is_refused() -> None:
    other = asked(scene().gateway)
    report = scene().report(opening=other)
    assert {"same receipt", "sealing", "commitments"} <= failures(report)


def test_a_kept_request_or_answer_that_is_not_the_answered_one_is_refused() -> None:
    one = only_failure(scene().report(opening=scene().opened(request=b"{}")))
    assert one == ("commitments", "the receipt commits to another request than the one that was kept")
    two = only_failure(
        scene().report(opening=scene().opened(answer=scene().opening.answer.replace(b"secret", b"public")))
    )
    assert two == ("commitments", "the receipt commits to another answer than the one that was kept")
    three = only_failure(scene().report(opening=scene().opened(rolling=bytes(32))))
    assert three[0] == "sealing"
    four = only_failure(scene().report(opening=scene().opened(sealed_header=b"{}")))
    assert four[0] == "sealing"


def test_a_second_receipt_for_one_answer_is_found_out() -> None:
    """The worker signs another receipt after the answer: it verifies, and it is not the one that came with it."""
    worker = scene().gateway.workers[0]
    head = bytearray(scene().bundle.head)
    head[-1] += 1
    report = scene().report(head=bytes(head), signature=worker.receipt_key.sign(bytes(head)))
    assert "same receipt" in failures(report)
    assert report.step("receipt signature").outcome == "held"


def test_another_workers_key_is_refused() -> None:
    foreign = FakeWorker("foreign")
    signature = foreign.receipt_key.sign(scene().bundle.head)
    report = scene().report(signature=signature)
    assert "receipt signature" in failures(report)
    report = scene().report(signature=signature, keyset=foreign.raw)
    assert {"receipt signature", "evidence"} <= failures(report)


def test_evidence_of_another_keyset_is_refused() -> None:
    foreign = FakeWorker("foreign")
    own = scene().opened(evidence=foreign.evidence(scene().opening.nonce).encode())
    assert {"keyset digest", "evidence", "receipt signature"} <= failures(scene().report(opening=own))

    forged = msgspec.structs.replace(Evidence.decode(scene().opening.evidence), keyset=foreign.raw).encode()
    report = scene().report(opening=scene().opened(evidence=forged), keyset=foreign.raw)
    assert {"keyset digest", "evidence"} <= failures(report)


def test_evidence_for_another_nonce_is_stale() -> None:
    name, sentence = only_failure(scene().report(opening=scene().opened(nonce=b"x" * 32)))
    assert name == "freshness"
    assert "nonce_mismatch" in sentence


def test_evidence_that_is_judged_at_another_time_than_its_own_is_refused() -> None:
    late = scene().opened(judged_at=scene().opening.judged_at + 7200)
    report = scene().report(opening=late)
    assert "evidence" in failures(report)


def test_an_answer_outside_of_its_keysets_life_is_refused() -> None:
    worker = FakeWorker()
    worker.body_changes = {"started_ms": 1, "ended_ms": 2}
    gateway = FakeGateway(worker)
    opening = asked(gateway)
    report = verify(Proof(bundle=gateway.bundle(opening), opening=opening), gateway.trust())
    assert {"receipt key", "ticket", "countersignature"} == failures(report)


@pytest.mark.parametrize(
    ("part", "changes", "why"),
    [
        ("charge_numerator", 10**12, "more than the ticket's maxima"),
        ("head_sha256", bytes(32), "another receipt"),
        ("global_id", -239, "another receipt"),
    ],
)
def test_a_countersignature_for_something_else_is_refused(part: str, changes: Any, why: str) -> None:
    scenery = scene()
    assert scenery.bundle.countersigned is not None
    leaf = msgspec.structs.replace(Countersignature.decode(scenery.bundle.countersigned.leaf), **{part: changes})
    batch, (proof,) = scenery.gateway.operator.signed([leaf.encode()])
    shown = msgspec.structs.replace(scenery.bundle.countersigned, leaf=leaf.encode(), signed=Batched(batch, proof))
    name, sentence = only_failure(scenery.report(countersigned=shown))
    assert name == "countersignature"
    assert why in sentence


def test_an_altered_countersignature_is_refused() -> None:
    shown = scene().bundle.countersigned
    assert shown is not None
    leaf = msgspec.structs.replace(Countersignature.decode(shown.leaf), charge_numerator=1).encode()
    name, sentence = only_failure(scene().report(countersigned=msgspec.structs.replace(shown, leaf=leaf)))
    assert name == "countersignature"
    assert "does not lead to the root" in sentence


def test_a_ticket_signed_by_another_operator_or_not_delegated_is_refused() -> None:
    other = Operator(scene().gateway.operator.global_id)
    batch, (proof,) = other.signed([scene().bundle.ticket])
    name, sentence = only_failure(scene().report(ticket_signed=Batched(batch, proof)))
    assert (name, "another operator" in sentence) == ("ticket", True)

    batch, (proof,) = scene().gateway.operator.signed([scene().bundle.ticket], key=Ed25519PrivateKey.generate())
    name, _ = only_failure(scene().report(ticket_signed=Batched(batch, proof)))
    assert name == "ticket"


def test_a_receipt_under_another_ticket_is_refused() -> None:
    ticket = bytearray(scene().bundle.ticket)
    ticket[80] ^= 1
    assert {"same receipt", "ticket"} <= failures(scene().report(ticket=bytes(ticket)))


def inclusion_with(**changes: Any) -> Inclusion:
    logged = scene().bundle.log
    assert logged is not None
    return msgspec.structs.replace(logged, **changes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: inclusion_with(index=0),
        lambda: inclusion_with(size=inclusion_with().size + 1),
        lambda: inclusion_with(path=(bytes(32),) * len(inclusion_with().path)),
        lambda: inclusion_with(path=()),
        lambda: inclusion_with(checkpoint=FakeGateway().log.checkpoint()),
        lambda: inclusion_with(checkpoint=inclusion_with().checkpoint.replace("log.test\n", "other.test\n", 1)),
    ],
)
def test_a_wrong_place_in_the_log_is_refused(spoil: Callable[[], Inclusion]) -> None:
    name, _ = only_failure(scene().report(log=spoil()))
    assert name == "log inclusion"


def test_a_log_that_grew_is_consistent_and_one_that_was_rewritten_is_not() -> None:
    gateway = FakeGateway()
    opening = asked(gateway)
    seen, before = gateway.log.checkpoint(), gateway.log.tree.size
    proof = Proof(bundle=gateway.bundle(opening), opening=opening)

    grown = verify(proof, gateway.trust(), Growth(seen, gateway.log.tree.consistency(before)))
    assert grown.holds, grown.in_words()
    assert grown.step("log consistency").outcome == "held"

    gateway.log.entries[0] = hashlib.sha256(b"rewritten").digest() + b"\x01"
    proof = Proof(bundle=gateway.bundle(opening), opening=opening)
    rewritten = verify(proof, gateway.trust(), Growth(seen, gateway.log.tree.consistency(before)))
    assert only_failure(rewritten)[0] == "log consistency"


def test_a_log_that_shrank_has_to_show_that_it_is_the_same_one() -> None:
    gateway = FakeGateway()
    opening = asked(gateway)
    bundle = gateway.bundle(opening)
    size = gateway.log.tree.size
    gateway.log.append(b"later")
    growth = Growth(gateway.log.checkpoint(), gateway.log.tree.consistency(size))
    proof = Proof(bundle=bundle, opening=opening)
    assert verify(proof, gateway.trust(), growth).step("log consistency").outcome == "held"
    assert only_failure(verify(proof, gateway.trust(), Growth(growth.seen, ())))[0] == "log consistency"


def test_other_weights_than_the_pinned_ones_are_refused() -> None:
    trust = scene().gateway.trust(manifests={MODEL: b"p" * 32})
    name, _ = only_failure(verify(Proof(bundle=scene().bundle, opening=scene().opening), trust))
    assert name == "manifest"
    trust = scene().gateway.trust(manifests={MODEL: MANIFEST})
    assert verify(Proof(bundle=scene().bundle, opening=scene().opening), trust).holds


def test_a_receipt_that_says_plain_for_what_was_sealed_is_refused() -> None:
    worker = FakeWorker()
    body = altered(scene().bundle.body, ReceiptBody, seal="plain", sealed_digest=None, rolling=None)
    assert body_digest(body) != body_digest(scene().bundle.body)
    assert worker.raw != scene().bundle.keyset
    assert "sealing" in failures(scene().report(body=body))


def test_a_receipt_of_another_network_is_refused() -> None:
    trust = scene().gateway.trust(network=-217)
    assert "ticket" in failures(verify(Proof(bundle=scene().bundle, opening=scene().opening), trust))


def test_the_report_is_json_for_programs() -> None:
    report = verify(Proof(bundle=scene().bundle, opening=scene().opening), scene().gateway.trust())
    read = msgspec.json.decode(report.encode())
    assert (read["holds"], read["simulated"], [step["name"] for step in read["steps"]]) == (True, True, NAMES)
    assert httpx.Response(200, content=report.encode()).json() == read


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes((raw[at] ^ 0x10,)) + raw[at + 1 :]


BUNDLED = ("head", "signature", "body", "ticket", "keyset")
KEPT = (
    "salt", "request", "answer", "sealed_header", "rolling", "nonce", "evidence", "endorsements", "ticket", "head",
    "body", "signature",
)  # fmt: skip


@pytest.mark.parametrize("part", BUNDLED)
def test_no_bit_of_a_bundle_can_be_changed(part: str) -> None:
    raw = getattr(scene().bundle, part)
    for at in random.Random(part).sample(range(len(raw)), 12):
        changed: dict[str, Any] = {part: flipped(raw, at)}
        assert not scene().report(**changed).holds, at


@pytest.mark.parametrize("part", KEPT)
def test_no_bit_of_what_was_kept_can_be_changed(part: str) -> None:
    raw = getattr(scene().opening, part)
    seldom = part == "endorsements"  # it holds documents that are not needed for a TDX quote
    # The event that reports usage is in no commitment: the signed head has the counts.
    end = raw.rindex(b"data: {") if part == "answer" else len(raw)
    for at in random.Random(part).sample(range(end), 12):
        report = scene().report(opening=scene().opened(**{part: flipped(raw, at)}))
        assert seldom or not report.holds, at


@pytest.mark.parametrize("seconds", [0, 2**53 - 1])
def test_an_impossible_time_is_a_failure_and_no_crash(seconds: int) -> None:
    assert not scene().report(opening=scene().opened(judged_at=seconds)).holds


def test_a_receipt_that_is_not_in_the_log_yet_says_what_was_promised() -> None:
    signed = scene().bundle.countersigned
    assert signed is not None
    leaf = msgspec.structs.replace(Countersignature.decode(signed.leaf), include_by=4_000_000_000)
    batch, (proof,) = scene().gateway.operator.signed([leaf.encode()])
    shown = msgspec.structs.replace(signed, leaf=leaf.encode(), signed=Batched(batch, proof))
    step = scene().report(countersigned=shown, log=None).step("log inclusion")
    assert (step.outcome, "2096-10-02" in step.sentence) == ("not shown", True)
