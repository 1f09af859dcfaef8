"""What the development network consists of: which services, in which order, and when it is ready.

PostgreSQL, Redis and the chain first, then the schema and the seed, then contracts, biller, gateway and workers.
"""

import asyncio
import hashlib
import random
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.policy import Deployment
from attestation.simulation.tee import SimulatedTEE
from cli.dev.address import LOOPBACK, free_port
from cli.dev.chain import EmbeddedChain
from cli.dev.embedded import EmbeddedServer
from cli.dev.model import development_manifest
from cli.dev.postgres import EmbeddedPostgres
from cli.dev.redis import EmbeddedRedis
from cli.dev.screen import Row, Screen
from cli.dev.seed import CONTEXT_TOKENS, MODEL, seed
from cli.dev.service import Keeper, Service, all_ready
from cli.dev.settings import DevSettings
from cli.dev.settlement import SettlementSetup
from cli.dev.state import DevError, DevFile, Ports, Secrets, StateDirectory
from cli.dev.supervisor import MARKER, Supervisor
from cli.dev.trust import trust_text
from cli.dev.wallets import DevWallets
from cli.operator_keys import delegation_of
from cli.process import Launch, StopStep, is_alive
from cocoon.addresses import Address
from cocoon.clock import Clock
from cocoon.manifest import manifest_digest
from gateway.settings import read_log

WORKERS = ("worker-1", "worker-2")
WORKER_CAPACITY = 4
WORKER_THREADS = 1
WORKER_GPUS = 1
"""Simulated, as the TEE is: so that everything about evidence can be tried."""
GLOBAL_ID = -3
DELEGATION_DAYS = 365
"""Made anew at every start."""
MIGRATE_SECONDS = 120.0
GATEWAY_READY_SECONDS = 60.0
WORKER_READY_SECONDS = 120.0
ROUTABLE_SECONDS = 30.0
ROUTABLE_POLL_SECONDS = 0.1
ROUTABLE_ANSWERS = 3
"""Agreeing answers in a row, per gateway process: nobody says which process answers."""
PROBE_SECONDS = 2.0
DRAIN_MARGIN_S = 20.0
"""Beyond the drain: settling, closing, and granian's own kill timeout (15 s)."""


