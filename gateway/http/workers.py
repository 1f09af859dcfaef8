"""What worker agents call: enrolment with a worker key; heartbeats, receipts and signatures with the token it gave."""

from typing import Any

import msgspec
import structlog
from litestar import Controller, Response, get, post
from litestar.connection import Request

from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE
from cocoon.enrolment import (
    CHALLENGE_PATH,
    ENROL_PATH,
    EVIDENCE_BYTES_MAX,
    HEARTBEAT_PATH,
    MANIFEST_BYTES_MAX,
    RENEW_PATH,
    STAKE_TERMS_PATH,
    Challenge,
    EnrolAnswer,
    EnrolRequest,
    Heartbeat,
    HeartbeatAnswer,
    Reason,
    StakeTermsAnswer,
    Token,
)
from cocoon.receipt_batch import BATCH_BYTES_MAX, RECEIPTS_PATH, ReceiptBatch
from cocoon.signatures import REQUEST_BYTES_MAX, SIGNATURES_PATH, SignaturesRequest
from cocoon.ticket import ticket_key
from gateway.errors import BodyTooLargeError, InvalidRequestError
from gateway.http.access import worker_of
from gateway.http.evidence import judged_for
from gateway.quotes import require_acceptable
from gateway.services import Services
from workers.enrolments import admit, require_manifest
from workers.errors import HeartbeatBusUnavailableError, TokenRefusedError
from workers.judgement import Judged
from workers.postgres.attestations import CHALLENGE_S
from workers.stakes import StakeTerms, require_stake
from workers.targets import Worker, worker_id_of
from workers.tokens import TokenClaims, token_seconds

CONTROL_BYTES_MAX = 64 * 1024
"""Longest heartbeat."""
ENROL_BYTES_MAX = CONTROL_BYTES_MAX + 4 * (EVIDENCE_BYTES_MAX + MANIFEST_BYTES_MAX) // 3
"""Longest enrolment: what it says, and its evidence and manifest in base64."""
_enrol_decoder = msgspec.json.Decoder(EnrolRequest)
_heartbeat_decoder = msgspec.json.Decoder(Heartbeat)
_signatures_decoder = msgspec.json.Decoder(SignaturesRequest)
_receipts_decoder = msgspec.json.Decoder(ReceiptBatch)
log = structlog.get_logger()


