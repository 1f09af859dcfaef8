"""Signs tickets and countersignatures in batches: one Ed25519 signature for all that came within `BATCH_S`.

Nothing here is on the way of a request. Agents ask for the signatures of their tickets, and any process can give them:
MAC and stub prove that a gateway of this network issued a ticket to this worker, so no process needs to remember what
it issued, and one that dies takes nothing with it.
"""

import asyncio
import hmac
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.clock import Clock, unix_ms
from cocoon.delegation import DELEGATION_S_MAX, Delegation, delegate, open_delegation, operator_of
from cocoon.errors import MalformedError
from cocoon.merkle import Tree, leaf_hash
from cocoon.receipt_batch import Countersigned
from cocoon.signatures import SignaturesAnswer, SignaturesRequest, UnsignedTicket
from cocoon.signed_batch import (
    CLOCKS_S_MAX,
    LEAVES_MAX,
    BatchHead,
    Countersignature,
    Proof,
    SignedBatch,
    head_digest,
)
from cocoon.ticket import open_ticket, ticket_key
from gateway.errors import GatewayError, OverloadedError
from gateway.stubs import open_stub, stub_key

BATCH_S = 0.05
"""How long leaves are gathered; with the signing itself well below the 100 ms that the protocol allows."""
WAITING_MAX = 16 * LEAVES_MAX
"""Leaves that wait for a signature; beyond it agents are asked to come back."""
SIGN_S_MAX = 5.0
RENEW_S = 14 * 24 * 3600
"""A delegation that ends within this is complained about at every start."""
_DEVELOPMENT_LABELS = (b"cocoon/development-operator/1\x00", b"cocoon/development-gateway/1\x00")
log = structlog.get_logger()


class SigningUnavailableError(GatewayError):
    """This gateway cannot sign at the moment."""

    code = "signing_unavailable"
    transient = True


class GatewayKey:
    """The key that this gateway signs with, and the operator's delegation to it.

    Raises:
        MalformedError: the delegation is not for this key and network, or not valid now.
    """

    def __init__(self, seed: bytes, delegation: bytes, *, global_id: int, clock: Clock) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.carried = delegation
        self.operator_key = operator_of(delegation)
        self.delegation: Delegation = open_delegation(
            delegation, operator_key=self.operator_key, global_id=global_id, now_s=clock.now().timestamp()
        )
        if self.delegation.gateway_key != self.private.public_key().public_bytes_raw():
            raise MalformedError("the delegation is for another key")
        left_s = self.delegation.not_after - clock.now().timestamp()
        if left_s < RENEW_S:
            log.warning("delegation_ends_soon", days=round(left_s / 86400, 1))


def development_key(network_secret: bytes, *, global_id: int, clock: Clock) -> GatewayKey:
    """A key and an operator made from the network's secret, so that development signs without being told how."""
    operator, seed = (hmac.digest(network_secret, label, "sha256") for label in _DEVELOPMENT_LABELS)
    now = int(clock.now().timestamp())
    delegation = Delegation(
        global_id=global_id,
        gateway_key=Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(),
        not_before=now - CLOCKS_S_MAX,
        not_after=now - CLOCKS_S_MAX + DELEGATION_S_MAX,
    )
    carried = delegate(Ed25519PrivateKey.from_private_bytes(operator), delegation)
    return GatewayKey(seed, carried, global_id=global_id, clock=clock)


class _Asked:
    """Leaves that must be signed together, and who waits for them."""

    __slots__ = ("answer", "leaves")

    def __init__(self, leaves: Sequence[bytes], answer: "asyncio.Future[tuple[SignedBatch, list[Proof]]]") -> None:
        self.leaves = leaves
        self.answer = answer


class Charged(NamedTuple):
    """A receipt to sign for: its ticket and head, and what the books charge for it (10^-6 nano), if anything."""

    ticket: bytes
    head: bytes
    numerator: int | None


class SignedReceipt(NamedTuple):
    """Where a receipt's ticket and its countersignature stand in a signed batch."""

    ticket: Proof
    countersigned: Countersigned | None


