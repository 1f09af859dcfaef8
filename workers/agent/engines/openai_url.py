"""Any OpenAI-compatible server, attached by URL: only what all of them understand, or overlook (`cache_salt`)."""

import asyncio

from workers.agent.engines.ports import Dialect, EngineCall, EngineError, Load
from workers.agent.engines.request import engine_body
from workers.agent.engines.wire import EngineWire, WireGeneration
from workers.agent.settings import Settings

_PROBE_EVERY_S = 2.0
_SERVER_FAULT = 500
# Members by which known servers would generate more than max_tokens says.
_REMOVED = ("n_predict", "n_cmpl", "best_of", "max_new_tokens", "use_beam_search")


class OpenAIEngine:
    """A server that the agent neither starts nor knows well."""

    label = "openai"
    dialect = Dialect()

    def __init__(self, settings: Settings) -> None:
        assert settings.engine_url is not None, "settings require it"
        self._wire = EngineWire(settings.engine_url, settings.engine_api_key)
        self.ready = False

    async def run(self) -> None:
        """Keep asking whether it answers."""
        while True:
            self.ready = await self._answers()
            await asyncio.sleep(_PROBE_EVERY_S)

    async def generate(self, call: EngineCall) -> WireGeneration:
        """Begin a job."""
        headers = [] if call.traceparent is None else [(b"traceparent", call.traceparent.encode())]
        return await self._wire.post_stream(call.endpoint.path, engine_body(call, dict.fromkeys(_REMOVED)), headers)

    async def load(self) -> Load | None:
        """It does not say."""
        return None

    async def _answers(self) -> bool:
        try:
            status, _ = await self._wire.call(b"GET", "/v1/models")
        except EngineError:
            return False
        return status < _SERVER_FAULT
