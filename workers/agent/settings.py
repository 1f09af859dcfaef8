"""The agent's configuration: read once from the environment, checked, frozen.

The only module of the agent that reads the environment. Command line flags arrive as overrides of the same names, so
that there is one parser and one set of messages.
"""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import msgspec

from cocoon.endpoints import BY_NAME, ENDPOINTS, EndpointName
from cocoon.enrolment import KEYSET_SECONDS_MAX
from cocoon.errors import CocoonError
from cocoon.ids import WORKER_KEY_PREFIX, is_secret_key
from cocoon.money import parse_units
from cocoon.receipt import is_strong_key
from workers.agent.asking import AskMalformedError, AskSource, ask_source

SERVED_DEFAULT = "chat,completions"
UNSIGNED_MAX = 256
UNSIGNED_PER_JOB = 8
"""The default bound of unsigned tickets, and per request in flight where that is more: seconds of short jobs."""
EmbeddedEngine = Literal["xllamacpp", "sglang"]
TEETypes = ("none", "simulated", "tdx")
TSM_REPORTS = "/sys/kernel/config/tsm/report"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")
_SEED_BYTES = 32
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  compared with, never bound


class SettingsError(CocoonError):
    """The configuration is not usable."""

    code: ClassVar[str] = "bad_settings"


class Secret:
    """A key that does not print itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key, for the one header that carries it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"


class TEESettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where evidence comes from. `seed` (32 bytes) and `gpus` make a simulated machine; the paths are a TDX guest's."""

    kind: str
    seed: bytes = b""
    gpus: int = 0
    tsm_folder: Path = Path(TSM_REPORTS)
    event_log: Path = Path()

    def __repr__(self) -> str:
        return f"TEESettings({self.kind!r})"


class StakeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the staked key and its contract's configuration are, and the chain that they are of."""

    key_file: Path
    config_file: Path
    global_id: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an agent is told at start-up. Durations are seconds, `capacity` is requests in flight.

    Exactly one of `embedded` and `engine_url` is set. `engine_url` with `sglang_attached` speaks SGLang's own API,
    else only what every OpenAI-compatible server understands. `global_id` pins the chain; None takes the gateway's.
    `endpoints` are those that the engine serves. `state_folder` is where receipts are kept; None keeps them in memory.
    `operator_key` is whose gateways may sign tickets; None, in development only, takes the first. No job is taken while
    `unsigned_max` tickets lack a signature, or one for `unsigned_s`. `ask` is where the worker's price comes from,
    `tee` where evidence does. `manifest_file` says which weights to serve, and no others. `stake` is None for a
    worker that has bonded nothing. No job is taken while the operator owes more than `credit_max_nano` (None: no limit)
    beyond what `paid_file` says that it has paid.
    """

    gateway_url: str
    gateway_ca: str | None
    worker_key: Secret
    name: str
    host: str
    port: int
    public_url: str | None
    capacity: int
    embedded: EmbeddedEngine | None
    engine_url: str | None
    sglang_attached: bool
    engine_args: tuple[str, ...]
    engine_api_key: Secret | None
    engine_threads: int
    engine_start_s: float
    model_path: str | None
    served_model: str
    endpoints: tuple[EndpointName, ...]
    context_tokens: int
    drain_s: float
    job_s_max: float
    keyset_s: int
    state_folder: Path | None
    receipt_grace_s: float
    operator_key: bytes | None
    unsigned_max: int
    unsigned_s: float
    global_id: int | None
    development: bool
    tee: TEESettings
    otlp_endpoint: str | None
    ask: AskSource
    manifest_file: Path | None
    stake: StakeSettings | None
    credit_max_nano: int | None
    paid_file: Path | None


def load_settings(overrides: Mapping[str, str]) -> Settings:
    """Settings from the environment, with `overrides` (same names) on top.

    Raises:
        SettingsError: naming the variable that is missing or malformed.
    """
    return parse_settings({**os.environ, **overrides})


def child_environ() -> dict[str, str]:
    """The environment for an engine: the agent's own without the agent's configuration, which holds its keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COCOON_")}


