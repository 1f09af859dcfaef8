"""From an answer to its proof: the receipt that a customer gets by the id in its answer, after restarts too."""

import asyncio
import base64
import hashlib
import json
import random
from typing import Any

import httpx
import pytest

from cocoon import canonical, receipt
from cocoon.bundle import ReceiptBundle
from cocoon.checkpoints import NoteVerifier, open_checkpoint
from cocoon.clock import SystemClock
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.ids import new_job_id
from cocoon.merkle import verify_consistency, verify_inclusion
from cocoon.receipt import Commitment, ReceiptBody, ReceiptHead
from cocoon.signed_batch import Countersignature, head_digest, open_batch, require_leaf
from cocoon.ticket import Ticket
from cocoon.transparency import LeafType, entry_of, receipt_envelope
from gateway.signing import development_key
from tests.fixtures_gateway import NETWORK_SECRET, Stack, chat
from tests.scripted_engine import ScriptedEngine

PATH = "/v1/chat/completions"
GLOBAL_ID = -3
LOG = "cocoon-log/-3"


def verified(bundle: ReceiptBundle, numerator: int, log_key: NoteVerifier) -> ReceiptBody:
    """Every part against the operator's key and the log's, and nothing else; the body."""
    clock = SystemClock()
    operator = development_key(bytes.fromhex(NETWORK_SECRET), global_id=GLOBAL_ID, clock=clock).operator_key
    assert bundle.keyset is not None
    keyset = Keyset.decode(bundle.keyset)
    body = canonical.decode(bundle.body, ReceiptBody)
    head = ReceiptHead.decode(bundle.head)
    receipt.verify(keyset.receipt_pk, bundle.head, bundle.signature)
    assert body.keyset_digest == keyset_digest(bundle.keyset)
    assert head.body_sha256 == hashlib.sha256(bundle.body).digest()
    assert head.ticket_sha256 == hashlib.sha256(bundle.ticket).digest()
    assert str(Ticket.decode(bundle.ticket).job_id) == bundle.receipt_id == body.receipt_id
    assert bundle.ticket_signed is not None
    assert bundle.countersigned is not None
    now_s = clock.now().timestamp()
    signed = open_batch(bundle.ticket_signed.batch, operator_key=operator, global_id=GLOBAL_ID, now_s=now_s)
    require_leaf(signed, bundle.ticket, bundle.ticket_signed.proof)
    charge = bundle.countersigned
    signed = open_batch(charge.signed.batch, operator_key=operator, global_id=GLOBAL_ID, now_s=now_s)
    require_leaf(signed, charge.leaf, charge.signed.proof)
    said = Countersignature.decode(charge.leaf)
    assert (said.head_sha256, said.charge_numerator) == (head_digest(bundle.head), numerator)
    assert said.include_by > now_s
    included(bundle, keyset.receipt_pk, log_key)
    return body


def included(bundle: ReceiptBundle, receipt_pk: bytes, log_key: NoteVerifier) -> None:
    assert bundle.log is not None
    checkpoint = open_checkpoint(bundle.log.checkpoint, log_key, origin=LOG)
    assert checkpoint.size == bundle.log.size
    entry = entry_of(LeafType.RECEIPT, receipt_envelope(receipt_pk, bundle.head, bundle.signature))
    verify_inclusion(entry.encode(), bundle.log.index, checkpoint.size, bundle.log.path, checkpoint.root)


async def logged(stack: Stack, client: httpx.AsyncClient, job: str) -> ReceiptBundle:
    """The bundle once its receipt is in the log; before, it is announced with 202."""
    seen: list[httpx.Response] = []

    def judge(answer: httpx.Response) -> bool:
        seen.append(answer)
        return answer.status_code == 200 and answer.json()["log"] is not None

    answer = await stack.until_true(lambda: client.get(f"/v1/receipts/{job}"), judge)
    for early in seen:
        assert early.status_code in {200, 202}, early.text
        if early.status_code == 202:
            assert int(early.headers["retry-after"]) >= 1
            assert early.json() == early.json() | {"object": "receipt.pending", "id": job, "status": "pending"}
    return ReceiptBundle.decode(answer.content)


