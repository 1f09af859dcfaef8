"""From a customer's request to evidence on the worker's disk that convinces whoever knows the operator's key."""

import hashlib
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import msgspec

from cocoon.clock import SystemClock
from cocoon.receipt import ReceiptHead
from cocoon.signatures import SIGNATURES_PATH, SignaturesAnswer, SignaturesRequest, UnsignedTicket
from cocoon.signed_batch import Countersignature, Proof, SignedBatch, head_digest, open_batch, require_leaf
from cocoon.ticket import Ticket
from gateway.signing import development_key
from tests.fixtures_gateway import NETWORK_SECRET, Stack, chat
from tests.scripted_engine import ScriptedEngine
from workers.tokens import WorkerTokens

GLOBAL_ID = -3
SIGNED = """
SELECT s.ticket_sha256, s.kind, s.leaf, s.leaf_index, s.path, b.head, b.signature, b.delegation
FROM signatures AS s INNER JOIN batches AS b ON s.batch_head = b.head
"""


def evidence(folder: Path) -> dict[tuple[bytes, str], bytes]:
    """Leaves by ticket digest and kind, each verified with the operator's public key and nothing else."""
    clock = SystemClock()
    operator = development_key(bytes.fromhex(NETWORK_SECRET), global_id=GLOBAL_ID, clock=clock).operator_key
    found: dict[tuple[bytes, str], bytes] = {}
    [file] = folder.glob("*.sqlite3")
    connection = sqlite3.connect(file)
    try:
        for digest, kind, leaf, index, path, head, signature, delegation in connection.execute(SIGNED):
            batch = SignedBatch(head=head, signature=signature, delegation=delegation)
            opened = open_batch(batch, operator_key=operator, global_id=GLOBAL_ID, now_s=clock.now().timestamp())
            parts = tuple(path[at : at + 32] for at in range(0, len(path), 32))
            require_leaf(opened, leaf, Proof(index=index, path=parts))
            found[digest, kind] = leaf
    finally:
        connection.close()
    return found


async def test_every_answer_leaves_a_signed_ticket_and_a_countersigned_receipt(stack: Stack, tmp_path: Path) -> None:
    await stack.start_gateway(processes=2, upstream=False)
    async with ScriptedEngine() as engine:
        agent = await stack.start_worker("w", engine, COCOON_WORKER_STATE=str(tmp_path), COCOON_RECEIPT_GRACE_S="0.3")
        async with stack.client() as client:
            for _ in range(6):
                answer = await client.post("/v1/chat/completions", json=chat(), headers={"connection": "close"})
                assert answer.status_code == 200, answer.text
        rows = await stack.usage(6)

        async def judged() -> str:
            return stack.log("w")

        await stack.until_true(judged, lambda log: log.count('"recorded"') >= 1 and _judged(log) >= 6)
        # The agent has its file for itself: it is read when it has gone.
        agent.terminate()
        await stack.until_true(_polled(agent), lambda code: code is not None)
    found = evidence(tmp_path)
    for row in rows:
        head = ReceiptHead.decode(row["receipt_head"])
        ticket = Ticket.decode(found[head.ticket_sha256, "ticket"])
        assert hashlib.sha256(ticket.encode()).digest() == head.ticket_sha256
        assert (ticket.job_id, ticket.attempt) == (row["job_id"], row["attempt"])
        said = Countersignature.decode(found[head.ticket_sha256, "countersignature"])
        assert (said.head_sha256, said.charge_numerator) == (head_digest(row["receipt_head"]), int(row["numerator"]))
    assert len(found) == 12


def _judged(log: str) -> int:
    lines = [msgspec.json.decode(line) for line in log.splitlines() if '"receipts_judged"' in line]
    return sum(line.get("recorded", 0) for line in lines)


def _polled(process: Any) -> Any:
    async def ask() -> int | None:
        return process.poll()

    return ask


async def test_signatures_are_for_workers_with_a_token_and_for_tickets_of_this_network(gateway: Stack) -> None:
    body = msgspec.json.encode(
        SignaturesRequest(keyset_digest=b"d" * 32, tickets=(UnsignedTicket(ticket="AAAA", stub="AAAA"),))
    )
    async with gateway.client() as client:
        # A customer's key, and a worker's key in place of the token.
        for bearer in (gateway.api_key, gateway.worker_key, "x"):
            refused = await client.post(SIGNATURES_PATH, content=body, headers={"authorization": f"Bearer {bearer}"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "worker_token_invalid")
    token = gateway_token()
    async with gateway.client(token) as client:
        answer = await client.post(SIGNATURES_PATH, content=body)
        assert answer.status_code == 200, answer.text
        assert msgspec.json.decode(answer.content, type=SignaturesAnswer).proofs == (None,)
        for broken in (b"{}", b"[", msgspec.json.encode({"keyset_digest": "AAAA", "tickets": []})):
            assert (await client.post(SIGNATURES_PATH, content=broken)).status_code == 400


def gateway_token() -> str:
    return WorkerTokens(bytes.fromhex(NETWORK_SECRET)).mint(uuid.uuid4(), b"d" * 32, SystemClock().now())
