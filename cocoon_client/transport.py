"""httpx transports that seal: an ordinary OpenAI request goes in, an ordinary answer comes out, ciphertext travels.

Requests that carry no prompt (GET, HEAD) pass as they are. Everything else is sealed for workers whose evidence held,
or refused: there is no plain way out of here, whatever the gateway answers.
"""

import asyncio
import datetime as dt
import random
import threading
import urllib.parse
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Final, Protocol

import httpx
import msgspec

from cocoon.clock import Clock, SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.sealed import CONTENT_TYPE
from cocoon_client.apart import run_apart
from cocoon_client.directory import ATTESTATION_BYTES_MAX, Directory, OwnBlocks, VerifiedWorker, named_blocks
from cocoon_client.errors import (
    AnswerRefusedError,
    AttestationUnavailableError,
    DowngradeError,
    NotSealableError,
)
from cocoon_client.exchange import SealedExchange
from cocoon_client.model_facts import DEFAULT_CONTEXT, ModelFacts
from cocoon_client.opening import Opening
from cocoon_client.plan import Plan, plan_request
from cocoon_client.trust import Trust
from cocoon_client.verification.chain import OwnChain, own_blocks
from cocoon_client.vouchers import TAKEN, VOUCHERS, Remedy, SignedVoucher, VoucherSigner, demand_in

