"""The composition root: the only place that knows which parts there are and how they fit together."""

import asyncio
import contextlib
import gc
import math
import os
import random
import socket
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import httpx
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler, asgi
from litestar.openapi.config import OpenAPIConfig
from litestar.router import Router as Routes
from litestar.types import HTTPScope, Receive, Scope, Send

from audit.postgres.reader import LogReader
from audit.postgres.sequencer import Sequencer
from billing.lease_book import LeaseTerms
from billing.leases import LeasedLedger
from billing.ports import Ledger
from billing.postgres.account import Accounts
from billing.postgres.covers import Covers
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.partitions import ensure_partitions
from billing.postgres.pool import Pool, open_pool
from billing.postgres.prices import load_price_book
from billing.postgres.recoveries import Recoveries
from billing.stakes import CoverTerms
from billing.ton.chain import Chain
from billing.ton.wallet_keys import ChainWalletKeys
from cocoon import openai
from cocoon.checkpoints import NoteSigner
from cocoon.clock import Clock, SystemClock, system_random
from cocoon.endpoints import ENDPOINTS, Endpoint
from cocoon.errors import CocoonError, MalformedError
from cocoon.logs import configure_logging
from cocoon.tracing import start_tracer
from gateway.alerts import AlertSender
from gateway.attempts import Attempts
from gateway.auth import KeyTable
from gateway.background import Background
from gateway.beacons import Beacons
from gateway.client import Limits
from gateway.collateral import CollateralKeeper
from gateway.escrows import CHALLENGE_S_MIN, EscrowDesk, EscrowRules
from gateway.evidence_desk import EvidenceDesk
from gateway.http.account import AccountController
from gateway.http.admin import AdminController, OrganisationsController
from gateway.http.attestation import AttestationController
from gateway.http.bodies import BodyRoom
from gateway.http.epochs import EpochsController
from gateway.http.errors import error_answer, explained
from gateway.http.escrows import EscrowsController
from gateway.http.health import healthz, readyz
from gateway.http.inference import serve_inference
from gateway.http.log import LogController
from gateway.http.manifests import ManifestsController
from gateway.http.models import ModelsController
from gateway.http.organisation import OrganisationController
from gateway.http.receipts import ReceiptsController
from gateway.http.uploads import read_before_refusing
from gateway.http.wallets import WalletsController
from gateway.http.workers import WorkersController
from gateway.idempotency import Idempotency
from gateway.limiter import SlicedLimiter
from gateway.over_claims import OverClaims
from gateway.pipeline import Pipeline
from gateway.postgres.collateral import CollateralStore
from gateway.postgres.idempotency import PostgresClaims
from gateway.postgres.keys import KeyListener
from gateway.postgres.receipts import ReceiptBook
from gateway.postgres.sealed_jobs import PostgresJobBook
from gateway.postgres.spend import PostgresSpend
from gateway.postgres.standing import StandingStore
from gateway.postgres.wallets import WalletKeyStore
from gateway.prices import Prices
from gateway.receipts import ReceiptDesk
from gateway.recovery import Reconciler
from gateway.redis.slices import RedisSlices
from gateway.sealed import SealedRequests
from gateway.services import Services
from gateway.settings import Settings, SettingsError, read_settings
from gateway.settle import SETTLE_S_MAX, Settler
from gateway.signing import BatchSigner, GatewayKey, development_key
from gateway.stakes import Stakes
from gateway.standing import Standing
from gateway.stopping import graceful_stop
from gateway.verifier import new_attestor
from gateway.wallet_keys import Challenges, WalletDoor
from workers.enrolments import upstream
from workers.postgres.attestations import AttestationStore
from workers.postgres.enrolments import EnrolmentListener, EnrolmentStore
from workers.redis.heartbeats import HeartbeatBus
from workers.registry import Registry
from workers.routing import RetryBudget, Router
from workers.targets import Upstream
from workers.tokens import WorkerTokens
from workers.transport import Transport