class WorkersController(Controller):
    """The control plane of workers."""

    @post(CHALLENGE_PATH, status_code=200)
    async def challenge(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """A nonce for the evidence of one enrolment."""
        principal = worker_of(request, services)
        nonce = await services.attestations.challenge(principal.key_id)
        challenge = Challenge(nonce, CHALLENGE_S, services.beacons.head)
        return Response(msgspec.json.encode(challenge), media_type="application/json")

    @post(ENROL_PATH, status_code=200)
    async def enrol(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """Admit a worker: from now on it gets requests while its heartbeats arrive and its evidence lasts."""
        principal = worker_of(request, services)
        asked: EnrolRequest = await decoded(request, _enrol_decoder, ENROL_BYTES_MAX)
        worker = admit(
            asked,
            worker_id=worker_id_of(principal.key_id, asked.name),
            now=services.clock.now(),
            allow_private=services.settings.allow_private_workers,
        )
        require_manifest(asked, worker)
        require_stake(asked, _stake_terms(services))
        for ask in asked.asks:
            require_acceptable(ask, services.prices.book.offer(ask.model))
        judged = await judged_for(services, principal.key_id, asked, worker)
        stored, judged = await services.enrolments.save_judged(
            worker,
            principal.key_id,
            judged,
            workers_per_platform=services.attestor.workers_per_platform,
            manifest=asked.manifest,
            stake=asked.stake,
        )
        services.registry.put_enrolment(stored)
        answer = _enrolled(services, stored, judged)
        log.info(
            "worker_enrolled", worker=stored.name, worker_id=str(stored.worker_id), url=stored.url,
            tee_type=stored.tee_type, outcome=answer.outcome, reasons=[reason.code for reason in answer.reasons],
        )  # fmt: skip
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @get(STAKE_TERMS_PATH)
    async def stake_terms(self, services: Services) -> Response[bytes]:
        """What a stake has to say to count here. Anybody may ask; who bonds one should know the operator otherwise."""
        terms = _stake_terms(services)
        answer = StakeTermsAnswer(
            global_id=terms.global_id,
            operator=None if terms.operator is None else str(terms.operator),
            operator_key=terms.operator_key.hex(),
            code_hash=code_of(CODE).hash.hex(),
            unbond_s_min=terms.unbond_s_min,
            bounty_bps_min=terms.bounty_bps_min,
            unit_nano=0 if services.settings.stakes is None else services.settings.stakes.unit_nano,
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @post(HEARTBEAT_PATH, status_code=200)
    async def heartbeat(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """Note that a worker is alive and how loaded it is. 401 tells it to enrol again."""
        claims = _claims(request, services)
        beat: Heartbeat = await decoded(request, _heartbeat_decoder)
        await _enrolled_as(services, claims)
        try:
            await services.heartbeats.publish(claims.worker_id, beat)
        except HeartbeatBusUnavailableError as error:
            log.warning("heartbeat_not_published", code=error.code)
        head = services.beacons.head
        if head is None:
            return Response(b"", status_code=204)
        return Response(msgspec.json.encode(HeartbeatAnswer(head)), media_type="application/json")

    @post(RENEW_PATH, status_code=200)
    async def token(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """The next token for a worker whose enrolment still stands: its key not revoked, its keyset not replaced."""
        claims = _claims(request, services)
        # The database is asked: what was revoked elsewhere a moment ago must not live on in a token.
        worker = await _stored_as(services, claims)
        return Response(msgspec.json.encode(_token_for(services, worker)), media_type="application/json")

    @post(RECEIPTS_PATH, status_code=200)
    async def receipts(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """Judge and keep receipts. Who was enrolled when it signed may deliver, whether or not it still is."""
        claims = _claims(request, services)
        batch: ReceiptBatch = await decoded(request, _receipts_decoder, BATCH_BYTES_MAX)
        answer = await services.receipts.deliver(claims.worker_id, batch)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @post(SIGNATURES_PATH, status_code=200)
    async def signatures(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """Sign the tickets that this worker was given by any gateway of the network."""
        claims = _claims(request, services)
        asked: SignaturesRequest = await decoded(request, _signatures_decoder, REQUEST_BYTES_MAX)
        answer = await services.signer.sign_tickets(claims.worker_id, asked)
        return Response(msgspec.json.encode(answer), media_type="application/json")


def _stake_terms(services: Services) -> StakeTerms:
    settings = services.settings
    return StakeTerms(
        global_id=settings.global_id,
        operator_key=services.signer.operator_key,
        operator=None if settings.escrows is None else settings.escrows.operator,
        unbond_s_min=settings.stake_unbond_s_min,
        bounty_bps_min=settings.stake_bounty_bps_min,
    )


def _enrolled(services: Services, worker: Worker, judged: Judged | None) -> EnrolAnswer:
    secret, now = bytes.fromhex(services.settings.network_secret.reveal()), services.clock.now()
    given = _token_for(services, worker)
    answer = EnrolAnswer(
        worker_id=worker.worker_id,
        token=given.token,
        token_seconds=given.token_seconds,
        ticket_key=ticket_key(secret, worker.keyset_digest),
        global_id=services.settings.global_id,
    )
    if judged is None:
        return answer
    return msgspec.structs.replace(
        answer,
        outcome="quarantined" if worker.quarantined else "admitted",
        reasons=tuple(Reason(code=reason.code.value, message=reason.message) for reason in judged.reasons),
        attested_until=worker.attested_until,
        reattest_seconds=judged.reattest_s(now),
    )


def _token_for(services: Services, worker: Worker) -> Token:
    now = services.clock.now()
    seconds = token_seconds(now, worker.not_after)
    return Token(services.tokens.mint(worker.worker_id, worker.keyset_digest, now, seconds), seconds)


def _claims(request: Request[Any, Any, Any], services: Services) -> TokenClaims:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise TokenRefusedError
    return services.tokens.verify(token, services.clock.now())


async def _enrolled_as(services: Services, claims: TokenClaims) -> None:
    """Require that this keyset is still the worker's. Memory may lag behind another replica, so a no is asked again.

    Raises:
        TokenRefusedError: it is not.
    """
    known = services.registry.worker(claims.worker_id)
    if known is None or known.keyset_digest != claims.keyset_digest:
        await _stored_as(services, claims)


async def _stored_as(services: Services, claims: TokenClaims) -> Worker:
    """The worker that enrolled with this keyset and still stands.

    Raises:
        TokenRefusedError: there is none.
    """
    for worker in await services.enrolments.load():
        if worker.worker_id == claims.worker_id and worker.keyset_digest == claims.keyset_digest:
            return worker
    raise TokenRefusedError


async def decoded(
    request: Request[Any, Any, Any], decoder: msgspec.json.Decoder[Any], bytes_max: int = CONTROL_BYTES_MAX
) -> Any:
    """What `decoder` reads in a body of at most `bytes_max`.

    Raises:
        BodyTooLargeError: it is longer.
        InvalidRequestError: it is not what the decoder reads.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > bytes_max:
        raise BodyTooLargeError
    body = await request.body()
    if len(body) > bytes_max:
        raise BodyTooLargeError
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = str(error) if isinstance(error, msgspec.DecodeError) else "The body is not valid JSON."
        raise InvalidRequestError(message, code="invalid_type") from error