def parse_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from a mapping of variables; empty values count as absent.

    Raises:
        SettingsError: naming the variable that is missing or malformed.
    """
    source = _Variables(environ)
    development = source.choice("COCOON_ENV", ("production", "development"), "production") == "development"
    host, port = source.address("COCOON_WORKER_LISTEN", "127.0.0.1:0")
    embedded, engine_url, sglang_attached = _engine(source)
    capacity = source.integer("COCOON_WORKER_CAPACITY", 4, 1, 4096)
    default_model = "smollm2-135m-instruct" if embedded == "xllamacpp" else None
    served_model = source.matching("COCOON_SERVED_MODEL", _MODEL, default_model)
    chain = source.integer("COCOON_GLOBAL_ID", 0, -(2**31), 2**31 - 1)
    global_id = None if source.text("COCOON_GLOBAL_ID") is None else chain
    settings = Settings(
        gateway_url=source.url("COCOON_GATEWAY_URL"),
        gateway_ca=source.text("COCOON_GATEWAY_CA"),
        worker_key=_worker_key(source),
        name=source.matching("COCOON_WORKER_NAME", _NAME, "worker"),
        host=host,
        port=port,
        public_url=source.url("COCOON_WORKER_PUBLIC_URL") if source.text("COCOON_WORKER_PUBLIC_URL") else None,
        capacity=capacity,
        embedded=embedded,
        engine_url=engine_url,
        sglang_attached=sglang_attached,
        engine_args=source.words("COCOON_ENGINE_ARGS"),
        engine_api_key=source.secret("COCOON_ENGINE_API_KEY"),
        engine_threads=source.integer("COCOON_ENGINE_THREADS", 2, 1, 1024),
        engine_start_s=source.number("COCOON_ENGINE_START_S", 60.0 if embedded == "xllamacpp" else 1200.0, 1.0, 7200.0),
        model_path=source.text("COCOON_ENGINE_MODEL_PATH"),
        served_model=served_model,
        endpoints=_endpoints(source),
        context_tokens=source.integer("COCOON_CONTEXT_TOKENS", 4096, 16, 2**31 - 1),
        drain_s=source.number("COCOON_DRAIN_S", 30.0, 0.0, 3600.0),
        job_s_max=source.number("COCOON_JOB_S_MAX", 900.0, 1.0, 86400.0),
        keyset_s=source.integer("COCOON_KEYSET_S", KEYSET_SECONDS_MAX, 4, KEYSET_SECONDS_MAX),
        state_folder=_state_folder(source, development=development),
        receipt_grace_s=source.number("COCOON_RECEIPT_GRACE_S", 5.0, 0.05, 600.0),
        operator_key=_operator_key(source, development=development),
        unsigned_max=source.integer("COCOON_UNSIGNED_MAX", max(UNSIGNED_MAX, UNSIGNED_PER_JOB * capacity), 1, 10**6),
        unsigned_s=source.number("COCOON_UNSIGNED_S", 60.0, 0.1, 3600.0),
        global_id=global_id,
        development=development,
        tee=_tee(source),
        otlp_endpoint=source.url("OTEL_EXPORTER_OTLP_ENDPOINT") if source.text("OTEL_EXPORTER_OTLP_ENDPOINT") else None,
        ask=_ask(source, served_model),
        manifest_file=None if (path := source.text("COCOON_WORKER_MANIFEST")) is None else Path(path),
        stake=_stake(source, global_id),
        credit_max_nano=source.nano("COCOON_OPERATOR_CREDIT_MAX"),
        paid_file=None if (path := source.text("COCOON_PAID_FILE")) is None else Path(path),
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    gateway = urlsplit(settings.gateway_url)
    if gateway.scheme == "http" and not settings.development and gateway.hostname not in _LOOPBACK:
        raise SettingsError("COCOON_GATEWAY_URL must be https in production: the worker key travels to it")
    if settings.tee.kind == "simulated" and not settings.development:
        raise SettingsError("COCOON_TEE_TYPE=simulated needs COCOON_ENV=development")
    if settings.public_url is None and settings.host in _ANY_ADDRESS:
        raise SettingsError("COCOON_WORKER_PUBLIC_URL is needed when listening on every address")
    if settings.public_url is not None and not settings.public_url.startswith("https://"):
        raise SettingsError("COCOON_WORKER_PUBLIC_URL must be https")
    if (settings.credit_max_nano is None) != (settings.paid_file is None):
        raise SettingsError("COCOON_OPERATOR_CREDIT_MAX and COCOON_PAID_FILE are set together")
    # PROTOCOL §1: only an engine that the agent launched is part of what evidence can cover.
    if settings.engine_url is not None and settings.tee.kind not in ("none", "simulated"):
        raise SettingsError("COCOON_ENGINE can be a URL only with COCOON_TEE_TYPE none or simulated")
    if settings.embedded == "sglang" and "embeddings" in settings.endpoints and len(settings.endpoints) > 1:
        raise SettingsError("COCOON_SERVED_ENDPOINTS: SGLang serves either embeddings or the others")
    if settings.embedded == "sglang" and settings.model_path is None:
        raise SettingsError("COCOON_ENGINE_MODEL_PATH is needed to launch SGLang")


def _engine(source: "_Variables") -> tuple[EmbeddedEngine | None, str | None, bool]:
    text = source.text("COCOON_ENGINE") or "xllamacpp"
    if text == "xllamacpp" or text == "sglang":  # noqa: PLR1714  the type checker narrows this form
        return text, None, False
    attached = text.startswith("sglang+")
    url = _Variables({"COCOON_ENGINE": text.removeprefix("sglang+")}).url("COCOON_ENGINE")
    return None, url.removesuffix("/v1"), attached


def _endpoints(source: "_Variables") -> tuple[EndpointName, ...]:
    """What the engine serves, in the order of `ENDPOINTS`."""
    names = {name.strip() for name in (source.text("COCOON_SERVED_ENDPOINTS") or SERVED_DEFAULT).split(",")}
    if not names <= BY_NAME.keys():
        raise SettingsError(f"COCOON_SERVED_ENDPOINTS must list some of {', '.join(BY_NAME)}")
    return tuple(endpoint.name for endpoint in ENDPOINTS if endpoint.name in names)


def _tee(source: "_Variables") -> TEESettings:
    kind = source.choice("COCOON_TEE_TYPE", TEETypes, "none")
    if kind == "simulated":
        try:
            seed = bytes.fromhex(source.required("COCOON_SIMULATED_SEED"))
        except ValueError:
            seed = b""
        if len(seed) != _SEED_BYTES:
            raise SettingsError("COCOON_SIMULATED_SEED must be 64 hexadecimal digits")
        return TEESettings(kind=kind, seed=seed, gpus=source.integer("COCOON_SIMULATED_GPUS", 0, 0, 8))
    if kind == "tdx":
        folder = Path(source.text("COCOON_TSM_REPORTS") or TSM_REPORTS)
        return TEESettings(kind=kind, tsm_folder=folder, event_log=Path(source.required("COCOON_TDX_EVENT_LOG")))
    return TEESettings(kind=kind)


def _stake(source: "_Variables", global_id: int | None) -> StakeSettings | None:
    key_file, config_file = source.text("COCOON_STAKED_KEY_FILE"), source.text("COCOON_STAKE_CONFIG_FILE")
    if key_file is None and config_file is None:
        return None
    if key_file is None or config_file is None:
        raise SettingsError("COCOON_STAKED_KEY_FILE and COCOON_STAKE_CONFIG_FILE are set together")
    if global_id is None:
        raise SettingsError("COCOON_GLOBAL_ID is needed with a stake: its key signs for one chain")
    return StakeSettings(key_file=Path(key_file), config_file=Path(config_file), global_id=global_id)


def _ask(source: "_Variables", model: str) -> AskSource:
    or_ceiling = source.choice("COCOON_WORKER_ASK_OR_CEILING", ("0", "1"), "0") == "1"
    try:
        return ask_source(source.text("COCOON_WORKER_ASK"), model=model, or_ceiling=or_ceiling)
    except AskMalformedError as error:
        raise SettingsError(f"COCOON_WORKER_ASK is malformed: {error}") from error


def _state_folder(source: "_Variables", *, development: bool) -> Path | None:
    """Where receipts are kept: as told, else in the user's state folder (XDG), else, in development only, nowhere."""
    told = source.text("COCOON_WORKER_STATE")
    if told is not None or development:
        return None if told is None else Path(told)
    base, home = source.text("XDG_STATE_HOME"), source.text("HOME")
    if base is None and home is None:
        raise SettingsError("COCOON_WORKER_STATE is not set, and there is no HOME to keep receipts under")
    return (Path(base) if base is not None else Path(str(home)) / ".local" / "state") / "cocoon"


