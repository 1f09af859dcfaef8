"""The child process of the embedded engine: llama.cpp's own HTTP server on loopback.

Reads one JSON document from standard input (so that its key is in no argument list), writes its URL as one line to
standard output once it listens.
"""

import importlib
import signal
import sys
from typing import Any, Literal

import msgspec


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent tells its engine. `context_tokens` is per request, `batch_tokens` is prefill between looks.

    `pooling` makes one vector of a text's tokens: None serves no embeddings, `model` is what the model file says, and
    `last`, the last token's, is the one that works in batches smaller than the text.
    """

    model_path: str
    served_model: str
    api_key: str
    capacity: int
    context_tokens: int
    threads: int
    batch_tokens: int
    pooling: Literal["last", "model"] | None = None


def main() -> None:
    """Serve until killed."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerConfig)
    xllamacpp: Any = importlib.import_module("xllamacpp")  # an extension module without type information
    params = xllamacpp.CommonParams()
    params.model.path = config.model_path
    params.model_alias = {config.served_model}
    params.api_keys = [config.api_key]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = config.capacity
    params.n_ctx = config.context_tokens * config.capacity
    params.n_batch = params.n_ubatch = config.batch_tokens
    params.cpuparams.n_threads = config.threads
    params.cpuparams_batch.n_threads = config.threads
    # Nothing of a prompt outlives its request: caches are not kept apart by whose they are.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    if config.pooling is not None:
        params.embedding = True
    if config.pooling == "last":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.use_jinja = True
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201  the line the agent waits for
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
