"""`OpenAI` and `AsyncOpenAI` as everybody knows them, whose requests travel sealed to workers that were verified.

    client = OpenAI(base_url=..., api_key=..., cocoon=read_trust(Path("trust.toml")))

Chat, completions and embeddings can be sealed; any other call that would carry content is refused, never sent plainly.
A refusal is a `cocoon_client.errors.ClientError`. `client.cocoon` has what opens the receipts of this client's answers.
"""

from typing import Any

import httpx
import openai

from cocoon_client.errors import TrustError
from cocoon_client.transport import AsyncSealingTransport, KeptInMemory, Sealer, SealingTransport
from cocoon_client.trust import Trust


class SealingClient(httpx.Client):
    """An `httpx.Client` with nothing but a sealing transport; proxies of the environment do not apply to it."""

    def __init__(self, trust: Trust, *, transport: httpx.BaseTransport | None = None, **options: Any) -> None:
        self.kept = KeptInMemory()
        self.trust = trust
        inner = transport or httpx.HTTPTransport()
        super().__init__(transport=SealingTransport(Sealer(trust, self.kept), inner), trust_env=False, **options)


class AsyncSealingClient(httpx.AsyncClient):
    """As `SealingClient`, on asyncio."""

    def __init__(self, trust: Trust, *, transport: httpx.AsyncBaseTransport | None = None, **options: Any) -> None:
        self.kept = KeptInMemory()
        self.trust = trust
        inner = transport or httpx.AsyncHTTPTransport()
        super().__init__(transport=AsyncSealingTransport(Sealer(trust, self.kept), inner), trust_env=False, **options)


class OpenAI(openai.OpenAI):
    """Give `cocoon=Trust(...)`, or an `http_client` that is a `SealingClient`; everything else is as in `openai`.

    Raises:
        TrustError: neither was given: this class never sends plainly.
    """

    def __init__(self, *, cocoon: Trust | None = None, http_client: httpx.Client | None = None, **options: Any) -> None:
        if http_client is None and cocoon is not None:
            http_client = SealingClient(cocoon)
        if not isinstance(http_client, SealingClient):
            raise TrustError("give cocoon=Trust(...): another http_client would send requests plainly")
        self.cocoon = http_client.kept
        super().__init__(http_client=http_client, **options)  # pyright: ignore[reportArgumentType]  httpx is taken too


class AsyncOpenAI(openai.AsyncOpenAI):
    """As `OpenAI`, with `AsyncSealingClient`.

    Raises:
        TrustError: neither was given: this class never sends plainly.
    """

    def __init__(
        self, *, cocoon: Trust | None = None, http_client: httpx.AsyncClient | None = None, **options: Any
    ) -> None:
        if http_client is None and cocoon is not None:
            http_client = AsyncSealingClient(cocoon)
        if not isinstance(http_client, AsyncSealingClient):
            raise TrustError("give cocoon=Trust(...): another http_client would send requests plainly")
        self.cocoon = http_client.kept
        super().__init__(http_client=http_client, **options)  # pyright: ignore[reportArgumentType]  httpx is taken too
