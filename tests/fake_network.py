"""A gateway and attested workers in one process and without sockets, built from `cocoon` and the simulated TEE.

It keeps to the formats and does what a test tells it to do wrong.
"""

import base64
import functools
import hashlib
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.evidence import Evidence
from attestation.policy import Deployment, load_policy
from attestation.simulation.tee import SimulatedTEE
from cocoon import receipt
from cocoon.bundle import Batched, Countersigned, Inclusion, ReceiptBundle
from cocoon.checkpoints import Checkpoint, NoteSigner
from cocoon.clock import SystemClock
from cocoon.endpoints import ENDPOINTS
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.merkle import Tree, leaf_hash
from cocoon.receipt import NO_STAKE, SEAL_SEALED, Commitment, ReceiptBody, ReceiptHead
from cocoon.sealed import CONTENT_TYPE, OpenedRequest, SealedKey, SealedRequest, open_request, parse_request
from cocoon.sealed_answer import AnswerSealer
from cocoon.sealed_trailer import AnswerTrailer, SealedReceipt
from cocoon.signed_batch import Countersignature
from cocoon.sse import DONE_EVENT, data_event
from cocoon.statement import Beacon
from cocoon.ticket import Ticket
from cocoon.transparency import LeafType, entry_of, receipt_envelope
from cocoon.usage import TokenUsage
from cocoon_client.opening import Opening
from cocoon_client.trust import Trust
from tests.signing_values import Operator
from workers.agent.staking import StakedKey

MODEL = "smol"
NETWORK = -3
API_KEY = "sk-cocoon-" + "A" * 43
BASE_URL = "http://gateway.test/v1"
MANIFEST = b"m" * 32
DESCRIBED = {
    "id": MODEL, "object": "model", "context_length": 4096,
    "pricing": {
        "prompt_nano_per_mtok": 10, "cached_prompt_nano_per_mtok": 5, "completion_nano_per_mtok": 20, "version": 1
    },
}  # fmt: skip
USAGE = TokenUsage(prompt=7, completion=3)
WORDS = ("a ", "secret ", "answer")
DEVELOPMENT = Deployment("development", NETWORK)


@functools.cache
def machine(seed: bytes = bytes(32)) -> SimulatedTEE:
    return SimulatedTEE(seed, machine="worker-1", deployment=DEVELOPMENT)


def trust(**changes: Any) -> Trust:
    """Trust in the simulated fleet, allowed."""
    raw = machine().policy_toml()
    policy = load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())
    return Trust(**{"policy": policy, "network": NETWORK, "allow_simulated": True} | changes)