class BatchSigner:
    """One process's signer. `run` must be running for `sign` to return."""

    def __init__(self, key: GatewayKey, *, global_id: int, network_secret: bytes, clock: Clock) -> None:
        self._key = key
        self._global_id = global_id
        self._network_secret = network_secret
        self._clock = clock
        self._asked: list[_Asked] = []
        self._waiting = 0
        self._wake = asyncio.Event()

    @property
    def operator_key(self) -> bytes:
        """The operator whose tickets these are."""
        return self._key.operator_key

    async def sign(self, leaves: Sequence[bytes]) -> tuple[SignedBatch, list[Proof]]:
        """A signed batch that holds these leaves (at least one, at most `LEAVES_MAX`), and each one's proof.

        Raises:
            OverloadedError: too much is waiting.
            SigningUnavailableError: the delegation has ended, or signing takes too long.
        """
        assert 0 < len(leaves) <= LEAVES_MAX, "callers keep to the limit"
        self._require_delegation()
        if self._waiting + len(leaves) > WAITING_MAX:
            raise OverloadedError("too many leaves are waiting to be signed")
        answer: asyncio.Future[tuple[SignedBatch, list[Proof]]] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(leaves, answer))
        self._waiting += len(leaves)
        self._wake.set()
        try:
            async with asyncio.timeout(SIGN_S_MAX):
                return await answer
        except TimeoutError:
            raise SigningUnavailableError from None

    async def run(self) -> None:
        """Sign what is asked for until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_S)
            while self._asked:
                asked = self._take()
                leaves = [leaf for one in asked for leaf in one.leaves]
                try:
                    batch, tree = await asyncio.to_thread(self._signed, leaves)
                except BaseException:
                    for one in asked:
                        if not one.answer.done():
                            one.answer.set_exception(SigningUnavailableError())
                    raise
                at = 0
                for one in asked:
                    proofs = [Proof(index=n, path=tree.inclusion(n)) for n in range(at, at + len(one.leaves))]
                    at += len(one.leaves)
                    if not one.answer.done():
                        one.answer.set_result((batch, proofs))
            self._wake.clear()

    async def sign_tickets(self, worker_id: uuid.UUID, request: SignaturesRequest) -> SignaturesAnswer:
        """The signatures of a worker's tickets; what no gateway issued to it under this keyset gets none.

        Raises:
            OverloadedError, SigningUnavailableError: as `sign`.
        """
        key = ticket_key(self._network_secret, request.keyset_digest)
        stubs = stub_key(self._network_secret, request.keyset_digest)

        def issued(one: UnsignedTicket) -> bytes | None:
            try:
                ticket, raw = open_ticket(key, one.ticket)
                open_stub(stubs, worker_id, raw, one.stub)
            except MalformedError:
                return None
            return raw if ticket.global_id == self._global_id else None

        opened = [issued(one) for one in request.tickets]
        leaves = [raw for raw in opened if raw is not None]
        if len(leaves) < len(opened):
            log.warning("tickets_not_signed", worker_id=str(worker_id), count=len(opened) - len(leaves))
        if not leaves:
            return SignaturesAnswer(batch=None, proofs=(None,) * len(opened))
        batch, proofs = await self.sign(leaves)
        left = iter(proofs)
        return SignaturesAnswer(batch=batch, proofs=tuple(None if raw is None else next(left) for raw in opened))

    async def countersign(
        self, charged: Sequence[Charged | None], *, include_by: int
    ) -> tuple[SignedBatch | None, Sequence[SignedReceipt | None]]:
        """One batch about receipts: the ticket of each, and what it was charged where it was; None stays None.

        `include_by` (Unix seconds) is when the log will hold them at the latest: only who keeps them may promise it.

        Raises:
            OverloadedError, SigningUnavailableError: as `sign`.
        """
        leaves: list[bytes] = []
        for one in charged:
            if one is not None:
                leaves.append(one.ticket)
                if one.numerator is not None:
                    leaves.append(self._countersignature(one, one.numerator, include_by))
        if not leaves:
            return None, [None] * len(charged)
        batch, proofs = await self.sign(leaves)
        left = iter(zip(leaves, proofs, strict=True))

        def proven(one: Charged) -> SignedReceipt:
            _, ticket = next(left)
            if one.numerator is None:
                return SignedReceipt(ticket, None)
            leaf, proof = next(left)
            return SignedReceipt(ticket, Countersigned(leaf=leaf, proof=proof))

        return batch, [None if one is None else proven(one) for one in charged]

    def _countersignature(self, one: Charged, numerator: int, include_by: int) -> bytes:
        return Countersignature(
            global_id=self._global_id, head_sha256=head_digest(one.head), charge_numerator=numerator,
            include_by=include_by,
        ).encode()  # fmt: skip

    def _take(self) -> list[_Asked]:
        """As much as fits into one batch, whole questions only."""
        count = size = 0
        for one in self._asked:
            if size + len(one.leaves) > LEAVES_MAX:
                break
            size += len(one.leaves)
            count += 1
        asked, self._asked = self._asked[:count], self._asked[count:]
        self._waiting -= size
        return asked

    def _signed(self, leaves: Sequence[bytes]) -> tuple[SignedBatch, Tree]:
        tree = Tree([leaf_hash(leaf) for leaf in leaves])
        head = BatchHead(
            global_id=self._global_id, size=tree.size, root=tree.root, signed_ms=unix_ms(self._clock.now())
        ).encode()
        return SignedBatch(head=head, signature=self._key.private.sign(head), delegation=self._key.carried), tree

    def _require_delegation(self) -> None:
        delegation, now_s = self._key.delegation, self._clock.now().timestamp()
        if not delegation.not_before <= now_s < delegation.not_after:
            log.error("delegation_not_valid", not_after=delegation.not_after)
            raise SigningUnavailableError