async def asked(client: httpx.AsyncClient, **members: Any) -> httpx.Response:
    answer = await client.post(PATH, json=chat(**members), headers={"connection": "close"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-cocoon-receipt"] == answer.headers["x-request-id"]
    return answer


async def test_every_answer_of_an_agent_has_a_receipt_that_proves_itself(stack: Stack) -> None:
    await stack.start_gateway(processes=2, upstream=False)
    foreign = await stack.new_key()
    async with ScriptedEngine() as engine, stack.client() as client, stack.client(foreign) as other:
        await stack.start_worker("w", engine, COCOON_RECEIPT_GRACE_S="1.5")
        answers = [await asked(client), await asked(client, stream=True)]
        jobs = [answer.headers["x-cocoon-receipt"] for answer in answers]
        log_key = NoteVerifier.parse((await client.get("/v1/log/key")).text.strip())
        charged = {str(row["job_id"]): int(row["numerator"]) for row in await stack.usage(2)}
        bundles = [await logged(stack, client, job) for job in jobs]
        bodies = [verified(bundle, charged[job], log_key) for bundle, job in zip(bundles, jobs, strict=True)]

        # The commitment opens with the salt of the answer's header, which the gateway does not keep.
        commitment = Commitment(canonical.from_base64url(answers[0].headers["x-cocoon-salt"]))
        commitment.request(answers[0].request.content)
        assert bodies[0].c_req == commitment.c_req
        assert bundles[0].evidence is None

        alias = await client.get(f"/v1/signature/{jobs[0]}")
        assert ReceiptBundle.decode(alias.content).head == bundles[0].head
        proof = (await client.get("/v1/log/proof", params={"receipt": jobs[0]})).json()
        assert bundles[0].log is not None
        checkpoint = open_checkpoint(proof["checkpoint"], log_key, origin=LOG)
        path = [base64.b64decode(one) for one in proof["path"]]
        verify_inclusion(bytes.fromhex(proof["leaf"]), bundles[0].log.index, proof["size"], path, checkpoint.root)
        for path in (f"/v1/receipts/{jobs[0]}", f"/v1/signature/{jobs[0]}", f"/v1/log/proof?receipt={jobs[0]}"):
            answer = await other.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "receipt_not_found"), path
            anonymous = await client.get(path, headers={"authorization": ""})
            assert anonymous.status_code == 401, path

        # After a restart of every gateway the same receipts are there, in a log that only grew.
        assert bundles[0].log is not None
        old = open_checkpoint(bundles[0].log.checkpoint, log_key, origin=LOG)
        assert stack.gateway is not None
        stack.gateway.terminate()
        await asyncio.to_thread(stack.gateway.wait)
        await stack.start_gateway(processes=1, upstream=False)
        again = await logged(stack, client, jobs[0])
        assert (again.head, again.ticket_signed, again.countersigned) == (
            bundles[0].head, bundles[0].ticket_signed, bundles[0].countersigned,
        )  # fmt: skip
        await stack.until_workers(1)
        third = (await asked(client)).headers["x-cocoon-receipt"]
        new = await logged(stack, client, third)
        assert new.log is not None
        checkpoint = open_checkpoint(new.log.checkpoint, log_key, origin=LOG)
        grown = (await client.get("/v1/log/consistency", params={"from": old.size, "to": checkpoint.size})).json()
        path = [base64.b64decode(one) for one in grown["path"]]
        verify_consistency(old.size, checkpoint.size, path, old.root, checkpoint.root)
        await must_fail(bundles[0], bundles[1], log_key)


async def must_fail(bundle: ReceiptBundle, other: ReceiptBundle, log_key: NoteVerifier) -> None:
    """Attacks on a saved bundle."""
    document = json.loads(bundle.encode())
    for part in ("head", "signature"):
        raw = bytearray(base64.b64decode(document[part]))
        raw[-1] ^= 1
        altered = ReceiptBundle.decode(json.dumps(document | {part: base64.b64encode(raw).decode()}).encode())
        assert altered.keyset is not None
        with pytest.raises(MalformedError, match="does not lead to the root"):
            included(altered, Keyset.decode(altered.keyset).receipt_pk, log_key)
        with pytest.raises(MalformedError, match="does not verify"):
            receipt.verify(Keyset.decode(altered.keyset).receipt_pk, altered.head, altered.signature)
    # Another request's receipt, put under this one's place in the log.
    swapped = ReceiptBundle.decode(json.dumps(document | {"head": base64.b64encode(other.head).decode()}).encode())
    assert swapped.keyset is not None
    with pytest.raises(MalformedError, match="does not lead to the root"):
        included(swapped, Keyset.decode(swapped.keyset).receipt_pk, log_key)
    assert ReceiptHead.decode(swapped.head).ticket_sha256 != hashlib.sha256(swapped.ticket).digest()
    # A checkpoint that the log did not sign.
    forged = document["log"]["checkpoint"].replace(
        f"\n{document['log']['size']}\n", f"\n{document['log']['size'] + 1}\n"
    )
    with pytest.raises(MalformedError, match="does not verify"):
        open_checkpoint(forged, log_key, origin=LOG)


async def test_what_has_no_receipt_is_said_in_words(gateway: Stack) -> None:
    async with gateway.client() as client:
        answer = await client.post(PATH, json=chat())
        assert answer.headers["x-cocoon-evidence"] == "none"
        await gateway.usage()
        job = answer.headers["x-request-id"]
        without = await client.get(f"/v1/receipts/{job}")
        assert (without.status_code, "without an agent" in without.text) == (404, True)
        for unknown in (
            "0190d6a8-0000-7000-8000-000000000000",
            "6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b",
            "x",
            job.upper(),
        ):
            assert (await client.get(f"/v1/receipts/{unknown}")).status_code == 404
        # What began just now may still be answered.
        early = await client.get(f"/v1/receipts/{new_job_id(SystemClock(), random.SystemRandom())}")
        assert (early.status_code, early.headers["retry-after"]) == (202, "2")
        assert early.json()["object"] == "receipt.pending"
        assert (await client.get("/v1/log/proof?receipt=6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b")).status_code == 404
        assert (await client.get(f"/v1/log/proof?receipt={job}&leaf=00")).status_code == 400
