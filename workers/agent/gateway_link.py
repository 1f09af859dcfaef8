"""Enrols with the gateway and reports to it. A gateway that is away changes nothing for the jobs that run.

The worker key goes into one request's header, the token into the others'; neither is logged.
"""

import asyncio
import contextlib
import math
import random
import ssl

import httpx
import msgspec
import structlog

from cocoon.enrolment import (
    CHALLENGE_PATH,
    ENROL_PATH,
    HEARTBEAT_PATH,
    RENEW_PATH,
    Ask,
    Challenge,
    EnrolAnswer,
    EnrolRequest,
    Heartbeat,
    HeartbeatAnswer,
    ServedModel,
    Token,
)
from cocoon.errors import CocoonError
from workers.agent.admission import Admission
from workers.agent.credit import OperatorCredit
from workers.agent.engines.ports import Engine
from workers.agent.keys import Identity, KeyRing
from workers.agent.receipt_store import ReceiptStoreError
from workers.agent.settings import Settings, SettingsError
from workers.agent.tees.beacons import ToldBeacons
from workers.agent.tees.ports import TEE, EvidenceError

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

CALL_S_MAX = 10.0
ANSWER_BYTES_MAX = 1024 * 1024
"""Longest answer: proofs for a batch of receipts."""
BACKOFF_S_FIRST = 0.25
BACKOFF_S_MAX = 10.0
HEARTBEAT_S_MIN = 0.05
HEARTBEAT_S_MAX = 60.0
TOKEN_SPENT = 0.8
"""Part of a token's life after which a new one is asked for."""
TOKEN_S_MIN = 1
REATTEST_S_MIN = 0.5
ENGINE_POLL_S = 0.1
_OK = 200
_UNAUTHORISED = 401
_FORBIDDEN = 403
_SERVER_ERRORS = 500
ASK_REFUSED = "ask_refused"
_TICKET_KEY_BYTES_MIN = 32


class ForeignNetworkError(CocoonError):
    """The gateway belongs to another network than COCOON_GLOBAL_ID says."""

    code = "foreign_network"