SWEEP_S = 5.0
"""How often each process looks for holds past their time."""
SWEEP_HOLDS_MAX = 500
PARTITIONS_S = 3600.0
REPORT_S = 10.0
STALLED_S = 1.0
"""A row is flushed within 50 ms; one that has waited for this long has no database."""
LEASE_MARGIN_PART = 0.1
"""Of a lease's time to live: how much earlier than the database this process considers it over."""
GC_THRESHOLDS = (10_000, 20, 50)
"""A request leaves no cycles when all goes well: Python's own 700 would have it look for them at every second one."""
TABLES_S_MAX = 5.0
"""How long a process waits for its tables before it accepts requests; what is missing then is answered with 503."""
CONTROLLERS = (
    ModelsController, AccountController, OrganisationController, OrganisationsController, AdminController,
    LogController, ReceiptsController, ManifestsController, WorkersController, WalletsController, AttestationController,
    EscrowsController, EpochsController,
)  # fmt: skip
log = structlog.get_logger()


Opener = Callable[[Settings], contextlib.AbstractAsyncContextManager[Services]]


def create_app(settings: Settings | None = None, opener: Opener | None = None) -> Litestar:
    """The application of one process, configured from the environment; `opener` builds its parts."""
    configure_logging("gateway")
    chosen = settings or read_settings()
    holder: list[Services] = []
    room = BodyRoom(each_max=chosen.body_bytes_max, total_max=chosen.bodies_bytes_max)

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        async with (opener or open_services)(chosen) as services, graceful_stop(services):
            holder.append(services)
            app.state["services"] = services
            # What start-up made lives for ever: keeping it out of collections takes the 99th percentile down 3x.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            yield
        log.info("gateway_stopped")

    def inference(endpoint: Endpoint) -> ASGIRouteHandler:
        @asgi(endpoint.path, copy_scope=False)
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await serve_inference(holder[0].pipeline, endpoint, room, cast("HTTPScope", scope), receive, send)

        return serve

    plain = Routes("/", route_handlers=CONTROLLERS, middleware=[read_before_refusing])
    return Litestar(
        route_handlers=[*(inference(endpoint) for endpoint in ENDPOINTS), plain, healthz, readyz],
        lifespan=[lifespan],
        dependencies={"services": Provide(lambda: holder[0], sync_to_thread=False)},
        exception_handlers={CocoonError: _typed_error, HTTPException: _framework_error, Exception: _unknown_error},
        openapi_config=OpenAPIConfig(title="Cocoon", version="1", path="/schema"),
        logging_config=None,
        debug=False,
    )