class FakeWorker:
    """One attested agent with an engine that always says the same."""

    def __init__(
        self, name: str = "worker-1", *, seed: bytes = bytes(32), manifest: bytes = MANIFEST,
        staked: StakedKey | None = None,
    ) -> None:  # fmt: skip
        self.stake = NO_STAKE if staked is None else staked.address.account
        self.stake_config = None if staked is None else staked.config
        self.name = name
        self.tee = machine(seed)
        self.sealed_key = SealedKey.generate()
        self.receipt_key = Ed25519PrivateKey.generate()
        now, receipt_pk = int(time.time()), self.receipt_key.public_key().public_bytes_raw()
        self.keyset = Keyset(
            v=1, stake_addr="" if staked is None else str(staked.address), operator="", tls_spki_sha256=bytes(32),
            hpke_xwing=self.sealed_key.public_key, hpke_x25519=b"", receipt_pk=receipt_pk,
            delegation=b"" if staked is None else staked.delegate(receipt_pk, now + 3600),
            model_manifest_sha256=manifest, boot_id=b"b" * 16, not_before=now - 10, not_after=now + 3600,
        )  # fmt: skip
        self.raw = self.keyset.encode()
        self.digest = keyset_digest(self.raw)
        self.seq = 0
        self.words = WORDS
        self.opened: list[OpenedRequest] = []
        self.ticket_changes: dict[str, Any] = {}
        self.body_changes: dict[str, Any] = {}
        self.refusal: bytes | None = None
        self.named: Beacon | None = None

    def evidence(self, nonce: bytes | None) -> Evidence:
        beacon = Beacon(seqno=7, root_hash=b"r" * 32, file_hash=b"f" * 32, gen_utime=int(time.time()) - 5)
        return self.tee.evidence(self.raw, self.named or beacon, nonce)

    def shown(self, nonce: bytes) -> dict[str, Any]:
        """Its entry in the answer of `/v1/attestation`."""
        now = SystemClock().now()
        members = {
            "keyset": self.raw, "keyset_digest": self.digest, "evidence": self.evidence(nonce).encode(),
            "endorsements": self.tee.endorsements(now).encode(),
        }  # fmt: skip
        if self.stake_config is not None:
            members["stake"] = self.stake_config
        encoded = {key: base64.b64encode(value).decode() for key, value in members.items()}
        return {"worker_id": str(uuid.uuid4()), "name": self.name, "tee_type": "tdx-simulated", **encoded}

    def answer(self, sealed: SealedRequest) -> list[bytes]:
        """The wire parts of the answer: prelude, frames, end."""
        opened = open_request(sealed, self.digest, self.sealed_key)
        self.opened.append(opened)
        sealer = AnswerSealer(
            digest=opened.digest, keyset_digest=self.digest, secret=opened.secret, random=random.randbytes(32)
        )
        if self.refusal is not None:
            trailer = AnswerTrailer(v=1, usage=TokenUsage(), finish_reason="refused")
            return [sealer.prelude, sealer.frame(self.refusal), sealer.final(b"", trailer.encode())]
        commitment = Commitment(opened.secret)
        commitment.request(opened.body)
        parts = [sealer.prelude]
        for data, payload in self._said(opened):
            if payload is not None:
                commitment.response(payload)
            parts.append(sealer.frame(data))
        shown = self._receipt(opened, sealer, commitment)
        trailer = AnswerTrailer(v=1, usage=USAGE, finish_reason="stop", receipt=shown)
        return [*parts, sealer.final(b"", trailer.encode())]

    def _said(self, opened: OpenedRequest) -> Iterator[tuple[bytes, bytes | None]]:
        head = {"id": "chatcmpl-1", "created": 1, "model": opened.header.model}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if not opened.header.stream:
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "".join(self.words)},
            }
            document = json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            yield document, document
            return
        for number, word in enumerate(self.words):
            finish = "stop" if number == len(self.words) - 1 else None
            choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": finish}
            payload = json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}).encode()
            yield data_event(payload), payload
        last = json.dumps({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}).encode()
        yield data_event(last), None
        yield DONE_EVENT, b"[DONE]"

    def _receipt(self, opened: OpenedRequest, sealer: AnswerSealer, commitment: Commitment) -> SealedReceipt:
        header = opened.header
        ticket = Ticket(**{
            "global_id": NETWORK, "stake": self.stake, "job_id": uuid.UUID(bytes=header.job_id), "attempt": 0,
            "lease": uuid.uuid4(), "price_version": 1, "max_prompt": header.max_prompt,
            "max_completion": header.max_completion, "not_after": int(time.time()) + 60,
            "request_digest": opened.digest,
        } | self.ticket_changes)  # fmt: skip
        now = int(time.time() * 1000)
        body = receipt.encode_body(ReceiptBody(**{
            "v": 1, "receipt_id": str(ticket.job_id), "attempt": 0, "keyset_digest": self.digest,
            "model_manifest_sha256": self.keyset.model_manifest_sha256, "tee_type": "tdx-simulated",
            "seal": SEAL_SEALED, "c_req": commitment.c_req, "c_resp": commitment.c_resp, "finish_reason": "stop",
            "started_ms": now - 20, "ended_ms": now, "sealed_digest": opened.digest, "rolling": sealer.rolling,
        } | self.body_changes))  # fmt: skip
        head = ReceiptHead(
            global_id=NETWORK, stake=self.stake, seq=self.seq, ticket_sha256=hashlib.sha256(ticket.encode()).digest(),
            body_sha256=receipt.body_digest(body), usage=USAGE,
        ).encode()  # fmt: skip
        self.seq += 1
        return SealedReceipt(
            ticket=ticket.encode(), head=head, signature=receipt.sign(self.receipt_key, head), body=body
        )


class FakeLog:
    """A transparency log in memory."""

    def __init__(self) -> None:
        self.signer = NoteSigner("log.test", Ed25519PrivateKey.generate())
        self.entries = [entry_of(LeafType.ADMISSION, b"admission %d" % number).encode() for number in range(5)]

    @property
    def tree(self) -> Tree:
        return Tree([leaf_hash(entry) for entry in self.entries])

    def checkpoint(self) -> str:
        tree = self.tree
        return self.signer.sign(Checkpoint(origin="log.test", size=tree.size, root=tree.root).encode())

    def append(self, envelope: bytes) -> int:
        self.entries.append(entry_of(LeafType.RECEIPT, envelope).encode())
        return len(self.entries) - 1

    def consistency(self, old_size: int) -> dict[str, Any]:
        path = [base64.b64encode(one).decode() for one in self.tree.consistency(old_size)]
        return {"from": old_size, "to": self.tree.size, "path": path, "checkpoint": self.checkpoint()}

    def inclusion(self, index: int) -> Inclusion:
        tree = self.tree
        return Inclusion(checkpoint=self.checkpoint(), index=index, size=tree.size, path=tree.inclusion(index))