class GatewayLink:
    """One agent's standing with its gateway."""

    def __init__(
        self, settings: Settings, *, url: str, keys: KeyRing, admission: Admission, engine: Engine, tee: TEE,
        beacons: ToldBeacons, credit: OperatorCredit, rng: random.Random, manifest: bytes = b"",
    ) -> None:  # fmt: skip
        self._credit = credit
        self._tee = tee
        self._beacons = beacons
        self._manifest = manifest
        self._settings = settings
        self._url = url
        self._keys = keys
        self._admission = admission
        self._engine = engine
        self._rng = rng
        self._nudge = asyncio.Event()
        self._reachable = True
        self._token: str | None = None
        self._tried: Ask | None = None
        self._accepted: Ask | None = None
        self._client = httpx.AsyncClient(
            base_url=settings.gateway_url,
            timeout=CALL_S_MAX,
            verify=_trust(settings.gateway_ca),
            # Proxies and certificate paths of the environment are not part of the agent's configuration.
            trust_env=False,
            follow_redirects=False,
        )

    @property
    def global_id(self) -> int | None:
        """The network of the current enrolment, None before the first."""
        return self._keys.current.global_id

    def report_soon(self) -> None:
        """Send the next heartbeat at once."""
        self._nudge.set()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """POST with the token of the current enrolment; status 0 when there was no answer or is no enrolment."""
        return await self._post(path, self._token, body) if self._token is not None else (0, b"")

    async def run(self) -> None:
        """Enrol when the engine is ready, then report until cancelled; enrol again whenever that is needed.

        Raises:
            ForeignNetworkError: the gateway is not the one this agent was configured for.
        """
        async with self._client:
            while not self._engine.ready:  # noqa: ASYNC110  a flag of the supervisor, which comes and goes
                await asyncio.sleep(ENGINE_POLL_S)
            identity = self._keys.current
            while True:
                answer = await self._enrol(identity)
                if identity is not self._keys.current:
                    self._keys.succeed(identity)
                    _log.info("keyset_succeeded", keyset=identity.digest.hex()[:16])
                if await self._report(answer):
                    identity = self._keys.successor()

    async def _enrol(self, identity: Identity) -> EnrolAnswer:
        """Ask until the gateway admits this keyset. An ask that it refuses is given up for the last one it accepted."""
        failures = 0
        ask = self._tried = self._settings.ask.current()
        while True:
            answer, refusal = await self._attempt(identity, ask)
            if answer is not None:
                break
            failures += 1
            if refusal is not None and refusal.code == ASK_REFUSED:
                _log.warning("ask_refused", reason=refusal.message, kept=self._accepted is not None)
                if self._accepted not in (None, ask):
                    ask = self._accepted
                    continue
                ask = self._tried = self._settings.ask.current()
            backoff = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** min(failures - 1, 10))
            await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.0))
        self._accepted = ask
        return answer

    async def _attempt(self, identity: Identity, ask: Ask | None) -> "tuple[EnrolAnswer | None, _Refusal | None]":
        """Enrol once, with fresh evidence where there is a TEE; an answer, a refusal, or neither."""
        evidence = await self._evidence(identity)
        if evidence is None:
            return None, None
        key = self._settings.worker_key.reveal()
        status, raw = await self._post(ENROL_PATH, key, self._enrolment(identity, ask, evidence))
        answer = _read_answer(raw) if status == _OK else None
        if answer is None:
            refusal = _read_refusal(raw) if status == _FORBIDDEN else None
            if refusal is None or refusal.code != ASK_REFUSED:
                reason, code = ("", None) if refusal is None else (refusal.message, refusal.code)
                _log.warning("enrolment_failed", status=status, code=code, reason=reason)
            return None, refusal
        pinned = self._settings.global_id
        if pinned is not None and answer.global_id != pinned:
            raise ForeignNetworkError
        identity.ticket_key = answer.ticket_key
        identity.global_id = answer.global_id
        self._token = answer.token
        keyset = identity.digest.hex()[:16]
        if answer.outcome == "quarantined":
            reasons = [f"{reason.message} [{reason.code}]" for reason in answer.reasons]
            _log.warning("worker_quarantined", worker_id=str(answer.worker_id), keyset=keyset, reasons=reasons)
        else:
            _log.info("worker_enrolled", worker_id=str(answer.worker_id), keyset=keyset, tee=self._tee.tee_type)
        return answer, None

    @property
    def _served(self) -> ServedModel:
        told = self._settings
        return ServedModel(id=told.served_model, context_tokens=told.context_tokens, endpoints=told.endpoints)

    async def _evidence(self, identity: Identity) -> bytes | None:
        """Evidence for a nonce of the gateway's; empty where there is no TEE, None when none can be had now."""
        if self._tee.tee_type == "none":
            return b""
        status, raw = await self._post(CHALLENGE_PATH, self._settings.worker_key.reveal(), b"")
        try:
            challenge = msgspec.json.decode(raw, type=Challenge) if status == _OK else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            challenge = None
        if challenge is None:
            _log.warning("challenge_failed", status=status)
            return None
        self._beacons.note(challenge.beacon)
        try:
            return await self._tee.evidence(identity.raw, challenge.nonce)
        except EvidenceError as error:
            _log.warning("evidence_unavailable", reason=str(error))
            return None

    def _enrolment(self, identity: Identity, ask: Ask | None, evidence: bytes) -> bytes:
        return msgspec.json.encode(
            EnrolRequest(
                keyset=identity.raw,
                url=self._url,
                name=self._settings.name,
                models=(self._served,),
                capacity=self._settings.capacity,
                engine=self._engine.label,
                tee_type=self._tee.tee_type,
                asks=() if ask is None else (ask,),
                evidence=evidence,
                manifest=self._manifest,
                stake=identity.stake_config,
            )
        )

    async def _report(self, answer: EnrolAnswer) -> bool:
        """Heartbeats until a new enrolment is due; True when that needs a new keyset."""
        interval = min(HEARTBEAT_S_MAX, max(HEARTBEAT_S_MIN, answer.heartbeat_seconds))
        loop = asyncio.get_running_loop()
        token_until = loop.time() + _spent_after(answer.token_seconds)
        reattest_at = _reattest_at(answer)
        while True:
            self._nudge.clear()
            beat = msgspec.json.encode(await self._heartbeat())
            status, raw = await self._post(HEARTBEAT_PATH, self._token or answer.token, beat)
            if status == _UNAUTHORISED:
                _log.info("token_refused")
                # A gateway that admits and then refuses must not be hammered.
                await asyncio.sleep(BACKOFF_S_FIRST)
                return False
            if status == _OK:
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    self._beacons.note(msgspec.json.decode(raw, type=HeartbeatAnswer).beacon)
            if not self._admission.draining:
                if self._keys.current.renewal_due_s <= 0:
                    return True
                if self._settings.ask.current() != self._tried:
                    return False
                if loop.time() >= token_until:
                    renewed_for = await self._renew_token()
                    if renewed_for is None:
                        return False
                    token_until = loop.time() + renewed_for
            if loop.time() >= reattest_at:
                # What was shown before counts until its end: a gateway that cannot judge now costs nothing yet.
                renewed, _ = await self._attempt(self._keys.current, self._accepted)
                reattest_at = loop.time() + BACKOFF_S_MAX if renewed is None else _reattest_at(renewed)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._nudge.wait()

    async def _renew_token(self) -> float | None:
        """Seconds until the next renewal; None when only a new enrolment helps."""
        status, raw = await self.post(RENEW_PATH, b"")
        if status == _OK:
            try:
                renewed = msgspec.json.decode(raw, type=Token)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            self._token = renewed.token
            return _spent_after(renewed.token_seconds)
        # A gateway that is away is asked again at the next heartbeat, as long as the token lasts.
        return 0.0 if status == 0 or status >= _SERVER_ERRORS else None

    async def _heartbeat(self) -> Heartbeat:
        load = await self._engine.load()
        with contextlib.suppress(ReceiptStoreError):  # jobs are refused while the disk does that
            await self._credit.refresh()
        return Heartbeat(
            running=self._admission.running,
            queued=0 if load is None else load.queued,
            capacity=self._settings.capacity if self._engine.ready and self._credit.accepting else 0,
            draining=self._admission.draining,
        )

    async def _post(self, path: str, bearer: str, body: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 when there was no answer. Logs only when reachability changes."""
        headers = {"authorization": f"Bearer {bearer}", "content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(CALL_S_MAX),
                self._client.stream("POST", path, content=body, headers=headers) as response,
            ):
                received = bytearray()
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if len(received) > ANSWER_BYTES_MAX:
                        return 0, b""
                self._reached(path, reachable=True)
                return response.status_code, bytes(received)
        except (httpx.HTTPError, TimeoutError) as error:
            self._reached(path, reachable=False, reason=type(error).__name__)
            return 0, b""

    def _reached(self, path: str, *, reachable: bool, reason: str = "") -> None:
        if reachable != self._reachable:
            self._reachable = reachable
            event = "gateway_reached" if reachable else "gateway_unreachable"
            _log.warning(event, path=path, reason=reason)


def _reattest_at(answer: EnrolAnswer) -> float:
    """When fresh evidence is due, on the loop's clock."""
    if answer.reattest_seconds <= 0:
        return math.inf
    return asyncio.get_running_loop().time() + max(REATTEST_S_MIN, answer.reattest_seconds)


def _spent_after(token_seconds: int) -> float:
    return max(TOKEN_S_MIN, token_seconds) * TOKEN_SPENT


def _read_answer(raw: bytes) -> EnrolAnswer | None:
    try:
        answer = msgspec.json.decode(raw, type=EnrolAnswer)
    except msgspec.DecodeError:
        return None
    return answer if len(answer.ticket_key) >= _TICKET_KEY_BYTES_MIN else None


class _Refusal(msgspec.Struct, frozen=True):
    """What a gateway says when it refuses."""

    message: str = ""
    code: str | None = None


class _RefusalBody(msgspec.Struct, frozen=True):
    error: _Refusal


def _read_refusal(raw: bytes) -> _Refusal | None:
    try:
        return msgspec.json.decode(raw, type=_RefusalBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _trust(path: str | None) -> ssl.SSLContext:
    """Roots for the gateway's certificate: the system's, and a private authority's when one is given.

    Raises:
        SettingsError: the file cannot be read.
    """
    context = ssl.create_default_context()
    if path is not None:
        try:
            context.load_verify_locations(path)
        except OSError as error:
            raise SettingsError(f"COCOON_GATEWAY_CA cannot be read: {error.strerror}") from error
    return context
