"""Tickets without a signature: how many the agent works for, whose signatures it believes, what it keeps of them."""

import asyncio
import datetime as dt
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cocoon.clock import ManualClock
from cocoon.receipt_batch import RECEIPTS_PATH, Countersigned, ReceiptVerdicts, Verdict
from cocoon.signatures import SIGNATURES_PATH, TICKETS_MAX, SignaturesAnswer, SignaturesRequest
from cocoon.signed_batch import Countersignature, Proof, head_digest, open_batch, require_leaf
from cocoon.ticket import Ticket, open_unverified, seal_ticket
from tests.signing_values import Operator
from tests.unit.agent.agent_values import ticket
from workers.agent.receipt_sender import ReceiptSender
from workers.agent.receipt_store import KeptReceipt, ReceiptStore, SignatureKind
from workers.agent.receipts import SignedReceipt
from workers.agent.signatures import REFUSED_S, SignatureAsker, SignatureVerifier, Unsigned

GLOBAL_ID = -217
KEY = b"k" * 32
KEYSET = hashlib.sha256(b"a keyset").digest()
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


class SigningLink:
    """A gateway that signs what is asked; `answer` replaces what it says."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.global_id: int | None = GLOBAL_ID
        self.operator = Operator(GLOBAL_ID, now_s=clock.now().timestamp())
        self.operator.delegate(not_after=int(self.operator.now_s) + 30 * 24 * 3600)
        self.asked: list[SignaturesRequest] = []
        self.answer: Callable[[SignaturesRequest], tuple[int, bytes]] = self.signed

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert path == SIGNATURES_PATH
        request = msgspec.json.decode(body, type=SignaturesRequest)
        self.asked.append(request)
        return self.answer(request)

    def signed(self, request: SignaturesRequest, **changes: Any) -> tuple[int, bytes]:
        self.operator.now_s = self.clock.now().timestamp()
        batch, proofs = self.operator.signed([open_unverified(one.ticket) for one in request.tickets])
        answer = SignaturesAnswer(batch, tuple(proofs))
        return 200, msgspec.json.encode(msgspec.structs.replace(answer, **changes))


class Scene:
    """An agent's book of unsigned tickets, its store, and a gateway."""

    def __init__(self, folder: Path | None = None, clock: ManualClock | None = None, **bounds: Any) -> None:
        self.clock = clock or ManualClock(NOW)
        self.link = SigningLink(self.clock)
        self.store = ReceiptStore(folder, "w", self.clock, grace_s=0)
        self.unsigned = Unsigned(self.clock, **{"count_max": 3, "age_s_max": 60, **bounds})
        self.verifier = SignatureVerifier(self.clock, self.link, self.link.operator.public)
        self.asker = SignatureAsker(self.unsigned, self.store, self.link, self.verifier)

    def accept(self, number: int, keyset: bytes = KEYSET) -> Ticket:
        made = ticket(number)
        self.unsigned.add(made.encode(), seal_ticket(KEY, made), f"stub-{number}", keyset)
        return made

    def receipt(self, made: Ticket) -> KeptReceipt:
        digest = hashlib.sha256(made.encode()).digest()
        signed = SignedReceipt(bytes(48) + digest + bytes(44), b"s" * 64, b"{}", made.encode())
        return KeptReceipt(
            signed=signed, ticket=seal_ticket(KEY, made), stub="stub", keyset=b"a keyset", keyset_digest=KEYSET
        )

    async def evidence(self, made: Ticket, kind: SignatureKind = SignatureKind.TICKET) -> bytes:
        """The leaf that is kept about a ticket, judged again from what is kept alone."""
        kept = (await self.store.signatures(hashlib.sha256(made.encode()).digest()))[kind]
        head = open_batch(
            kept.batch, operator_key=self.link.operator.public, global_id=GLOBAL_ID,
            now_s=self.clock.now().timestamp(),
        )  # fmt: skip
        path = tuple(kept.path[at : at + 32] for at in range(0, len(kept.path), 32))
        require_leaf(head, kept.leaf, Proof(index=kept.index, path=path))
        return kept.leaf


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.store.aclose()


async def test_signatures_are_kept_as_evidence_and_make_room_for_more(scene: Scene) -> None:
    tickets = [scene.accept(number) for number in range(1, 4)]
    assert not scene.unsigned.accepting
    assert await scene.asker.ask()
    assert (scene.unsigned.accepting, len(scene.unsigned)) == (True, 0)
    assert [await scene.evidence(made) for made in tickets] == [made.encode() for made in tickets]
    assert [one.stub for one in scene.link.asked[0].tickets] == ["stub-1", "stub-2", "stub-3"]


async def test_one_ticket_that_stays_unsigned_too_long_is_enough_to_stop(scene: Scene) -> None:
    scene.accept(1)
    scene.clock.advance(60)
    assert scene.unsigned.accepting
    scene.clock.advance(0.1)
    assert not scene.unsigned.accepting
    scene.accept(2)
    assert await scene.asker.ask()
    assert scene.unsigned.accepting


