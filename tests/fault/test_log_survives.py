"""Gateways killed while receipts arrive and the log grows: every answer's receipt ends up in the log, once."""

import asyncio
from typing import Any

import httpx

from audit.entries import entry_of, receipt_envelope
from cocoon.enrolment import Keyset
from cocoon.merkle import Tree, leaf_hash
from cocoon.transparency import LeafType
from tests.fault.test_receipts_recover import FORGOTTEN, kill_gateway
from tests.fixtures_gateway import Stack, chat
from tests.scripted_engine import ScriptedEngine

PATH = "/v1/chat/completions"
ROUNDS = 2
ASKED = 8
DEADLINE_S = 60.0


async def answered(client: httpx.AsyncClient) -> list[str]:
    """The jobs of answers that arrived whole."""

    async def ask() -> str:
        answer = await client.post(PATH, json=chat(), headers={"connection": "close"})
        assert answer.status_code == 200, answer.text
        return answer.headers["x-cocoon-receipt"]

    return list(await asyncio.gather(*(ask() for _ in range(ASKED))))


async def test_killed_gateways_lose_and_double_nothing_of_the_log(stack: Stack) -> None:
    jobs: list[str] = []
    async with ScriptedEngine() as engine, stack.client() as client:
        await stack.start_gateway(processes=2, upstream=False)
        await stack.start_worker("w", engine, COCOON_RECEIPT_GRACE_S="0.2")
        for round_number in range(ROUNDS):
            jobs += await answered(client)
            # Some receipts are on their way, some in the queue, some in the tree: wherever the moment finds them.
            await asyncio.sleep(0.2 * round_number)
            await kill_gateway(stack)
            await stack.start_gateway(processes=2, upstream=False)
            await stack.until_workers(1)

        async def kept() -> list[Any]:
            # What the dead had leased is given back, so that what they had not settled is charged from receipts.
            for statement in FORGOTTEN:
                await stack.rows(statement)
            return await stack.rows("SELECT job_id FROM receipts")

        found = await stack.until_true(kept, lambda rows: len(rows) >= len(jobs), DEADLINE_S)
        assert {str(row["job_id"]) for row in found} == set(jobs)
        whole = "SELECT size FROM log_checkpoints ORDER BY size DESC LIMIT 1"
        await stack.until_true(
            lambda: stack.rows(whole), lambda rows: rows and rows[0]["size"] >= len(jobs), DEADLINE_S
        )
    await require_log(stack)


async def require_log(stack: Stack) -> None:
    rows = await stack.rows("SELECT leaf_index, leaf_type, digest FROM log_leaves ORDER BY leaf_index")
    assert [row["leaf_index"] for row in rows] == list(range(len(rows)))
    receipts = await stack.rows(
        "SELECT r.head, r.signature, k.keyset FROM receipts AS r INNER JOIN keysets AS k ON k.digest = r.keyset_digest"
    )
    expected = {
        entry_of(
            LeafType.RECEIPT,
            receipt_envelope(Keyset.decode(row["keyset"]).receipt_pk, row["head"], row["signature"]),
        ).digest
        for row in receipts
    }
    logged = [row["digest"] for row in rows if row["leaf_type"] == LeafType.RECEIPT]
    assert len(logged) == len(expected) == len(receipts)
    assert set(logged) == expected
    hashes = [leaf_hash(bytes([row["leaf_type"]]) + row["digest"]) for row in rows]
    checkpoints = await stack.rows("SELECT size, root FROM log_checkpoints")
    assert {row["size"]: row["root"] for row in checkpoints} == {
        row["size"]: Tree(hashes[: row["size"]]).root for row in checkpoints
    }
    assert await stack.rows("SELECT 1 FROM equivocations") == []