def _operator_key(source: "_Variables", *, development: bool) -> bytes | None:
    """The operator that this worker works for; only in development may it be left to the first who signs."""
    text = source.text("COCOON_OPERATOR_KEY") if development else source.required("COCOON_OPERATOR_KEY")
    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError as error:
        raise SettingsError("COCOON_OPERATOR_KEY must be 64 hexadecimal digits") from error
    if not is_strong_key(key):
        raise SettingsError("COCOON_OPERATOR_KEY must be 64 hexadecimal digits of an Ed25519 key")
    return key


def _worker_key(source: "_Variables") -> Secret:
    name, file = "COCOON_WORKER_KEY", source.text("COCOON_WORKER_KEY_FILE")
    if file is not None and source.text(name) is None:
        name = "COCOON_WORKER_KEY_FILE"
        try:
            key = Path(file).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name} cannot be read: {file}") from error
    else:
        key = source.required(name)
    if not is_secret_key(key) or not key.startswith(WORKER_KEY_PREFIX):
        raise SettingsError(f"{name} is not a worker key ({WORKER_KEY_PREFIX}...)")
    return Secret(key)


class _Variables:
    """Typed reads of a mapping of strings; every message names its variable and never shows a value that is secret."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise SettingsError(f"{name} is not set")
        return value

    def secret(self, name: str) -> Secret | None:
        value = self.text(name)
        if value is not None and not (value.isascii() and value.isprintable()):
            raise SettingsError(f"{name} must be printable ASCII")
        return None if value is None else Secret(value)

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(name) or default
        if value not in allowed:
            raise SettingsError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def matching(self, name: str, form: re.Pattern[str], default: str | None) -> str:
        value = self.text(name) or default
        if value is None:
            raise SettingsError(f"{name} is not set")
        if form.fullmatch(value) is None:
            raise SettingsError(f"{name} must match {form.pattern}, not {value!r}")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name)
        try:
            value = default if text is None else int(text)
        except ValueError as error:
            raise SettingsError(f"{name} must be a whole number, not {text!r}") from error
        if not low <= value <= high:
            raise SettingsError(f"{name} must lie between {low} and {high}, not {value}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        text = self.text(name)
        try:
            value = default if text is None else float(text)
        except ValueError as error:
            raise SettingsError(f"{name} must be a number of seconds, not {text!r}") from error
        if not low <= value <= high:
            raise SettingsError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")
        return value

    def nano(self, name: str) -> int | None:
        """An amount that is written in TON."""
        text = self.text(name)
        try:
            return None if text is None else parse_units(text)
        except ValueError as error:
            raise SettingsError(f"{name} must be an amount in TON with at most nine decimals, not {text!r}") from error

    def words(self, name: str) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(self.text(name) or ""))
        except ValueError as error:
            raise SettingsError(f"{name} has an unclosed quotation") from error

    def url(self, name: str) -> str:
        value = self.required(name)
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
            parts = urlsplit("")
        if not usable or parts.query or parts.fragment or parts.username is not None:
            raise SettingsError(f"{name} must be an http or https URL without user, query or fragment")
        return value.rstrip("/")

    def address(self, name: str, default: str) -> tuple[str, int]:
        value = self.text(name) or default
        host, colon, port = value.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004  the last port
            raise SettingsError(f"{name} must be host:port, not {value!r}")
        return host.removeprefix("[").removesuffix("]"), int(port)
