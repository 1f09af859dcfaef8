"""`cocoon proxy`: wires the local endpoint, the sealing client, the folder of proofs and the fetching of receipts."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import ClassVar, Final

import httpx
import msgspec
import structlog

from cocoon.clock import Clock, SystemClock
from cocoon.errors import CocoonError
from cocoon_client.errors import ClientError
from cocoon_client.proxy.app import ProxyApp, is_loopback
from cocoon_client.proxy.http import Connection
from cocoon_client.receipts import Receipts, complete
from cocoon_client.store import Store
from cocoon_client.transport import AsyncSealingTransport, Sealer
from cocoon_client.trust import Trust
from cocoon_client.verification.chain import OwnChain
from cocoon_client.vouchers import ESCROWS, TAKEN, VOUCHERS, VoucherSigner, demands_in

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

CONNECTIONS_MAX: Final = 256
FETCHES_MAX: Final = 8
"""Receipts that are fetched at a time; others wait."""
WAITING_MAX: Final = 1000
"""Receipts that wait to be fetched; beyond it they are left to `cocoon verify`."""
COMPLETE_S_MAX: Final = 120.0
"""How long signatures and log may take to come after an answer."""
VOUCHER_TRIES: Final = 5
"""How often the gateway is asked after the last use: charges are booked a moment after their answers."""
VOUCHER_S: Final = 1.0
"""At most one voucher in this time, whatever is used."""
TIMEOUT: Final = httpx.Timeout(600.0, connect=10.0)


class ListenError(ClientError):
    """The address is not one of this machine alone, or cannot be listened on."""

    code: ClassVar[str] = "listen_refused"


class ProxySettings(msgspec.Struct, frozen=True, kw_only=True):
    """`base_url` ends in `/v1`. `anywhere` allows an address that other machines reach; `vouchers` pay by escrow."""

    base_url: str
    host: str = "127.0.0.1"
    port: int = 8090
    api_key: str = ""
    anywhere: bool = False
    state: Path
    vouchers: VoucherSigner | None = None

    def __repr__(self) -> str:
        return f"ProxySettings(base_url={self.base_url!r}, host={self.host!r}, port={self.port})"


def require_local(settings: ProxySettings) -> None:
    """Check that nobody else reaches the endpoint, unless that was asked for.

    Raises:
        ListenError: other machines do.
    """
    if not (settings.anywhere or is_loopback(settings.host)):
        raise ListenError(f"{settings.host} is reached by other machines; say --listen-anywhere if you mean it")


class Proxy:
    """The running proxy. `gateway` is the transport that reaches the gateway, `chain` what blocks are looked up in."""

    def __init__(
        self, settings: ProxySettings, trust: Trust, *, clock: Clock | None = None,
        gateway: Callable[[], httpx.AsyncBaseTransport] = httpx.AsyncHTTPTransport, chain: OwnChain | None = None,
    ) -> None:  # fmt: skip
        self._chain = chain
        require_local(settings)
        self._settings = settings
        self._trust = trust
        self._clock = clock or SystemClock()
        self._gateway = gateway
        self._store = Store(settings.state)
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue(WAITING_MAX)
        self._used = asyncio.Event()
        self._last_key = ""
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy"]:
        """Serve until left. Requests in flight are then cut off: their programs see broken answers.

        Raises:
            ListenError: somebody else listens there, or it is no address of this machine.
        """
        sealer = Sealer(self._trust, self._store, clock=self._clock, vouchers=self._settings.vouchers)
        transport = AsyncSealingTransport(sealer, self._gateway(), self._chain)
        connections: set[Connection] = set()
        tasks = asyncio.TaskGroup()
        async with (
            httpx.AsyncClient(transport=transport, timeout=TIMEOUT, trust_env=False) as client,
            httpx.AsyncClient(transport=self._gateway(), timeout=TIMEOUT, trust_env=False) as plain,
        ):
            app = ProxyApp(
                client, base_url=self._settings.base_url, api_key=self._settings.api_key,
                local=not self._settings.anywhere, finished=self._finished,
            )  # fmt: skip

            def accept() -> asyncio.Protocol:
                full = len(connections) >= CONNECTIONS_MAX
                return Closed() if full else Connection(app, tasks, connections)

            # Before the group is entered: it would make a group of the error too.
            server = await self._listen(accept)
            async with tasks:
                await server.start_serving()
                fetchers = [tasks.create_task(self._fetch(plain)) for _ in range(FETCHES_MAX)]
                if self._settings.vouchers is not None:
                    fetchers.append(tasks.create_task(self._vouch(plain, self._settings.vouchers)))
                try:
                    yield self
                finally:
                    server.close()
                    for connection in list(connections):
                        connection.abort()
                    for fetcher in fetchers:
                        fetcher.cancel()

    async def _listen(self, accept: Callable[[], asyncio.Protocol]) -> asyncio.Server:
        """Take the address; nobody is served yet."""
        host, port = self._settings.host, self._settings.port
        try:
            server = await asyncio.get_running_loop().create_server(accept, host, port, start_serving=False)
        except OSError as error:
            raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _vouch(self, client: httpx.AsyncClient, signer: VoucherSigner) -> None:
        """Sign for what was used as it accrues, so that nobody has to be refused first."""
        while True:
            await self._used.wait()
            for _ in range(VOUCHER_TRIES):
                self._used.clear()
                try:
                    await self._hand_in(client, signer)
                    left = signer.unsigned_nano
                except (CocoonError, httpx.HTTPError) as error:
                    _log.warning("voucher_not_handed_in", reason=type(error).__name__)
                    left = 1
                await asyncio.sleep(VOUCHER_S)
                if not left:
                    break

    async def _hand_in(self, client: httpx.AsyncClient, signer: VoucherSigner) -> None:
        if not signer.unsigned_nano:
            return
        base = self._settings.base_url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {self._last_key}"}
        shown = await client.get(base + ESCROWS, headers=headers)
        for demand in demands_in(shown.content) if shown.is_success else ():
            if not signer.is_for(demand):
                continue
            voucher = signer.sign(demand)
            if voucher is not None:
                content = msgspec.json.encode(voucher)
                typed = {**headers, "content-type": "application/json"}
                answer = await client.post(base + VOUCHERS, content=content, headers=typed)
                if answer.status_code in TAKEN:
                    signer.note_handed_in(voucher)
                _log.info("voucher_handed_in", cumulative_nano=voucher.cumulative, status=answer.status_code)

    async def _finished(self, receipt_id: str, api_key: str) -> None:
        self._last_key = api_key
        self._used.set()
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait((receipt_id, api_key))

    async def _fetch(self, client: httpx.AsyncClient) -> None:
        while True:
            receipt_id, api_key = await self._waiting.get()
            receipts = Receipts(client, self._settings.base_url, api_key, self._clock)
            try:
                _, report = await complete(
                    receipts, self._store, self._trust, receipt_id, wait_s=COMPLETE_S_MAX, chain=self._chain
                )
            except (CocoonError, OSError) as error:
                _log.warning("receipt_not_verified", receipt=receipt_id, reason=str(error))
                continue
            missing = [
                f"{step.name}: {step.outcome}" for step in report.steps if step.required and step.outcome != "held"
            ]
            if report.holds:
                beacon = report.step("beacon").outcome
                _log.info("receipt_verified", receipt=receipt_id, simulated=report.simulated, beacon=beacon)
            else:
                _log.warning("receipt_not_verified", receipt=receipt_id, steps=missing, simulated=report.simulated)


class Closed(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        transport.close()


async def serve(
    settings: ProxySettings, trust: Trust, ready: Callable[[Proxy], None], chain: OwnChain | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called once it listens."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Proxy(settings, trust, chain=chain).running() as proxy:
        ready(proxy)
        await stopped.wait()