@contextlib.asynccontextmanager
async def open_services(settings: Settings) -> AsyncGenerator[Services]:
    """Build, start and, in reverse order, stop every part of a process."""
    clock, rng = SystemClock(), system_random()
    database_url, redis_url = settings.database_url.reveal(), settings.redis_url.reveal()
    network_secret = bytes.fromhex(settings.network_secret.reveal())
    keys, prices, registry = KeyTable(clock), Prices(), Registry(clock)
    registry.set_upstreams(_upstreams(settings))
    tracer = start_tracer("cocoon-gateway", settings.otlp_endpoint, _dice(rng))
    transport = Transport(clock, allow_private=settings.allow_private_workers)
    heartbeats = HeartbeatBus(redis_url, registry, clock, rng)
    signer = BatchSigner(
        _gateway_key(settings, clock), global_id=settings.global_id, network_secret=network_secret, clock=clock
    )
    log_signer = _log_signer(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(tracer.close)
        stack.callback(transport.close)
        stack.push_async_callback(heartbeats.close)
        pool = await stack.enter_async_context(open_pool(database_url, application="cocoon-gateway"))
        stakes = _stakes(stack, settings, pool, registry, clock, rng)
        limiter = SlicedLimiter(
            RedisSlices(redis_url, f"{rng.getrandbits(64):016x}"), PostgresSpend(pool), clock, _dice(rng),
            processes=settings.processes,
        )  # fmt: skip
        stack.push_async_callback(limiter.close)
        ledger = await stack.enter_async_context(_leased_ledger(settings, pool, clock, rng))
        idempotency = await stack.enter_async_context(Idempotency(PostgresClaims(pool), clock))
        settler = await stack.enter_async_context(Settler(ledger, clock, ledger))
        recoveries = Recoveries(pool, PostgresLeases(pool, database_url))
        over_claims = OverClaims(recoveries.note_over_claims)
        client = await stack.enter_async_context(httpx.AsyncClient())
        chain = await _chain(stack, settings, clock)
        beacons = Beacons(chain, clock)
        attestor = new_attestor(settings, clock, client, CollateralStore(pool), beacons)
        attempts = Attempts(
            Router(registry, clock, _dice(rng), staked=stakes is not None), transport, RetryBudget(clock), clock,
            network_secret=network_secret, global_id=settings.global_id, request_s_max=settings.request_s_max,
            sealed_require="tdx" if attestor.judges else "any",
            claim_cover=None if stakes is None else stakes.claim_now,
        )  # fmt: skip
        pipeline = Pipeline(
            keys=keys, limiter=limiter, ledger=ledger, prices=prices, attempts=attempts, settler=settler,
            idempotency=idempotency, tracer=tracer, clock=clock, rng=rng, limits=_limits(settings),
            over_claims=over_claims,
            sealed=SealedRequests(await stack.enter_async_context(PostgresJobBook(pool)), clock),
        )  # fmt: skip
        attestations = AttestationStore(pool, rng)
        services = Services(
            settings=settings, clock=clock, keys=keys, prices=prices, ledger=ledger, accounts=Accounts(pool),
            registry=registry,
            enrolments=EnrolmentStore(pool, clock, allow_private=settings.allow_private_workers, judges=attestor),
            attestor=attestor, attestations=attestations,
            desk=EvidenceDesk(
                registry, transport, attestor, attestations, clock, _dice(rng), network_secret=network_secret
            ),
            heartbeats=heartbeats, tokens=WorkerTokens(network_secret), settler=settler, limiter=limiter,
            pipeline=pipeline,
            receipts=_receipt_desk(settings, pool, recoveries, signer, clock),
            pool=pool, signer=signer, log_reader=LogReader(pool), log_verifier=log_signer.verifier,
            wallets=_wallet_door(settings, pool, network_secret, clock, rng, chain),
            escrows=EscrowDesk(pool, _escrow_rules(settings), clock, rng), beacons=beacons,
        )  # fmt: skip
        key_listener = KeyListener(database_url, keys, clock, rng)
        enrolment_listener = EnrolmentListener(
            database_url, registry, clock, rng, allow_private=settings.allow_private_workers, judges=attestor
        )  # fmt: skip
        background = await stack.enter_async_context(Background())
        background.start("signatures", signer.run)
        background.start("log", Sequencer(database_url, log_signer).run)
        background.start("over_claims", over_claims.run)
        background.start("keys", key_listener.run)
        background.start("enrolments", enrolment_listener.run)
        background.start("prices", lambda: prices.keep_fresh(lambda: load_price_book(pool)))
        background.start("limits", limiter.run)
        _start_chores(background, services, rng)
        await _first_load(key_listener.loaded, enrolment_listener.loaded, prices.loaded)
        # Read once it is known whose they are, so that a new process routes at once.
        background.start("heartbeats", heartbeats.run)
        await _start_stakes(background, stakes)
        yield services


def _start_chores(background: Background, services: Services, rng: random.Random) -> None:
    """What every process does beside answering requests, and none has to do soon."""
    pool, ledger, settings = services.pool, services.ledger, services.settings
    keeper = CollateralKeeper(services.attestor.cache, CollateralStore(pool), rng, settings.attestation.refresh_s)
    background.start("collateral", keeper.run)
    background.start("beacons", services.beacons.run)
    background.start("policy", lambda: _note_policy(services))
    background.start("standing", Standing(StandingStore(pool), services.registry).run)
    background.start("sweep", lambda: _sweep(ledger))
    background.start("report", lambda: _report(ledger))
    background.start("alerts", AlertSender(pool, settings.alerts, services.clock, rng).run)
    background.start("partitions", lambda: _keep_partitions(pool, settings.receipt_days))


def _stakes(
    stack: contextlib.AsyncExitStack, settings: Settings, pool: Pool, registry: Registry, clock: Clock,
    rng: random.Random,
) -> Stakes | None:  # fmt: skip
    """None where workers need none. What is covered comes back when everything is settled, before the pool closes."""
    if settings.stakes is None:
        return None
    terms = CoverTerms(linger_s=_recovery_s(settings), window_s=settings.stakes.window_s)
    holder = uuid.UUID(int=rng.getrandbits(128))
    stakes = Stakes(Covers(pool, holder, terms), registry, clock, terms, settings.stakes.unit_nano)
    stack.push_async_callback(stakes.close)
    return stakes


async def _start_stakes(background: Background, stakes: Stakes | None) -> None:
    """Have the stakes of workers that are enrolled at hand, where they are asked for."""
    if stakes is not None:
        background.start("stakes", stakes.run)
        await _first_load(stakes.loaded)


def _upstreams(settings: Settings) -> list[Upstream]:
    return [
        upstream(
            name=u.name, url=u.url, models=u.models, context_tokens=u.context_tokens, capacity=u.capacity,
            endpoints=u.endpoints, api_key=u.api_key,
        )
        for u in settings.upstreams
    ]  # fmt: skip


def _limits(settings: Settings) -> Limits:
    return Limits(
        first_byte_s=settings.first_byte_s,
        idle_s=settings.idle_s,
        request_s_max=settings.request_s_max,
        keep_alive_s=settings.keep_alive_s,
        exchanges_max=settings.exchanges_max,
    )


def _gateway_key(settings: Settings, clock: Clock) -> GatewayKey:
    """The key that signs tickets.

    Raises:
        SettingsError: key and delegation are not for each other, for this network, or for now.
    """
    if settings.gateway_key is None or settings.delegation is None:
        secret = bytes.fromhex(settings.network_secret.reveal())
        return development_key(secret, global_id=settings.global_id, clock=clock)
    try:
        return GatewayKey(
            bytes.fromhex(settings.gateway_key.reveal()), settings.delegation, global_id=settings.global_id,
            clock=clock,
        )  # fmt: skip
    except MalformedError as error:
        raise SettingsError(f"COCOON_GATEWAY_DELEGATION cannot be used: {error}") from error


def _receipt_desk(
    settings: Settings, pool: Pool, recoveries: Recoveries, signer: BatchSigner, clock: Clock
) -> ReceiptDesk:
    secret = bytes.fromhex(settings.network_secret.reveal())
    judge = Reconciler(recoveries, network_secret=secret, global_id=settings.global_id)
    return ReceiptDesk(judge, signer, ReceiptBook(pool), recoveries, LogReader(pool), clock)


def _log_signer(settings: Settings) -> NoteSigner:
    seed = bytes.fromhex(settings.log.seed.reveal())
    return NoteSigner(settings.log.origin, Ed25519PrivateKey.from_private_bytes(seed))


async def _chain(stack: contextlib.AsyncExitStack, settings: Settings, clock: Clock) -> Chain | None:
    """The chain, where liteservers are named; it connects when it is first asked."""
    if settings.liteservers is None:
        return None
    # 20 MB of a process that many gateways do not need.
    from billing.ton.liteclient import LiteChain  # noqa: PLC0415  as above

    return await stack.enter_async_context(LiteChain(settings.liteservers, clock, global_id=settings.global_id))


def _wallet_door(
    settings: Settings, pool: Pool, network_secret: bytes, clock: Clock, rng: random.Random, chain: Chain | None
) -> WalletDoor:
    return WalletDoor(
        Challenges(network_secret, clock, rng), WalletKeyStore(pool, clock, rng), clock,
        domains=settings.wallet_domains, global_id=settings.global_id,
        keys=None if chain is None else ChainWalletKeys(chain),
    )  # fmt: skip


def _escrow_rules(settings: Settings) -> EscrowRules | None:
    """None where the operator's wallet or payout contract is not named: then no escrow is taken."""
    escrows = settings.escrows
    if escrows is None:
        return None
    # The operator has to hear of a close request, have its leases back and settle (PROTOCOL §6).
    least = 4 * (settings.lease_ttl_s + settings.request_s_max + _recovery_s(settings))
    return EscrowRules(
        global_id=settings.global_id, operator=escrows.operator, payout=escrows.payout,
        operator_key=escrows.operator_key,
        challenge_s_min=escrows.challenge_s_min or max(CHALLENGE_S_MIN, math.ceil(least)),
    )  # fmt: skip


def _recovery_s(settings: Settings) -> float:
    """The longest request, and the longest that its settlement is retried (PROTOCOL §6)."""
    return settings.request_s_max + SETTLE_S_MAX


def _leased_ledger(settings: Settings, pool: Pool, clock: Clock, rng: random.Random) -> LeasedLedger:
    return LeasedLedger(
        PostgresLedger(pool),
        PostgresLeases(pool, settings.database_url.reveal()),
        clock,
        rng,
        holder=f"{socket.gethostname()[:64]}/{os.getpid()}/{rng.getrandbits(64):016x}",
        terms=LeaseTerms(
            ttl_s=settings.lease_ttl_s,
            margin_s=settings.lease_ttl_s * LEASE_MARGIN_PART,
            idle_s=settings.lease_idle_s,
            recovery_s=_recovery_s(settings),
        ),
    )


def _dice(rng: random.Random) -> random.Random:
    """Routing and tracing draw for every request and hide nothing: no system call for it."""
    return random.Random(rng.getrandbits(64))  # noqa: S311  no secret depends on it


async def _first_load(*tables: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TABLES_S_MAX):
            for table in tables:
                await table.wait()


async def _sweep(ledger: Ledger) -> None:
    """Release what nobody ended in time: holds, and leases whose process died.

    Every process sweeps; rows that another one holds are skipped.
    """
    while True:
        with contextlib.suppress(CocoonError):
            expired = await ledger.expire_due(SWEEP_HOLDS_MAX)
            if expired:
                log.info("holds_expired", count=expired)
        await asyncio.sleep(SWEEP_S)


async def _report(ledger: LeasedLedger) -> None:
    """Say how journal and leases stand, while anything happens; a journal that waits is a warning."""
    reported = ledger.facts
    while True:
        await asyncio.sleep(REPORT_S)
        facts = ledger.facts
        if facts.waiting_s > STALLED_S:
            log.warning("journal_stalled", **msgspec.structs.asdict(facts))
        elif (facts.rows_flushed, facts.leases, facts.holds) != (
            reported.rows_flushed,
            reported.leases,
            reported.holds,
        ):
            log.info("ledger_reported", **msgspec.structs.asdict(facts))
        reported = facts


async def _note_policy(services: Services) -> None:
    """Have the policy in the log once, whoever is first."""
    policy, text = services.attestor.policy, services.settings.attestation.policy
    if policy is not None and text is not None:
        await services.attestations.note_policy(policy.sha256, text)
    await asyncio.Event().wait()


async def _keep_partitions(pool: Pool, receipt_days: int) -> None:
    """Have the days to come ready before they come, and drop receipts of days long gone."""
    while True:
        try:
            await ensure_partitions(pool)
            if dropped := await ReceiptBook(pool).forget(receipt_days):
                log.info("receipts_dropped", partitions=dropped, days=receipt_days)
        except CocoonError as error:
            log.warning("partitions_not_ensured", code=error.code)
            await asyncio.sleep(SWEEP_S)
            continue
        await asyncio.sleep(PARTITIONS_S)


def _typed_error(_: Request[Any, Any, Any], error: CocoonError) -> Response[bytes]:
    answer = error_answer(error)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, status_code=answer.status, headers=headers, media_type="application/json")


def _framework_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Litestar's own refusals (no such path, wrong method, bad parameter) in OpenAI's shape."""
    server = error.status_code >= 500  # noqa: PLR2004  HTTP's own border
    kind = "server_error" if server else "invalid_request_error"
    message, param = ("Internal error.", None) if server else explained(error.detail, error.extra)
    return Response(
        openai.error_json(message, kind, param=param, code=error.__class__.__name__.removesuffix("Exception").lower()),
        status_code=error.status_code,
        headers=dict(error.headers or {}),
        media_type="application/json",
    )


def _unknown_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return _typed_error(request, CocoonError())
