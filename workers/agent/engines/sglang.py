"""SGLang, the production engine: launched by the agent or attached by URL.

Only its chat, abort, health and load endpoints are ever called; its admin endpoints (`/get_server_info` prints API
keys) are not reachable through the agent. Facts: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py`,
`request_headers.py`, `v1_loads.py`.
"""

import asyncio
import contextlib
import socket
import sys

import msgspec

from cocoon.clock import Clock
from workers.agent.engines.ports import Dialect, EngineCall, EngineError, EngineUnavailableError, Load
from workers.agent.engines.process import Child, Supervisor
from workers.agent.engines.request import engine_body
from workers.agent.engines.wire import ABORT_S, EngineWire, WireGeneration
from workers.agent.served_manifest import ServedManifest
from workers.agent.settings import Settings, child_environ

_ATTACH_PROBE_S = 2.0
_OK = 200
# Members with which a client could reach another request, another host or code in the engine, jump the queue, or
# leave the served model: request names, disaggregation and rank routing, priorities, sessions, pickled processors,
# adapters. `max_new_tokens` and `best_of` could raise the work above the ticket.
_REMOVED = (
    "rid", "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank",
    "data_parallel_rank", "priority", "custom_logit_processor", "session_id", "session_params", "custom_labels",
    "return_hidden_states", "lora_path", "max_new_tokens", "best_of",
)  # fmt: skip
_LAUNCH_ENVIRON = {
    # Without this a health check is a generation of a second; with it, 2 ms.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    "SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES": "1",
}


class _RankLoad(msgspec.Struct, frozen=True):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0


class _Loads(msgspec.Struct, frozen=True):
    loads: list[_RankLoad] = msgspec.field(default_factory=list[_RankLoad])


_loads_decoder = msgspec.json.Decoder(_Loads)


class SGLangEngine:
    """SGLang with its own API: named requests, explicit aborts, exact counts in every chunk."""

    dialect = Dialect()

    def __init__(self, settings: Settings, clock: Clock, manifest: ServedManifest | None = None) -> None:
        self._manifest = manifest or ServedManifest()
        self._settings = settings
        self._supervisor = Supervisor(clock, spawn=self._spawn, healthy=self._answers, start_s=settings.engine_start_s)
        self._attached_ready = False
        self._wire = None if settings.engine_url is None else EngineWire(settings.engine_url, settings.engine_api_key)

    @property
    def label(self) -> str:
        """Name, and how it is run."""
        return "sglang" if self._settings.engine_url is None else "sglang-attached"

    @property
    def ready(self) -> bool:
        """Whether it answered its last health check."""
        return self._supervisor.ready or self._attached_ready

    async def run(self) -> None:
        """Keep the child running, or keep asking the attached server."""
        if self._settings.engine_url is None:
            await self._supervisor.run()
        while True:
            self._attached_ready = await self._healthy()
            await asyncio.sleep(_ATTACH_PROBE_S)

    async def generate(self, call: EngineCall) -> WireGeneration:
        """Begin a job under the name `call.rid`."""
        wire = self._wire
        if wire is None:
            raise EngineUnavailableError
        headers: list[tuple[bytes, bytes]] = []
        extra: dict[str, bytes | None] = dict.fromkeys(_REMOVED)
        if self._settings.engine_url is None:
            headers.append((b"x-override-rid", call.rid.encode()))
        else:
            extra["rid"] = msgspec.json.encode(call.rid)
        if call.traceparent is not None:
            headers.append((b"traceparent", call.traceparent.encode()))

        async def abort() -> None:
            with contextlib.suppress(EngineError):
                await wire.call(b"POST", "/abort_request", msgspec.json.encode({"rid": call.rid}), ABORT_S)

        body = engine_body(call, extra, continuous_usage=True)
        return await wire.post_stream(call.endpoint.path, body, headers, abort)

    async def load(self) -> Load | None:
        """Running and waiting requests over all ranks."""
        if self._wire is None:
            return None
        try:
            status, body = await self._wire.call(b"GET", "/v1/loads?include=core")
            ranks = _loads_decoder.decode(body).loads if status == _OK else []
        except (EngineError, msgspec.DecodeError):
            return None
        if not ranks:
            return None
        return Load(
            running=sum(max(0, rank.num_running_reqs) for rank in ranks),
            queued=sum(max(0, rank.num_waiting_reqs) for rank in ranks),
        )

    async def _spawn(self) -> Child:
        assert self._settings.model_path is not None, "settings require it"
        await asyncio.to_thread(self._manifest.require, self._settings.model_path)
        port = _free_port()
        self._wire = EngineWire(f"http://127.0.0.1:{port}", self._settings.engine_api_key)
        return await Child.spawn(launch_command(self._settings, port), environ={**child_environ(), **_LAUNCH_ENVIRON})

    async def _answers(self, child: Child) -> bool:
        del child
        return await self._healthy()

    async def _healthy(self) -> bool:
        if self._wire is None:
            return False
        try:
            status, _ = await self._wire.call(b"GET", "/health")
        except EngineError:
            return False
        return status == _OK


def launch_command(settings: Settings, port: int) -> list[str]:
    """The command line; `engine_args` come last, so that an operator's flag wins."""
    assert settings.model_path is not None, "settings require it"
    return [
        sys.executable, "-m", "sglang.launch_server",
        "--model-path", settings.model_path,
        "--served-model-name", settings.served_model,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--context-length", str(settings.context_tokens),
        "--max-running-requests", str(settings.capacity),
        "--enable-cache-report",
        "--enable-metrics",
        "--sleep-on-idle",
        *(("--is-embedding",) if settings.endpoints == ("embeddings",) else ()),
        *settings.engine_args,
    ]  # fmt: skip


def _free_port() -> int:
    """A port that was free a moment ago; a collision makes the child exit, and the next attempt takes another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
