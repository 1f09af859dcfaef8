"""`OpenAI` and `AsyncOpenAI` as everybody knows them, whose requests travel sealed to workers that were verified.

    client = OpenAI(base_url=..., api_key=..., cocoon=read_trust(Path("trust.toml")))

Chat, completions and embeddings can be sealed; any other call that would carry content is refused, never sent plainly.
A refusal is a `cocoon_client.errors.ClientError`. `client.cocoon` has the proofs of this client's answers, and
`client.verify()` fetches what is missing of one and says, step by step, what it proves. With `chain=` both ask a chain
of one's own, as `cocoon verify --liteservers` does; `cli.own_chain.Liteservers` is one.
"""

from collections.abc import Callable
from typing import Any, Final

import httpx
import openai

from cocoon.clock import SystemClock
from cocoon_client.apart import run_apart
from cocoon_client.errors import BundleUnavailableError, TrustError
from cocoon_client.memory import ProofsInMemory
from cocoon_client.receipts import Receipts, complete
from cocoon_client.transport import AsyncSealingTransport, Sealer, SealingTransport
from cocoon_client.trust import Trust
from cocoon_client.verification.chain import OwnChain
from cocoon_client.verification.steps import Report
from cocoon_client.vouchers import VoucherSigner

WAIT_S: Final = 30.0
TIMEOUT_S: Final = 30.0
CHAIN_UNASKED: Final = "give chain= together with cocoon=, or to the sealing client: nobody would ask it"
Asking = Callable[[], httpx.AsyncBaseTransport]


class SealingClient(httpx.Client):
    """An `httpx.Client` with nothing but a sealing transport; proxies of the environment do not apply to it.

    `transport` reaches the gateway, and so do the ones of `asking`, by which receipts are fetched. `vouchers` signs for
    what is used, where the credit is an escrow's. `chain` is one's own: workers that name blocks which it does not have
    are not used, and what proofs name is looked up in it; every question is asked on an event loop of its own.
    """

    def __init__(
        self, trust: Trust, *, transport: httpx.BaseTransport | None = None, asking: Asking = httpx.AsyncHTTPTransport,
        vouchers: VoucherSigner | None = None, chain: OwnChain | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.asking = asking
        self.chain = chain
        self.kept = ProofsInMemory()
        self.trust = trust
        inner = transport or httpx.HTTPTransport()
        super().__init__(
            transport=SealingTransport(Sealer(trust, self.kept, vouchers=vouchers), inner, chain),
            trust_env=False,
            **options,
        )


class AsyncSealingClient(httpx.AsyncClient):
    """As `SealingClient`, on asyncio."""

    def __init__(
        self, trust: Trust, *, transport: httpx.AsyncBaseTransport | None = None,
        asking: Asking = httpx.AsyncHTTPTransport, vouchers: VoucherSigner | None = None,
        chain: OwnChain | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.asking = asking
        self.chain = chain
        self.kept = ProofsInMemory()
        self.trust = trust
        inner = transport or httpx.AsyncHTTPTransport()
        super().__init__(
            transport=AsyncSealingTransport(Sealer(trust, self.kept, vouchers=vouchers), inner, chain),
            trust_env=False,
            **options,
        )


class OpenAI(openai.OpenAI):
    """Give `cocoon=Trust(...)`, or an `http_client` that is a `SealingClient`; everything else is as in `openai`.

    `chain` belongs to `cocoon`; a `SealingClient` has its own.

    Raises:
        TrustError: neither was given: this class never sends plainly; or a chain that nobody would ask.
    """

    def __init__(
        self, *, cocoon: Trust | None = None, chain: OwnChain | None = None, http_client: httpx.Client | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        if http_client is None and cocoon is not None:
            http_client = SealingClient(cocoon, chain=chain)
        elif chain is not None:
            raise TrustError(CHAIN_UNASKED)
        if not isinstance(http_client, SealingClient):
            raise TrustError("give cocoon=Trust(...): another http_client would send requests plainly")
        self.cocoon = http_client.kept
        self._sealing = http_client
        super().__init__(http_client=http_client, **options)  # pyright: ignore[reportArgumentType]  httpx is taken too

    def verify(self, receipt_id: str | None = None, *, wait_s: float = WAIT_S) -> Report:
        """What the receipt of an answer proves: the last one's, or of the one with this id.

        `wait_s` is how long signatures and log may take to come.

        Raises:
            ClientError: the gateway does not show the receipt, or there was no answer.
            MalformedError: what it shows is not in its format.
            CocoonError: the chain was named a contract for the log's anchor, and does not show it.
        """
        return run_apart(_verified(self._sealing, str(self.base_url), self.api_key, receipt_id, wait_s))


class AsyncOpenAI(openai.AsyncOpenAI):
    """As `OpenAI`, with `AsyncSealingClient`.

    Raises:
        TrustError: neither was given: this class never sends plainly; or a chain that nobody would ask.
    """

    def __init__(
        self, *, cocoon: Trust | None = None, chain: OwnChain | None = None,
        http_client: httpx.AsyncClient | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if http_client is None and cocoon is not None:
            http_client = AsyncSealingClient(cocoon, chain=chain)
        elif chain is not None:
            raise TrustError(CHAIN_UNASKED)
        if not isinstance(http_client, AsyncSealingClient):
            raise TrustError("give cocoon=Trust(...): another http_client would send requests plainly")
        self.cocoon = http_client.kept
        self._sealing = http_client
        super().__init__(http_client=http_client, **options)  # pyright: ignore[reportArgumentType]  httpx is taken too

    async def verify(self, receipt_id: str | None = None, *, wait_s: float = WAIT_S) -> Report:
        """As `OpenAI.verify`.

        Raises:
            ClientError: the gateway does not show the receipt, or there was no answer.
            MalformedError: what it shows is not in its format.
            CocoonError: the chain was named a contract for the log's anchor, and does not show it.
        """
        return await _verified(self._sealing, str(self.base_url), self.api_key, receipt_id, wait_s)


async def _verified(
    sealing: SealingClient | AsyncSealingClient, base_url: str, api_key: str, receipt_id: str | None, wait_s: float
) -> Report:
    proofs = sealing.kept
    if receipt_id is None:
        if proofs.newest is None:
            raise BundleUnavailableError("there was no answer yet")
        receipt_id = proofs.newest.receipt_id
    async with httpx.AsyncClient(transport=sealing.asking(), timeout=TIMEOUT_S) as client:
        receipts = Receipts(client, base_url, api_key, SystemClock())
        _, report = await complete(receipts, proofs, sealing.trust, receipt_id, wait_s=wait_s, chain=sealing.chain)
    return report