class FakeGateway(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """What an honest gateway does; `showing`, `forwarding` and `answering` make it do other things."""

    def __init__(self, *workers: FakeWorker) -> None:
        self.workers = list(workers) or [FakeWorker()]
        self.operator = Operator(NETWORK)
        self.requests: list[httpx.Request] = []
        self.showing: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.forwarding: Callable[[bytes], bytes] = lambda raw: raw
        self.answering: Callable[[list[bytes]], list[bytes]] = lambda parts: parts
        self.refusing: list[httpx.Response] = []
        self.bundles: dict[str, bytes] = {}
        self.closed = 0
        self.log = FakeLog()

    def trust(self, **changes: Any) -> Trust:
        """Trust in this gateway's operator and log too."""
        keys = {"operator_key": self.operator.public, "log_key": self.log.signer.verifier.text}
        return trust(**keys | changes)

    def bundle(self, opening: Opening, worker: FakeWorker | None = None, *, numerator: int = 1000) -> ReceiptBundle:
        """What the gateway has to show for an answer, once it is countersigned and in the log."""
        worker = worker or self.workers[0]
        counter = Countersignature(
            global_id=NETWORK, head_sha256=hashlib.sha256(opening.head).digest(), charge_numerator=numerator
        ).encode()
        # An operator that a test module made while tests were collected may be old by now.
        batch, (ticket_proof, counter_proof) = self.operator.signed(
            [opening.ticket, counter], signed_ms=int(time.time() * 1000)
        )
        index = self.log.append(receipt_envelope(worker.keyset.receipt_pk, opening.head, opening.signature))
        bundle = ReceiptBundle(
            receipt_id=opening.receipt_id, head=opening.head, signature=opening.signature, body=opening.body,
            ticket=opening.ticket, ticket_signed=Batched(batch, ticket_proof),
            countersigned=Countersigned(leaf=counter, signed=Batched(batch, counter_proof)), keyset=worker.raw,
            evidence=worker.evidence(None).encode(),
            endorsements=worker.tee.endorsements(SystemClock().now()).encode(), manifest=None,
            log=self.log.inclusion(index), stake=worker.stake_config,
        )  # fmt: skip
        self.bundles[opening.receipt_id] = bundle.encode()
        return bundle

    @property
    def wire(self) -> bytes:
        """Everything that a gateway got to see of requests."""
        return b"".join(request.url.raw_path + request.read() for request in self.requests)

    def attestations(self) -> int:
        return sum(request.url.path == "/v1/attestation" for request in self.requests)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self._handle(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self._handle(request)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"object": "list", "data": [DESCRIBED]})
        if path == "/v1/attestation":
            nonce = bytes.fromhex(request.url.params["nonce"])
            shown = [worker.shown(nonce) for worker in self.workers]
            answer = {"model": request.url.params["model"], "policy_sha256": "", "workers": shown}
            return httpx.Response(200, json=self.showing(answer))
        if path == f"/v1/models/{MODEL}":
            return httpx.Response(200, json=DESCRIBED)
        if path == "/v1/log/consistency":
            return httpx.Response(200, json=self.log.consistency(int(request.url.params["from"])))
        if path.startswith("/v1/receipts/"):
            bundle = self.bundles.get(path.rpartition("/")[2])
            return httpx.Response(202, json={}) if bundle is None else httpx.Response(200, content=bundle)
        assert path in {endpoint.path for endpoint in ENDPOINTS}, path
        return self._serve(request)

    def _serve(self, request: httpx.Request) -> httpx.Response:
        if self.refusing:
            return self.refusing.pop(0)
        assert request.headers["content-type"] == CONTENT_TYPE, "sent plainly"
        sealed = parse_request(self.forwarding(request.content))
        able = [worker for worker in self.workers if worker.digest in sealed.header.keyset_digests]
        parts = self.answering(able[0].answer(sealed))
        return httpx.Response(
            200, headers={"content-type": CONTENT_TYPE, "x-request-id": "r"}, stream=_Parts(self, parts)
        )


class _Parts(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The answer in pieces that respect no boundary of its format."""

    def __init__(self, gateway: FakeGateway, parts: list[bytes]) -> None:
        self._gateway = gateway
        self._raw = b"".join(parts)

    def _pieces(self) -> Iterator[bytes]:
        for at in range(0, len(self._raw), 100):
            yield self._raw[at : at + 100]

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces():
            yield piece

    def close(self) -> None:
        self._gateway.closed += 1

    async def aclose(self) -> None:
        self._gateway.closed += 1


def error(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": code, "type": "invalid_request_error", "code": code}})


def altered(raw: bytes, kind: type[msgspec.Struct], **changes: Any) -> bytes:
    """A canonical document with other members."""
    from cocoon import canonical

    return canonical.encode(msgspec.structs.replace(canonical.decode(raw, kind), **changes))