def _other_operator(scene: Scene, request: SignaturesRequest) -> tuple[int, bytes]:
    scene.link.operator = Operator(GLOBAL_ID, now_s=scene.clock.now().timestamp())
    return scene.link.signed(request)


def _expired(scene: Scene, request: SignaturesRequest) -> tuple[int, bytes]:
    scene.link.operator.delegate(not_after=int(scene.clock.now().timestamp()))
    return scene.link.signed(request)


def _foreign_key(scene: Scene, request: SignaturesRequest) -> tuple[int, bytes]:
    foreign = Operator(GLOBAL_ID, now_s=scene.clock.now().timestamp())
    batch, proofs = scene.link.operator.signed(
        [open_unverified(one.ticket) for one in request.tickets], key=foreign.gateway
    )
    return 200, msgspec.json.encode(SignaturesAnswer(batch, tuple(proofs)))


def _other_tickets(scene: Scene, request: SignaturesRequest) -> tuple[int, bytes]:
    batch, proofs = scene.link.operator.signed([ticket(90 + at).encode() for at in range(len(request.tickets))])
    return 200, msgspec.json.encode(SignaturesAnswer(batch, tuple(proofs)))


def _swapped_paths(scene: Scene, request: SignaturesRequest) -> tuple[int, bytes]:
    batch, proofs = scene.link.operator.signed([open_unverified(one.ticket) for one in request.tickets])
    return 200, msgspec.json.encode(SignaturesAnswer(batch, tuple(reversed(proofs))))


@pytest.mark.parametrize(
    "attack",
    [
        _other_operator, _expired, _foreign_key, _other_tickets, _swapped_paths,
        lambda scene, request: scene.link.signed(request, proofs=()),
        lambda scene, request: scene.link.signed(request, batch=None),
        lambda scene, request: (200, b"not json"),
        lambda scene, request: (503, scene.link.signed(request)[1]),
        lambda scene, request: (0, b""),
    ],
)  # fmt: skip
async def test_what_does_not_verify_counts_for_nothing_and_the_work_stops(scene: Scene, attack: Any) -> None:
    tickets = [scene.accept(number) for number in range(1, 4)]
    scene.link.answer = lambda request: attack(scene, request)
    assert not await scene.asker.ask()
    assert (scene.unsigned.accepting, len(scene.unsigned)) == (False, 3)
    for made in tickets:
        assert await scene.store.signatures(hashlib.sha256(made.encode()).digest()) == {}


async def test_without_a_pin_the_first_operator_that_signs_is_the_one_to_the_end(scene: Scene) -> None:
    scene.asker = SignatureAsker(
        scene.unsigned, scene.store, scene.link, SignatureVerifier(scene.clock, scene.link, None)
    )
    scene.accept(1)
    assert await scene.asker.ask()
    scene.accept(2)
    scene.link.answer = lambda request: _other_operator(scene, request)
    assert not await scene.asker.ask()


async def test_a_disowned_ticket_is_not_asked_for_again_but_counts_for_an_hour(scene: Scene) -> None:
    for number in range(1, 4):
        scene.accept(number)
    scene.link.answer = lambda request: (200, msgspec.json.encode(SignaturesAnswer(None, (None,) * 3)))
    assert await scene.asker.ask()
    # A gateway that disowns what it hands out gets no more than the bound allows.
    assert (len(scene.unsigned), scene.unsigned.accepting) == (0, False)
    assert scene.unsigned.question() is None
    scene.clock.advance(REFUSED_S + 1)
    assert scene.unsigned.accepting


async def test_a_question_is_about_one_keyset_and_no_longer_than_allowed(scene: Scene) -> None:
    for number in range(1, TICKETS_MAX + 3):
        scene.accept(number)
    scene.accept(1000, keyset=b"o" * 32)
    for count, keyset in ((TICKETS_MAX, KEYSET), (2, KEYSET), (1, b"o" * 32)):
        assert await scene.asker.ask()
        assert (len(scene.link.asked[-1].tickets), scene.link.asked[-1].keyset_digest) == (count, keyset)


