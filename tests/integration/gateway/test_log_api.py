"""The transparency log over HTTP, as an auditor without a key reads it."""

import base64
from typing import Any

import asyncpg
import httpx

from audit.entries import LeafType, entry_of
from audit.postgres.queue import enqueue
from audit.tiles import decode_bundle
from cocoon.checkpoints import Checkpoint, NoteVerifier, open_checkpoint
from cocoon.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion
from tests.fixtures_gateway import Stack

ENVELOPES = [f"policy {number}".encode() for number in range(300)]
ENTRIES = [entry_of(LeafType.POLICY, one) for one in ENVELOPES]


async def put(stack: Stack, envelopes: list[bytes]) -> None:
    connection = await asyncpg.connect(stack.database_url)
    try:
        async with connection.transaction():
            for one in envelopes:
                await enqueue(connection, LeafType.POLICY, one)
    finally:
        await connection.close()


def anybody(stack: Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{stack.port}/v1/log", timeout=30, trust_env=False)


async def signed(stack: Stack, client: httpx.AsyncClient, size: int) -> Checkpoint:
    """The checkpoint of exactly this size, verified with the log's key."""
    verifier = NoteVerifier.parse((await client.get("/key")).text.strip())

    def judge(answer: httpx.Response) -> bool:
        return answer.status_code == 200 and open_checkpoint(answer.text, verifier, origin=verifier.name).size == size

    answer = await stack.until_true(lambda: client.get("/checkpoint"), judge)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return open_checkpoint(answer.text, verifier, origin="cocoon-log/-3")


def hashes(document: Any) -> list[bytes]:
    return [base64.b64decode(one) for one in document["path"]]


async def test_an_auditor_verifies_the_log_from_what_it_serves(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    async with anybody(stack) as client:
        await put(stack, ENVELOPES[:40])
        old = await signed(stack, client, 40)
        await put(stack, ENVELOPES[40:])
        new = await signed(stack, client, 300)

        raws = [(await client.get(f"/tile/entries/{path}")).content for path in ("000", "001.p/44")]
        entries = [entry for raw in raws for entry in decode_bundle(raw)]
        assert sorted(entry.encode() for entry in entries) == sorted(entry.encode() for entry in ENTRIES)
        tree = Tree([leaf_hash(entry.encode()) for entry in entries])
        assert tree.root == new.root
        tile = await client.get("/tile/0/000")
        assert tile.content == b"".join(leaf_hash(entry.encode()) for entry in entries[:256])
        assert "immutable" in tile.headers["cache-control"]
        assert (await client.get("/tile/1/000.p/1")).content == Tree(
            [leaf_hash(e.encode()) for e in entries[:256]]
        ).root

        consistency = (await client.get("/consistency", params={"from": 40})).json()
        assert (consistency["from"], consistency["to"]) == (40, 300)
        verify_consistency(40, 300, hashes(consistency), old.root, new.root)
        for entry in ENTRIES[::37]:
            proof = (await client.get("/proof", params={"leaf": entry.encode().hex()})).json()
            assert proof["size"] == 300
            verify_inclusion(entry.encode(), proof["index"], 300, hashes(proof), new.root)
        first = (await client.get("/proof", params={"leaf": entries[0].encode().hex(), "size": 40})).json()
        verify_inclusion(entries[0].encode(), 0, 40, hashes(first), old.root)
        envelope = await client.get(f"/envelope/policy/{ENTRIES[7].digest.hex()}")
        assert (envelope.status_code, envelope.content) == (200, ENVELOPES[7])


LEAF = ENTRIES[0].encode().hex()


REFUSED = [
    ("/tile/0/001", 404),
    ("/tile/0/000.p/2", 404),
    ("/tile/8/000.p/1", 404),
    ("/tile/00/000.p/1", 404),
    ("/tile/x/000.p/1", 404),
    ("/tile/0/../000.p/1", 404),
    ("/tile/entries/000", 404),
    ("/proof", 400),
    ("/proof?leaf=01", 400),
    (f"/proof?leaf={LEAF.upper()}", 400),
    (f"/proof?leaf=ff{LEAF[2:]}", 400),
    (f"/proof?leaf={LEAF}&size=2", 404),
    (f"/proof?leaf={LEAF}&size=0", 404),
    (f"/proof?leaf={LEAF}&size=-1", 400),
    (f"/proof?leaf={ENTRIES[1].encode().hex()}", 404),
    ("/consistency", 400),
    ("/consistency?from=2", 404),
    ("/consistency?from=1&to=2", 404),
    ("/consistency?from=9223372036854775808", 400),
    (f"/envelope/policy/{'0' * 64}", 404),
    (f"/envelope/receipt/{ENTRIES[0].digest.hex()}", 404),
    (f"/envelope/nothing/{ENTRIES[0].digest.hex()}", 404),
    ("/envelope/policy/00", 400),
]


async def test_what_the_log_does_not_have_is_refused_in_words(gateway: Stack) -> None:
    async with anybody(gateway) as client:
        await put(gateway, ENVELOPES[:1])
        await signed(gateway, client, 1)
        for path, status in REFUSED:
            answer = await client.get(path)
            assert (path, answer.status_code) == (path, status), answer.text
            assert answer.json()["error"]["message"]
