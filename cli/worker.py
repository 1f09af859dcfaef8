"""`cocoon worker`: serve a model beside its engine. Every flag has an environment variable; the flag wins."""

import asyncio
import importlib
import importlib.util
from collections.abc import Callable

import click

from cli.lazy import LazyGroup, Subcommand
from cocoon.clock import SystemClock, system_random
from cocoon.logs import configure_logging
from workers.agent.main import serve
from workers.agent.settings import load_settings

_OPTIONS = {
    "gateway-url": ("COCOON_GATEWAY_URL", "Where to enrol."),
    "gateway-ca": ("COCOON_GATEWAY_CA", "Certificates (PEM) of a private authority that vouches for the gateway."),
    "key-file": ("COCOON_WORKER_KEY_FILE", "The worker key that `cocoon worker enrol` wrote."),
    "name": ("COCOON_WORKER_NAME", "Name of this worker for people; default worker."),
    "listen": ("COCOON_WORKER_LISTEN", "host:port to serve on; port 0 takes a free one."),
    "public-url": ("COCOON_WORKER_PUBLIC_URL", "How gateways reach this worker; default https://LISTEN."),
    "capacity": ("COCOON_WORKER_CAPACITY", "Requests in flight; default 4."),
    "engine": ("COCOON_ENGINE", "xllamacpp, sglang, sglang+URL of a running SGLang, or URL of an OpenAI API."),
    "model-path": ("COCOON_ENGINE_MODEL_PATH", "Model file (xllamacpp) or folder (sglang)."),
    "manifest": ("COCOON_WORKER_MANIFEST", "Manifest of the weights (cocoon manifest build); serve no others."),
    "served-model": ("COCOON_SERVED_MODEL", "Name under which the model is offered."),
    "ask": ("COCOON_WORKER_ASK", "Your price in TON per million tokens: PROMPT/CACHED/COMPLETION, or @FILE with it."),
    "ask-or-ceiling": ("COCOON_WORKER_ASK_OR_CEILING", "1: where the network pays less than you ask, work for that."),
    "threads": ("COCOON_ENGINE_THREADS", "CPU threads of the embedded engine; default 2."),
    "engine-args": ("COCOON_ENGINE_ARGS", "More arguments for a launched SGLang, quoted as in a shell."),
    "endpoints": ("COCOON_SERVED_ENDPOINTS", "What the engine serves: some of chat,completions,embeddings."),
    "context-tokens": ("COCOON_CONTEXT_TOKENS", "Context of one request; default 4096."),
    "drain-s": ("COCOON_DRAIN_S", "Seconds that running jobs get after SIGTERM; default 30."),
    "state": ("COCOON_WORKER_STATE", "Folder for receipts until the gateway has judged them."),
    "operator-key": ("COCOON_OPERATOR_KEY", "Public key of the operator whose gateways may sign tickets (hex)."),
    "operator-credit-max": ("COCOON_OPERATOR_CREDIT_MAX", "TON that the operator may owe; beyond it, no more jobs."),
    "paid-file": ("COCOON_PAID_FILE", "What `cocoon worker payout watch` writes; belongs to operator-credit-max."),
    "global-id": ("COCOON_GLOBAL_ID", "Refuse a gateway of another TON network than this."),
}


def _run(**given: str | None) -> None:
    """Serve until SIGTERM. Keys come from the environment or a file: COCOON_WORKER_KEY, COCOON_ENGINE_API_KEY."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    names = {option.replace("-", "_"): variable for option, (variable, _) in _OPTIONS.items()}
    settings = load_settings({names[name]: value for name, value in given.items() if value is not None})
    configure_logging(f"worker:{settings.name}")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, SystemClock(), system_random()))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster loop where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    return importlib.import_module("uvloop").new_event_loop


SUBCOMMANDS = {
    "enrol": Subcommand("cli.enrol", "Prove your TON wallet and write the worker key to a file.", "worker"),
    "payout": Subcommand("cli.payout", "What you are owed; be paid without the operator.", "gateway"),
    "stake": Subcommand("cli.stake", "Stand behind your worker's receipts with a bond, and take it back.", "gateway"),
}

command = LazyGroup(
    name="worker",
    subcommands=SUBCOMMANDS,
    callback=_run,
    invoke_without_command=True,
    params=[
        click.Option([f"--{option}"], help=f"{text} [{variable}]") for option, (variable, text) in _OPTIONS.items()
    ],
    help=_run.__doc__,
    short_help="Serve a model beside its engine.",
)