async def test_a_restarted_agent_asks_for_what_its_receipts_lack(tmp_path: Path) -> None:
    before = Scene(tmp_path)
    made = [before.accept(number) for number in range(1, 4)]
    for one in made:
        await before.store.keep(before.receipt(one))
    before.link.answer = lambda request: before.link.signed(
        SignaturesRequest(keyset_digest=request.keyset_digest, tickets=request.tickets[:1])
    )
    before.unsigned.settle(hashlib.sha256(made[1].encode()).digest(), signed=True)
    before.unsigned.settle(hashlib.sha256(made[2].encode()).digest(), signed=True)
    assert await before.asker.ask()
    due = await before.store.due(10)
    assert due is not None
    await before.store.acknowledge([due.ids[2]], [Verdict.REFUSED])
    await before.store.aclose()
    # The first is signed, the third is not the gateway's: the second is what is left, as old as it is.
    before.clock.advance(61)
    after = Scene(tmp_path, before.clock, count_max=100)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(after.asker.run())
        async with asyncio.timeout(60):
            while not after.link.asked or len(after.unsigned):  # noqa: ASYNC110  another task's doing
                await asyncio.sleep(0.001)
        running.cancel()
    assert [one.ticket for one in after.link.asked[0].tickets] == [seal_ticket(KEY, made[1])]
    assert await after.evidence(made[1]) == made[1].encode()
    assert await after.store.unsigned(REFUSED_S) == []
    await after.store.aclose()


async def test_signatures_go_with_their_receipts(scene: Scene) -> None:
    made = scene.accept(1)
    await scene.store.keep(scene.receipt(made))
    assert await scene.asker.ask()
    due = await scene.store.due(1)
    assert due is not None
    await scene.store.acknowledge(due.ids, [Verdict.RECORDED])
    scene.clock.advance(25 * 3600)
    later = scene.accept(2)
    await scene.store.keep(scene.receipt(later))
    assert await scene.asker.ask()
    due = await scene.store.due(1)
    assert due is not None
    await scene.store.acknowledge(due.ids, [Verdict.RECORDED])
    assert await scene.store.signatures(hashlib.sha256(made.encode()).digest()) == {}
    assert await scene.evidence(later) == later.encode()
    rows = scene.store._connection.execute("SELECT count(*) FROM batches").fetchone()
    assert rows == (1,)


class JudgingLink:
    """A gateway that judges receipts and countersigns them."""

    def __init__(self, operator: Operator, leaves: Callable[[list[bytes]], list[bytes | None]]) -> None:
        self.global_id: int | None = GLOBAL_ID
        self._operator = operator
        self._leaves = leaves

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert path == RECEIPTS_PATH
        heads = [msgspec.convert(one["head"], bytes, strict=False) for one in msgspec.json.decode(body)["receipts"]]
        leaves = self._leaves(heads)
        batch, proofs = self._operator.signed([leaf for leaf in leaves if leaf is not None])
        left = iter(proofs)
        entries = tuple(None if leaf is None else Countersigned(leaf, next(left)) for leaf in leaves)
        return 200, msgspec.json.encode(ReceiptVerdicts((Verdict.RECORDED,) * len(heads), batch, entries))


def _countersigned(head: bytes, **changes: Any) -> bytes:
    members: dict[str, Any] = {"global_id": GLOBAL_ID, "head_sha256": head_digest(head), "charge_numerator": 5}
    return Countersignature(**members | changes).encode()


async def test_countersignatures_are_verified_and_kept_beside_their_receipts(scene: Scene) -> None:
    made = [ticket(number) for number in (1, 2)]
    for one in made:
        await scene.store.keep(scene.receipt(one))
    link = JudgingLink(scene.link.operator, lambda heads: [None, _countersigned(heads[1])])
    sender = ReceiptSender(scene.store, link, scene.verifier, random.Random(1), grace_s=5)
    due = await scene.store.due(10)
    assert due is not None
    assert await sender.deliver(due)
    kept = Countersignature.decode(await scene.evidence(made[1], SignatureKind.COUNTERSIGNATURE))
    assert kept.charge_numerator == 5
    assert await scene.store.signatures(hashlib.sha256(made[0].encode()).digest()) == {}
    assert scene.store.unacknowledged == 0


@pytest.mark.parametrize(
    "leaves",
    [
        lambda heads: [_countersigned(heads[1]), _countersigned(heads[0])],
        lambda heads: [_countersigned(heads[0], global_id=GLOBAL_ID + 1), None],
        lambda heads: [_countersigned(heads[0])],
    ],
)
async def test_a_countersignature_of_another_receipt_or_network_ends_nothing(scene: Scene, leaves: Any) -> None:
    for number in (1, 2):
        await scene.store.keep(scene.receipt(ticket(number)))
    link = JudgingLink(scene.link.operator, leaves)
    sender = ReceiptSender(scene.store, link, scene.verifier, random.Random(1), grace_s=5)
    due = await scene.store.due(10)
    assert due is not None
    assert not await sender.deliver(due)
    assert scene.store.unacknowledged == 2


async def test_a_foreign_countersignature_ends_nothing(scene: Scene) -> None:
    await scene.store.keep(scene.receipt(ticket(1)))
    foreign = Operator(GLOBAL_ID, now_s=NOW.timestamp())
    link = JudgingLink(foreign, lambda heads: [_countersigned(heads[0])])
    sender = ReceiptSender(scene.store, link, scene.verifier, random.Random(1), grace_s=5)
    due = await scene.store.due(10)
    assert due is not None
    assert not await sender.deliver(due)
    assert scene.store.unacknowledged == 1