class Network:
    """One development network; `boot` starts it under a supervisor, `changed` keeps screen and `dev.json` current."""

    def __init__(
        self,
        settings: DevSettings,
        state: StateDirectory,
        secrets: Secrets,
        clock: Clock,
        rng: random.Random,
        screen: Screen,
    ) -> None:
        self._settings = settings
        self._state = state
        self._secrets = secrets
        self._clock = clock
        self._rng = rng
        self._screen = screen
        self._operator = _key(secrets.operator_key)
        self._policy = _policy(secrets)
        self._settlement = SettlementSetup(state.root / "settlement", GLOBAL_ID, rng)
        self._wallets = DevWallets(state.root / "wallets", WORKERS, rng)
        self._owners: dict[str, Address] = {}
        self._supervisor: Supervisor | None = None
        self._ready = False
        self._written: DevFile | None = None
        ports = state.ports()
        marker = (MARKER, state.mark)
        self._postgres = EmbeddedPostgres(
            state.root / "postgres",
            password=secrets.postgres_password,
            port=free_port(ports.postgres),
            marker=marker,
        )
        self._redis = EmbeddedRedis(
            state.root / "redis", password=secrets.redis_password, port=free_port(ports.redis), marker=marker
        )
        self._chain = EmbeddedChain(
            state.root / "chain",
            port=free_port(ports.chain),
            control_port=free_port(ports.chain_control),
            marker=marker,
        )
        self._worker_ports = {name: free_port(ports.workers.get(name, 0)) for name in WORKERS}
        self._keep_ports()

    async def boot(self, supervisor: Supervisor) -> None:
        """Start everything and return when it is ready.

        Raises:
            DevError: a part could not be brought up.
        """
        self._supervisor = supervisor
        self._state.write_policy(self._policy)
        manifest = await asyncio.to_thread(
            development_manifest, self._settings.inherited.get("COCOON_ENGINE_MODEL_PATH") or None
        )
        raw = manifest.encode()
        self._state.write_manifest(raw)
        log = read_log(self._settings.inherited, bytes.fromhex(self._secrets.network_secret), GLOBAL_ID)
        pins = {MODEL: manifest_digest(raw)}
        self._state.write_trust(trust_text(self._state.policy.name, self._policy, self._operator, log, GLOBAL_ID, pins))
        # The chain may have to fetch its packages first, and nothing before the gateway needs it.
        chain = supervisor.start(self._embedded(self._chain, stage=1))
        await all_ready(
            supervisor.start(self._embedded(self._postgres, stage=0)),
            supervisor.start(self._embedded(self._redis, stage=1)),
        )
        await supervisor.complete("migrate", self._command("migrate", self._database), MIGRATE_SECONDS)
        await seed(self._postgres.dsn, self._secrets, self._clock, self._rng)
        # Workers' certificates are their own; on loopback a health probe needs no more than an answer.
        async with httpx.AsyncClient(timeout=PROBE_SECONDS, trust_env=False, verify=False) as client:  # noqa: S501
            await all_ready(chain)
            gateway = supervisor.start(self._gateway(client))
            biller = await self._settle(supervisor)
            await self._enrol_wallets(gateway)
            await self._stake()
            await all_ready(gateway, biller, *(supervisor.start(self._worker(name, client)) for name in WORKERS))
            await self._all_routable(client)
            await self._settlement.credited(self._postgres.dsn, self._clock)
            self._ready = True
            self.changed()
            # The client is the keepers' eye for as long as they run; this task is cancelled when they stop.
            await asyncio.Event().wait()

    def changed(self) -> None:
        """Something's state changed."""
        supervisor = self._supervisor
        if supervisor is None:
            return
        if self._ready and not supervisor.stopping and supervisor.all_ready():
            content = self._dev_file(supervisor)
            if content != self._written:
                self._written = content
                self._state.write_dev_file(content)
                self._state.write_environment(self._operator_environment())
        self._screen.show([_row(keeper) for keeper in supervisor.keepers], self._lines(supervisor))

    def _dev_file(self, supervisor: Supervisor) -> DevFile:
        return DevFile(
            base_url=self._settings.base_url,
            api_key=self._secrets.api_key,
            admin_key=self._secrets.admin_key,
            console_url=None,
            models=(MODEL,),
            postgres_dsn=self._postgres.dsn,
            redis_url=self._redis.url,
            liteserver_config=str(self._chain.config),
            chain_control_url=self._chain.control_url,
            pids=supervisor.pids(),
        )

    def _operator_environment(self) -> dict[str, str]:
        """What commands are told that look at books and chain: `cocoon reconcile`, `workers`, `worker payout`, ..."""
        return self._settlement.stake_environment() | {
            "COCOON_DATABASE_URL": self._postgres.dsn,
            "COCOON_LITESERVERS": str(self._chain.config),
            "COCOON_PAYOUT_CONTRACT": str(self._settlement.payout),
            "COCOON_WORKER_WALLETS": " ".join(map(str, self._owners.values())),
            "COCOON_GLOBAL_ID": str(GLOBAL_ID),
        }

    def _lines(self, supervisor: Supervisor) -> list[str]:
        if supervisor.stopping:
            return ["Stopping; a second Ctrl-C hurries."]
        if not self._ready:
            return [f"Starting; logs are in {self._state.logs}"]
        # A small model may ramble: a first answer should end.
        messages = [{"role": "user", "content": "Say hello."}]
        request = {"model": MODEL, "stream": True, "max_tokens": 100, "messages": messages}
        curl = (
            f"curl -N {self._settings.base_url}/chat/completions -H 'Authorization: Bearer {self._secrets.api_key}'"
            f" -H 'Content-Type: application/json' -d {shlex.quote(msgspec.json.encode(request).decode())}"
        )
        # A shell knows `cocoon` by name only where the environment is active.
        cocoon = shlex.quote(str(Path(sys.executable).with_name("cocoon")))
        told = f". {shlex.quote(str(self._state.root / 'env'))} && {cocoon}"
        return [
            f"Cocoon is ready. Logs are in {self._state.logs}; Ctrl-C stops everything.",
            f"  base URL  {self._settings.base_url}",
            f"  API key   {self._secrets.api_key}",
            f"  model     {MODEL}",
            f"  chain     a SIMULATED TON: its coins are worth nothing; {self._chain.config}",
            f"  payouts   every {self._settings.epoch_s:g} s, as the chain shows: {told} worker payout status",
            f"  money     usage, books and contracts, to the nano: {told} reconcile --wait 60",
            "  workers   attested by a SIMULATED TEE: no hardware protects anything here",
            f"  try       {curl}",
        ]

    def _embedded(self, server: EmbeddedServer, *, stage: int) -> Service:
        async def is_ready(pid: int) -> bool:
            return await asyncio.to_thread(server.is_ready, pid)

        return Service(
            name=server.name,
            address=lambda: f"{LOOPBACK}:{server.port}",
            prepare=server.prepare,
            launch=server.launch,
            is_ready=is_ready,
            stage=stage,
        )

    def _gateway(self, client: httpx.AsyncClient) -> Service:
        async def is_ready(_pid: int) -> bool:
            return (await self._facts(client)).ready

        return Service(
            name="gateway",
            address=lambda: f"{self._settings.host}:{self._settings.port}",
            launch=lambda: self._command("gateway", self._gateway_environment()),
            is_ready=is_ready,
            stage=2,
            ready_s=GATEWAY_READY_SECONDS,
        )

    def _worker(self, name: str, client: httpx.AsyncClient) -> Service:
        def address() -> str:
            return f"{LOOPBACK}:{self._worker_ports[name]}"

        def launch() -> Launch:
            # Somebody else may have taken the port since it was chosen, or since the worker last ran.
            self._worker_ports[name] = free_port(self._worker_ports[name])
            self._keep_ports()
            return self._command("worker", self._worker_environment(name, address()))

        async def is_ready(_pid: int) -> bool:
            answer = await _get(client, f"https://{address()}/healthz")
            return answer is not None and answer.is_success and (await self._facts(client)).workers() > 0

        return Service(
            name=name,
            address=address,
            launch=launch,
            is_ready=is_ready,
            stage=3,
            ready_s=WORKER_READY_SECONDS,
        )

    async def _settle(self, supervisor: Supervisor) -> Keeper:
        """Contracts on the chain, the customer's escrow in the books, and the biller that looks at both.

        Raises:
            DevError: the chain does not take a message.
        """
        await self._settlement.establish(self._chain.config, self._chain.control, self._clock)
        await self._settlement.register(self._postgres.dsn, self._clock, self._rng)

        async def is_ready(pid: int) -> bool:
            return is_alive(pid)

        return supervisor.start(
            Service(
                name="biller",
                address=lambda: "settles on the chain",
                launch=lambda: self._command("biller", self._biller_environment()),
                is_ready=is_ready,
                stage=2,
            )
        )

    async def _enrol_wallets(self, gateway: Keeper) -> None:
        """Worker keys for wallets that have none: once in the life of a state directory.

        Raises:
            DevError: the gateway does not start, or refuses.
        """
        missing = await self._wallets.missing(self._postgres.dsn)
        if missing:
            await all_ready(gateway)
        for name in missing:
            await asyncio.to_thread(self._wallets.enrol, name, self._settings.origin, self._clock)

    async def _stake(self) -> None:
        """A stake for every worker, owned by its wallet.

        Raises:
            DevError: the chain does not take it.
        """
        self._owners = {name: await asyncio.to_thread(self._wallets.address, name, GLOBAL_ID) for name in WORKERS}
        operator_key = self._operator.public_key().public_bytes_raw()
        await self._settlement.stake(self._owners, operator_key, self._chain.config, self._chain.control, self._clock)

    def _keep_ports(self) -> None:
        self._state.keep_ports(
            Ports(
                postgres=self._postgres.port,
                redis=self._redis.port,
                chain=self._chain.port,
                chain_control=self._chain.control_port,
                workers=self._worker_ports,
            )
        )

    async def _facts(self, client: httpx.AsyncClient) -> "_Facts":
        answer = await _get(client, f"{self._settings.origin}/readyz")
        try:
            return _Facts() if answer is None else msgspec.json.decode(answer.content, type=_Facts)
        except msgspec.DecodeError:
            return _Facts()

    async def _all_routable(self, client: httpx.AsyncClient) -> None:
        """Wait until every gateway process, as far as repeated asking shows, routes to every worker.

        Raises:
            DevError: not in time.
        """
        deadline = self._clock.monotonic() + ROUTABLE_SECONDS
        agreed = 0
        while agreed < ROUTABLE_ANSWERS * self._settings.processes:
            facts = await self._facts(client)
            agreed = agreed + 1 if facts.ready and facts.routable() >= len(WORKERS) else 0
            if self._clock.monotonic() > deadline:
                raise DevError(
                    f"the gateway routes to {facts.routable()} of {len(WORKERS)} workers; see {self._state.logs}"
                )
            if not agreed:
                await asyncio.sleep(ROUTABLE_POLL_SECONDS)

    def _command(self, name: str, variables: Mapping[str, str]) -> Launch:
        environment = {
            **self._settings.inherited,
            "PYTHONUNBUFFERED": "1",
            "COCOON_ENV": "development",
            "COCOON_DRAIN_S": f"{self._settings.drain_s:g}",
            MARKER: self._state.mark,
            **variables,
        }
        return Launch(
            # -P: the current directory is not on the import path.
            argv=(sys.executable, "-P", "-m", "cli.main", name),
            env=environment,
            stop=(StopStep(signal.SIGTERM, self._settings.drain_s + DRAIN_MARGIN_S),),
        )

    @property
    def _database(self) -> dict[str, str]:
        return {"COCOON_DATABASE_URL": self._postgres.dsn}

    def _biller_environment(self) -> dict[str, str]:
        return (
            self._database
            | self._settlement.biller_environment(self._settings.epoch_s)
            | {
                "COCOON_LITESERVERS": str(self._chain.config),
                "COCOON_GLOBAL_ID": str(GLOBAL_ID),
                "COCOON_OPERATOR_KEY": self._operator.public_key().public_bytes_raw().hex(),
            }
        )

    def _gateway_environment(self) -> dict[str, str]:
        return (
            self._database
            | self._settlement.gateway_environment()
            | self._settlement.stake_environment()
            | {
                "COCOON_REDIS_URL": self._redis.url,
                "COCOON_HOST": self._settings.host,
                "COCOON_PORT": str(self._settings.port),
                "COCOON_GATEWAY_PROCESSES": str(self._settings.processes),
                "COCOON_NETWORK_SECRET": self._secrets.network_secret,
                "COCOON_GATEWAY_KEY": self._secrets.gateway_key,
                "COCOON_GATEWAY_DELEGATION": delegation_of(
                    self._operator,
                    _key(self._secrets.gateway_key),
                    days=DELEGATION_DAYS,
                    global_id=GLOBAL_ID,
                    clock=self._clock,
                ),
                "COCOON_GLOBAL_ID": str(GLOBAL_ID),
                "COCOON_LITESERVERS": str(self._chain.config),
                "COCOON_WALLET_DOMAINS": ",".join(sorted({LOOPBACK, "localhost", self._settings.host.lower()})),
                "COCOON_ALLOW_PRIVATE_WORKERS": "1",
                "COCOON_ALLOW_PRIVATE_WEBHOOKS": "1",
                "COCOON_POLICY_FILE": str(self._state.policy),
                "COCOON_POLICY_SHA256": hashlib.sha256(self._policy).hexdigest(),
                "COCOON_SIMULATED_SEED": self._secrets.simulated_seed,
            }
        )

    def _worker_environment(self, name: str, address: str) -> dict[str, str]:
        return {
            "COCOON_GATEWAY_URL": self._settings.origin,
            "COCOON_WORKER_KEY_FILE": str(self._wallets.key_file(name)),
            "COCOON_WORKER_NAME": name,
            "COCOON_WORKER_LISTEN": address,
            "COCOON_WORKER_CAPACITY": str(WORKER_CAPACITY),
            "COCOON_OPERATOR_KEY": self._operator.public_key().public_bytes_raw().hex(),
            "COCOON_TEE_TYPE": "simulated",
            "COCOON_SIMULATED_SEED": self._secrets.simulated_seed,
            "COCOON_SIMULATED_GPUS": str(WORKER_GPUS),
            "COCOON_WORKER_STATE": str(self._state.root / "receipts"),
            "COCOON_ENGINE": "xllamacpp",
            "COCOON_ENGINE_THREADS": str(WORKER_THREADS),
            "COCOON_WORKER_MANIFEST": str(self._state.manifest),
            "COCOON_SERVED_MODEL": MODEL,
            "COCOON_SERVED_ENDPOINTS": "chat,completions,embeddings",
            "COCOON_CONTEXT_TOKENS": str(CONTEXT_TOKENS),
            **self._settlement.worker_environment(name),
        }