RECEIPT_HEADER: Final = "x-cocoon-receipt"
KEYSET_HEADER: Final = "x-cocoon-keyset"
TEE_HEADER: Final = "x-cocoon-tee"
ERROR_BYTES_MAX: Final = 64 * 1024
WORKERS_GONE: Final = frozenset({"sealed_recipients_gone"})
"""Codes of a gateway for whose workers a request was sealed in vain: newer ones are then asked for, once."""
_OK: Final = 200
_BAD_REQUEST: Final = 400
_PAYMENT_REQUIRED: Final = 402
REMEDIES_MAX: Final = 3
"""How often a refused request is tried again after its reason was seen to."""
VOUCHER_PAUSE_S: Final = 0.3
"""For charges to be booked that this client has receipts for and the gateway did not ask for yet."""
_READING: Final = frozenset({"GET", "HEAD"})
_HOP: Final = frozenset({
    "accept-encoding", "connection", "content-length", "content-type", "content-encoding", "expect", "host",
    "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
_OWN: Final = frozenset({RECEIPT_HEADER, KEYSET_HEADER, TEE_HEADER})
"""Headers of an answer that the client makes itself: what the gateway says there is not passed on."""


class Keeper(Protocol):
    """Takes what has to be kept of every answered request."""

    def keep(self, opening: Opening) -> None:
        """Keep it; may not block for long."""
        ...


class Sealer:
    """What both transports share: one client's trust, the workers it knows, and what it keeps. No I/O."""

    def __init__(
        self, trust: Trust, keeper: Keeper, *, clock: Clock | None = None, rng: random.Random | None = None,
        vouchers: VoucherSigner | None = None,
    ) -> None:  # fmt: skip
        self.vouchers = vouchers
        self._clock = clock or SystemClock()
        self._rng = rng or system_random()
        self.trust = trust
        self.keeper = keeper
        self.directory = Directory(trust, self._rng)
        self._facts: dict[str, ModelFacts] = {}

    def now(self) -> dt.datetime:
        """Wall time."""
        return self._clock.now()

    def known(self, plan: Plan) -> tuple[VerifiedWorker, ...]:
        """Workers that the request can be sealed for now."""
        return self.directory.known(plan.model, plan.manifest, self.now()) if plan.model in self._facts else ()

    def learn(
        self, plan: Plan, nonce: bytes, answer: bytes, model: bytes | None, own: OwnBlocks
    ) -> tuple[VerifiedWorker, ...]:
        """Judge what the gateway showed. `model` is its description of the model, if it has one.

        `own` has the blocks that the client's own chain has where statements name some.

        Raises:
            AttestationUnavailableError: it showed nothing.
            NotTrustedError: nothing of it holds.
        """
        self.directory.judge(plan.model, answer, nonce=nonce, manifest=plan.manifest, at=self.now(), own=own)
        self._facts[plan.model] = ModelFacts.read(model)
        return self.known(plan)

    def seal(self, plan: Plan, api_key: str, workers: Sequence[VerifiedWorker]) -> SealedExchange:
        """A fresh job for these workers.

        Raises:
            NotSealableError: a value of the request is out of range.
        """
        now = self.now()
        terms = plan.terms(
            job_id=new_job_id(self._clock, self._rng), api_key=api_key, now_s=now.timestamp(),
            context_tokens=min(DEFAULT_CONTEXT, self._facts[plan.model].context_length),
        )  # fmt: skip
        return SealedExchange(plan, terms, workers, self._rng.randbytes)

    def keep(self, exchange: SealedExchange) -> None:
        """Keep what opens the receipt of a finished exchange."""
        opening = exchange.opening(self.now().timestamp(), self._facts[exchange.plan.model].price)
        if self.vouchers is not None:
            self.vouchers.support(opening)
        self.keeper.keep(opening)

    def remedy(self, request: httpx.Request, plan: Plan, status: int, body: bytes) -> Remedy | None:
        """What may turn a refusal into an answer: newer workers, a voucher, or a moment for charges to be booked."""
        if _workers_gone(body):
            self.directory.forget(plan.model)
            return Remedy()
        demand = demand_in(body) if status == _PAYMENT_REQUIRED and self.vouchers is not None else None
        if demand is None or self.vouchers is None:
            return None
        voucher = self.vouchers.sign(demand)
        if voucher is not None:
            return Remedy(voucher=voucher, request=voucher_request(request, plan, voucher))
        return Remedy(pause_s=VOUCHER_PAUSE_S) if self.vouchers.unsigned_nano else None

    def note_answered(self, remedy: Remedy, status: int) -> bool:
        """Whether the gateway has the voucher, and the request may be tried again."""
        if status in TAKEN and self.vouchers is not None and remedy.voucher is not None:
            self.vouchers.note_handed_in(remedy.voucher)
        return status in TAKEN


class SealingTransport(httpx.BaseTransport):
    """For `httpx.Client`. Threads may share it. Workers that name blocks which `chain` does not have are not used."""

    def __init__(self, sealer: Sealer, inner: httpx.BaseTransport, chain: OwnChain | None = None) -> None:
        self._chain = chain
        self._sealer = sealer
        self._inner = inner
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seal, send, open.

        Raises:
            ClientError: refused, with the reason.
        """
        if request.method in _READING:
            return self._inner.handle_request(request)
        plan = _plan(request, request.read(), self._sealer.trust)
        response, exchange = self._attempt(request, plan)
        for last in (*[False] * REMEDIES_MAX, True):
            if _is_sealed(response) or response.status_code == _OK:
                break
            body = _read(response, ERROR_BYTES_MAX)
            if last or not self._helped(request, plan, response.status_code, body):
                return _error(response, body)
            response, exchange = self._attempt(request, plan)
        try:
            _require_sealed(response)
            parts = _opened(response, exchange, self._sealer)
            first = next((part for part in parts if part), b"")
            if exchange.refused:
                response.close()
                return _refusal(response, exchange)
            stream = _OpenedStream(response, first, parts)
            return httpx.Response(_OK, headers=_headers(response, exchange), stream=stream)
        except BaseException:
            response.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()

    def _helped(self, request: httpx.Request, plan: Plan, status: int, body: bytes) -> bool:
        remedy = self._sealer.remedy(request, plan, status, body)
        if remedy is None:
            return False
        if remedy.pause_s:
            threading.Event().wait(remedy.pause_s)
        if remedy.request is None:
            return True
        answer = self._inner.handle_request(remedy.request)
        _read(answer, ERROR_BYTES_MAX)
        return self._sealer.note_answered(remedy, answer.status_code)

    def _attempt(self, request: httpx.Request, plan: Plan) -> tuple[httpx.Response, SealedExchange]:
        with self._lock:
            workers = self._sealer.known(plan)
            if not workers:
                nonce = self._sealer.directory.new_nonce()
                shown = self._inner.handle_request(attestation_request(request, plan, nonce))
                answer = _attestation(shown.status_code, _read(shown, ATTESTATION_BYTES_MAX))
                described = self._inner.handle_request(model_request(request, plan))
                facts = _read(described, ERROR_BYTES_MAX)
                known = facts if described.status_code == _OK else None
                own: OwnBlocks = {} if self._chain is None else run_apart(own_blocks(self._chain, named_blocks(answer)))
                workers = self._sealer.learn(plan, nonce, answer, known, own)
            _require(workers, plan)
            exchange = self._sealer.seal(plan, _api_key(request), workers)
        return self._inner.handle_request(sealed_request(request, exchange)), exchange


class AsyncSealingTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`, on asyncio. Workers that name blocks which `chain` does not have are not used."""

    def __init__(self, sealer: Sealer, inner: httpx.AsyncBaseTransport, chain: OwnChain | None = None) -> None:
        self._chain = chain
        self._sealer = sealer
        self._inner = inner
        self._lock = asyncio.Lock()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Seal, send, open.

        Raises:
            ClientError: refused, with the reason.
        """
        if request.method in _READING:
            return await self._inner.handle_async_request(request)
        plan = _plan(request, await request.aread(), self._sealer.trust)
        response, exchange = await self._attempt(request, plan)
        for last in (*[False] * REMEDIES_MAX, True):
            if _is_sealed(response) or response.status_code == _OK:
                break
            body = await _aread(response, ERROR_BYTES_MAX)
            if last or not await self._helped(request, plan, response.status_code, body):
                return _error(response, body)
            response, exchange = await self._attempt(request, plan)
        try:
            _require_sealed(response)
            parts = _aopened(response, exchange, self._sealer)
            first = await anext((part async for part in parts if part), b"")
            if exchange.refused:
                await response.aclose()
                return _refusal(response, exchange)
            stream = _AsyncOpenedStream(response, first, parts)
            return httpx.Response(_OK, headers=_headers(response, exchange), stream=stream)
        except BaseException:
            await response.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    async def _helped(self, request: httpx.Request, plan: Plan, status: int, body: bytes) -> bool:
        remedy = self._sealer.remedy(request, plan, status, body)
        if remedy is None:
            return False
        if remedy.pause_s:
            await asyncio.sleep(remedy.pause_s)
        if remedy.request is None:
            return True
        answer = await self._inner.handle_async_request(remedy.request)
        await _aread(answer, ERROR_BYTES_MAX)
        return self._sealer.note_answered(remedy, answer.status_code)

    async def _attempt(self, request: httpx.Request, plan: Plan) -> tuple[httpx.Response, SealedExchange]:
        workers = self._sealer.known(plan)
        if not workers:
            async with self._lock:
                workers = self._sealer.known(plan) or await self._learn(request, plan)
        _require(workers, plan)
        exchange = self._sealer.seal(plan, _api_key(request), workers)
        return await self._inner.handle_async_request(sealed_request(request, exchange)), exchange

    async def _learn(self, request: httpx.Request, plan: Plan) -> tuple[VerifiedWorker, ...]:
        nonce = self._sealer.directory.new_nonce()
        shown = await self._inner.handle_async_request(attestation_request(request, plan, nonce))
        answer = _attestation(shown.status_code, await _aread(shown, ATTESTATION_BYTES_MAX))
        described = await self._inner.handle_async_request(model_request(request, plan))
        facts = await _aread(described, ERROR_BYTES_MAX)
        # A verdict takes milliseconds of processor time for every worker: not on the loop that others stream on.
        known = facts if described.status_code == _OK else None
        own = await own_blocks(self._chain, named_blocks(answer))
        return await asyncio.to_thread(self._sealer.learn, plan, nonce, answer, known, own)


class _OpenedStream(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response, first: bytes, rest: Generator[bytes]) -> None:
        self._response = response
        self._first = first
        self._rest = rest

    def __iter__(self) -> Generator[bytes]:
        yield self._first
        yield from self._rest

    def close(self) -> None:
        self._rest.close()
        self._response.close()


class _AsyncOpenedStream(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._response = response
        self._first = first
        self._rest = rest

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        yield self._first
        async for part in self._rest:
            yield part

    async def aclose(self) -> None:
        await self._rest.aclose()
        await self._response.aclose()


def _opened(response: httpx.Response, exchange: SealedExchange, sealer: Sealer) -> Generator[bytes]:
    assert isinstance(response.stream, httpx.SyncByteStream), "a sync transport's answer"
    for chunk in response.stream:
        if part := exchange.feed(chunk):
            yield part
    yield _finished(exchange, sealer)


async def _aopened(response: httpx.Response, exchange: SealedExchange, sealer: Sealer) -> AsyncGenerator[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream), "an async transport's answer"
    async for chunk in response.stream:
        if part := exchange.feed(chunk):
            yield part
    yield _finished(exchange, sealer)


def _finished(exchange: SealedExchange, sealer: Sealer) -> bytes:
    last = exchange.finish()
    if not exchange.refused:
        sealer.keep(exchange)
    return last


def attestation_request(request: httpx.Request, plan: Plan, nonce: bytes) -> httpx.Request:
    """Ask the gateway of `request` for its workers' evidence."""
    query = urllib.parse.urlencode({"model": plan.model, "nonce": nonce.hex()})
    return _beside(request, plan, f"/v1/attestation?{query}")


def model_request(request: httpx.Request, plan: Plan) -> httpx.Request:
    """Ask the gateway of `request` what it says about the model."""
    return _beside(request, plan, "/v1/models/" + urllib.parse.quote(plan.model))


def voucher_request(request: httpx.Request, plan: Plan, voucher: SignedVoucher) -> httpx.Request:
    """Hand a voucher in at the gateway of `request`."""
    asked = _beside(request, plan, VOUCHERS)
    headers = [*asked.headers.multi_items(), ("content-type", "application/json")]
    content = msgspec.json.encode(voucher)
    return httpx.Request("POST", asked.url, headers=headers, content=content, extensions=asked.extensions)


def sealed_request(request: httpx.Request, exchange: SealedExchange) -> httpx.Request:
    """The request as it travels: same place and credentials, and not a byte of the body."""
    kept = [(name, value) for name, value in request.headers.multi_items() if name.lower() not in _HOP]
    headers = [*kept, ("accept-encoding", "identity"), ("content-type", CONTENT_TYPE), ("accept", CONTENT_TYPE)]
    headers = [(name, value) for name, value in headers if name.lower() != "accept" or value == CONTENT_TYPE]
    return httpx.Request(
        request.method, request.url, headers=headers, content=exchange.sent.raw, extensions=dict(request.extensions)
    )


def _beside(request: httpx.Request, plan: Plan, target: str) -> httpx.Request:
    base = request.url.path.removesuffix(plan.endpoint.path)
    url = request.url.copy_with(raw_path=(base + target).encode())
    credentials = {"authorization": request.headers.get("authorization", ""), "accept": "application/json"}
    extensions = {name: request.extensions[name] for name in ("timeout",) if name in request.extensions}
    return httpx.Request("GET", url, headers={**credentials, "accept-encoding": "identity"}, extensions=extensions)


def _plan(request: httpx.Request, body: bytes, trust: Trust) -> Plan:
    if request.method != "POST":
        raise NotSealableError(f"{request.method} requests cannot be sealed, and nothing is sent plainly")
    return plan_request(request.url.path, body, trust.manifests)


def _api_key(request: httpx.Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise NotSealableError("a sealed request names its API key: Authorization: Bearer ...")
    return key


def _require(workers: Sequence[VerifiedWorker], plan: Plan) -> None:
    if not workers:
        raise AttestationUnavailableError(f"no verified worker of {plan.model} has long enough to live")


def _attestation(status: int, body: bytes) -> bytes:
    if status != _OK:
        raise AttestationUnavailableError(f"the gateway shows no evidence of its workers (status {status})")
    return body


def _is_sealed(response: httpx.Response) -> bool:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower() == CONTENT_TYPE


def _require_sealed(response: httpx.Response) -> None:
    if not _is_sealed(response) or response.headers.get("content-encoding", "identity") != "identity":
        shown = response.headers.get("content-type", "an unnamed type")
        raise DowngradeError(f"a sealed request was answered with {shown}, which is not sealed")


def _workers_gone(body: bytes) -> bool:
    try:
        error = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return False
    return error.get("code") in WORKERS_GONE


def _error(response: httpx.Response, body: bytes) -> httpx.Response:
    """The gateway's own refusal, as it said it."""
    kept = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _HOP | _OWN]
    headers = [*kept, ("content-type", "application/json")]
    return httpx.Response(response.status_code, headers=headers, content=body)


def _refusal(response: httpx.Response, exchange: SealedExchange) -> httpx.Response:
    """The worker's refusal, in its sealed words."""
    status = _BAD_REQUEST if response.status_code == _OK else response.status_code
    return httpx.Response(status, headers=_headers(response, exchange, "application/json"), content=exchange.refusal)


def _headers(response: httpx.Response, exchange: SealedExchange, content_type: str | None = None) -> Mapping[str, str]:
    """The gateway's headers, but for those that would describe the sealed bytes or that the client knows better."""
    kept = {name: value for name, value in response.headers.items() if name.lower() not in _HOP | _OWN}
    own = {
        "content-type": content_type or exchange.content_type,
        RECEIPT_HEADER: str(exchange.job_id),
        TEE_HEADER: exchange.tee_types,
    }
    if exchange.worker is not None:
        own[KEYSET_HEADER] = exchange.worker.verdict.keyset_digest.hex()
    return {**kept, **own}


def _read(response: httpx.Response, bytes_max: int) -> bytes:
    assert isinstance(response.stream, httpx.SyncByteStream), "a sync transport's answer"
    read = bytearray()
    try:
        for chunk in response.stream:
            read += chunk
            _bounded(read, bytes_max)
    finally:
        response.close()
    return bytes(read)


async def _aread(response: httpx.Response, bytes_max: int) -> bytes:
    assert isinstance(response.stream, httpx.AsyncByteStream), "an async transport's answer"
    read = bytearray()
    try:
        async for chunk in response.stream:
            read += chunk
            _bounded(read, bytes_max)
    finally:
        await response.aclose()
    return bytes(read)


def _bounded(read: bytearray, bytes_max: int) -> None:
    if len(read) > bytes_max:
        raise AnswerRefusedError("the gateway's answer is too long")
