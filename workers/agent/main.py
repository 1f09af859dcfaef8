"""Wires the agent and runs it from start-up to the last receipt.

The order of the end: say that we drain, refuse new jobs, let the running ones finish, break those that do not, close
the listener, stop the engine.
"""

import asyncio
import contextlib
import random
import signal
import socket
from collections.abc import Coroutine, Generator

import structlog
import uvicorn

from attestation.policy import Deployment
from cocoon.clock import Clock
from cocoon.errors import CocoonError
from cocoon.tracing import start_tracer
from workers.agent.admission import Admission
from workers.agent.app import AgentApp
from workers.agent.credit import OperatorCredit
from workers.agent.engines.openai_url import OpenAIEngine
from workers.agent.engines.ports import Engine
from workers.agent.engines.sglang import SGLangEngine
from workers.agent.engines.xllamacpp import XLlamaCppEngine
from workers.agent.gateway_link import GatewayLink
from workers.agent.keys import KeyRing, new_boot_id
from workers.agent.receipt_sender import ReceiptSender
from workers.agent.receipt_store import ReceiptStore
from workers.agent.served_manifest import ServedManifest, read_served
from workers.agent.settings import Settings
from workers.agent.signatures import SignatureAsker, SignatureVerifier, Unsigned
from workers.agent.staking import StakedKey, read_staked_key
from workers.agent.stating import Stater
from workers.agent.tees.beacons import ToldBeacons
from workers.agent.tees.ports import TEE, BeaconSource, NoTEE
from workers.agent.tees.simulated import SimulatedSource
from workers.agent.tees.tdx import TDXSource, TSMReports

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

SERVICE = "cocoon-agent"
CONNECTIONS_MAX = 2048
KEEP_ALIVE_S = 75
BREAK_S = 5.0
"""How long broken jobs get to send their trailers."""
CLOSE_S = 3
_BACKLOG = 512
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ListenError(CocoonError):
    """The agent cannot listen on its address."""

    code = "listen_failed"


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: the agent drains by itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def new_engine(settings: Settings, clock: Clock, rng: random.Random, manifest: ServedManifest) -> Engine:
    """The engine that the settings name, which serves no other weights than those of `manifest`.

    Raises:
        EngineStartError: what it needs is not there.
    """
    if settings.embedded == "xllamacpp":
        return XLlamaCppEngine(settings, clock, rng, manifest)
    if settings.embedded == "sglang" or settings.sglang_attached:
        return SGLangEngine(settings, clock, manifest)
    return OpenAIEngine(settings)


def new_tee(settings: Settings, beacons: BeaconSource) -> TEE:
    """Where the evidence comes from. Its statements name the blocks of `beacons`.

    Raises:
        SimulationRefusedError: a simulated TEE in production, or on the main network.
    """
    match settings.tee.kind:
        case "simulated":
            environment = "development" if settings.development else "production"
            deployment = Deployment(environment, settings.global_id or 0)
            return SimulatedSource(
                settings.tee.seed, machine=settings.name, gpus=settings.tee.gpus, deployment=deployment, beacons=beacons
            )
        case "tdx":
            return TDXSource(TSMReports(settings.tee.tsm_folder), settings.tee.event_log, beacons)
        case _:
            return NoTEE()


def _staked(settings: Settings) -> StakedKey | None:
    if settings.stake is None:
        return None
    return read_staked_key(settings.stake.key_file, settings.stake.config_file, global_id=settings.stake.global_id)


async def serve(settings: Settings, clock: Clock, rng: random.Random) -> None:
    """Run until SIGTERM or SIGINT; a second signal cuts the drain short.

    Raises:
        CocoonError: the listener, the engine or the enrolment cannot work as configured.
    """
    manifest = read_served(settings)
    beacons = ToldBeacons(clock)
    engine, tee = new_engine(settings, clock, rng, manifest), new_tee(settings, beacons)
    keys = KeyRing(clock, new_boot_id(rng), settings.keyset_s, manifest.digest, _staked(settings))
    store = ReceiptStore(settings.state_folder, settings.name, clock, grace_s=settings.receipt_grace_s)
    admission = Admission(clock, keys, settings.capacity)
    unsigned = Unsigned(clock, count_max=settings.unsigned_max, age_s_max=settings.unsigned_s)
    credit = OperatorCredit(
        store, max_nano=settings.credit_max_nano, path=settings.paid_file, global_id=settings.global_id
    )
    tracer = start_tracer(SERVICE, settings.otlp_endpoint, rng)
    app = AgentApp(
        admission=admission,
        engine=engine,
        clock=clock,
        rng=rng,
        store=store,
        unsigned=unsigned,
        tracer=tracer,
        served_model=settings.served_model,
        endpoints=settings.endpoints,
        context_tokens=settings.context_tokens,
        tee_type=tee.tee_type,
        job_s_max=settings.job_s_max,
        credit=credit,
        stater=Stater(tee, keys, clock),
    )
    listener = _listen(settings)
    url = _public_url(settings, listener)
    link = GatewayLink(
        settings, url=url, keys=keys, admission=admission, engine=engine, tee=tee, beacons=beacons, credit=credit,
        rng=rng, manifest=manifest.raw,
    )  # fmt: skip
    verifier = SignatureVerifier(clock, link, settings.operator_key)
    sender = ReceiptSender(store, link, verifier, rng, grace_s=settings.receipt_grace_s)
    asker = SignatureAsker(unsigned, store, link, verifier)
    server = _Server(_server_config(app, keys))
    signals = _Signals()
    _log.info("worker_listening", url=url, engine=engine.label, capacity=settings.capacity)
    try:
        async with asyncio.TaskGroup() as group:
            served = group.create_task(server.serve(sockets=[listener]))
            helpers = [group.create_task(helper.run()) for helper in (engine, link, sender, asker)]
            await signals.first.wait()
            await _drain(settings, admission=admission, link=link, app=app, cut=signals.second)
            await asker.finish()
            server.should_exit = True
            await served
            for helper in helpers:
                helper.cancel()
    except BaseExceptionGroup as failures:
        # Not `except*`: before Python 3.11.4 it makes a group again of what is raised in it.
        expected, others = failures.split(CocoonError)
        if expected is None or others is not None:
            raise
        raise _first(expected) from None
    finally:
        signals.release()
        tracer.close()
        await store.aclose()
    _log.info("worker_stopped")


async def _drain(
    settings: Settings, *, admission: Admission, link: GatewayLink, app: AgentApp, cut: asyncio.Event
) -> None:
    admission.draining = True
    link.report_soon()
    _log.info("worker_draining", running=admission.running, drain_s=settings.drain_s)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain_s):
            await _either(admission.idle(), cut.wait())
    app.stop_jobs()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BREAK_S):
            await admission.idle()


async def _either(*waits: Coroutine[None, None, object]) -> None:
    """Return when the first of them does."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


class _Signals:
    """SIGTERM and SIGINT as events."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    def release(self) -> None:
        """Give the signals back."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return listener


def _public_url(settings: Settings, listener: socket.socket) -> str:
    if settings.public_url is not None:
        return settings.public_url
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"https://{host}:{listener.getsockname()[1]}"


def _server_config(app: AgentApp, keys: KeyRing) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        backlog=_BACKLOG,
        ssl_context_factory=lambda _config, _default: keys.context,
    )


def _first(failures: BaseExceptionGroup[CocoonError]) -> CocoonError:
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