def _policy(secrets: Secrets) -> bytes:
    """What the gateway accepts: this network's simulated machines, and nothing else."""
    tee = SimulatedTEE(
        bytes.fromhex(secrets.simulated_seed), machine="policy", deployment=Deployment("development", GLOBAL_ID),
        gpus=WORKER_GPUS,
    )  # fmt: skip
    return tee.policy_toml()


def _key(seed: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))


class _Facts(msgspec.Struct, frozen=True):
    """What `/readyz` says of the gateway process that happened to answer."""

    ready: bool = False
    models: dict[str, int] = {}
    workers_staked: int = 0

    def workers(self) -> int:
        """How many serve our model."""
        return self.models.get(MODEL, 0)

    def routable(self) -> int:
        """How many have a stake, too: the others would hardly get a request."""
        return min(self.workers(), self.workers_staked)


async def _get(client: httpx.AsyncClient, url: str) -> httpx.Response | None:
    """The answer on a new connection (the same one would always reach the same process), None without any."""
    try:
        return await client.get(url, headers={"connection": "close"})
    except httpx.HTTPError:
        return None


def _row(keeper: Keeper) -> Row:
    note = f"restarted {keeper.restarts}x: {keeper.reason}" if keeper.restarts else ""
    return Row(keeper.service.name, keeper.state.value, keeper.pid, keeper.service.address(), keeper.since, note)
