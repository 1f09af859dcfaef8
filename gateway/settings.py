"""Everything the gateway is told from outside, read once.

This module alone reads the gateway's environment. A malformed value stops the start-up with its name.
"""

import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from attestation.policy import POLICY_BYTES_MAX
from billing.ton.settings import Liteserver, liteservers_setting
from cocoon.addresses import Address
from cocoon.canonical import from_base64url
from cocoon.checkpoints import is_key_name
from cocoon.contracts.stake import BOUNTY_BPS_MAX
from cocoon.delegation import operator_of
from cocoon.endpoints import EndpointName
from cocoon.errors import CocoonError, MalformedError

_NETWORK_SECRET_BYTES = 32
_SEED_BYTES = 32
DEVELOPMENT_CHAIN = -3
AUDIT_WINDOW_S = 86_400
"""How long what a worker earned may still prove to be wrong."""
STAKE_UNBOND_S_MIN = 86_400
"""Who lied must not have taken the stake back before the lie is found."""
_LOG_KEY_LABEL = b"cocoon/log-key/1\x00"

_LOOPBACK_DOMAINS = ("127.0.0.1", "localhost")
_DOMAIN = re.compile(r"[a-z0-9:][a-z0-9.:-]{0,127}")

TOP_UP_DEFAULT = "Ask the operator of this gateway for credit; at zero, requests are answered 402 insufficient_quota."
TOP_UP_CHARS_MAX = 256


class SettingsError(CocoonError):
    """An environment variable has a value that cannot be used."""

    code = "bad_settings"


class Secret:
    """A value that does not show itself in logs or tracebacks."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        """The value itself."""
        return self._value


class UpstreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trusted OpenAI-compatible URL without an agent (`evidence = none`). `models` maps our names to its own.

    `endpoints` are those that it serves with each of them. `name` and `api_key` become header values as they are.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    url: str
    models: Annotated[dict[str, str], msgspec.Meta(min_length=1)]
    context_tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    capacity: Annotated[int, msgspec.Meta(ge=1)] = 256
    endpoints: Annotated[tuple[EndpointName, ...], msgspec.Meta(min_length=1)] = ("chat",)
    api_key: Annotated[str, msgspec.Meta(pattern=r"\A[\x21-\x7e]+\Z")] | None = None

    def __repr__(self) -> str:
        return f"UpstreamSettings(name={self.name!r}, url={self.url!r})"


class AlertSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How thresholds are watched: every `interval_s` (0 is never here), first retry after `retry_s`.

    `top_up` is what messages say about topping up.
    """

    interval_s: float
    retry_s: float
    top_up: str
    allow_private: bool


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The transparency log: its origin, and the seed of the key that signs checkpoints under this name."""

    origin: str
    seed: Secret


class AttestationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How workers' evidence is judged. Without a policy none is accepted.

    `policy` is the TOML text whose digest was pinned; `pccs_url` where collateral comes from, None for its vendor;
    `rims` a folder of NVIDIA's reference manifests (XML); `simulated_seed` makes the vendors of a simulated policy.
    Collateral is looked after every `refresh_s` seconds.
    """

    policy: bytes | None
    policy_sha256: bytes
    pccs_url: str | None
    rims: Path | None
    simulated_seed: bytes
    required: bool
    refresh_s: float

    def __repr__(self) -> str:
        return f"AttestationSettings(policy_sha256={self.policy_sha256.hex()!r}, required={self.required})"


class EscrowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whose escrows count: the operator's wallet, its payout contract, and its settlement key (zeros for none).

    `challenge_s_min` replaces the rule on a development chain; 0 leaves it.
    """

    operator: Address
    payout: Address
    operator_key: bytes
    challenge_s_min: int


class StakeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What workers' stakes are held to: nano for a request in flight, and for how many seconds earnings are exposed."""

    unit_nano: int
    window_s: float


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's configuration; durations in seconds.

    `wallet_domains` are those that wallets may sign for to get a worker key; without any they get none. `liteservers`
    are where the chain is read, None where there is no chain. `stake_unbond_s_min` and `stake_bounty_bps_min` are what
    a worker's stake has to say at least; `stakes` None gives requests to workers without any as to others.
    `gateway_key` (64 hexadecimal digits) signs tickets by the operator's `delegation`; both are None in development
    where nothing was said.
    """

    env: str
    database_url: Secret
    redis_url: Secret
    network_secret: Secret
    gateway_key: Secret | None
    delegation: bytes | None
    global_id: int
    allow_private_workers: bool
    upstreams: tuple[UpstreamSettings, ...]
    otlp_endpoint: str | None
    processes: int
    drain_s: float
    first_byte_s: float
    idle_s: float
    request_s_max: float
    keep_alive_s: float
    body_bytes_max: int
    bodies_bytes_max: int
    exchanges_max: int
    lease_ttl_s: float
    lease_idle_s: float
    alerts: AlertSettings
    log: LogSettings
    receipt_days: int
    attestation: AttestationSettings
    wallet_domains: tuple[str, ...]
    stake_unbond_s_min: int
    stake_bounty_bps_min: int
    liteservers: tuple[Liteserver, ...] | None = None
    escrows: EscrowSettings | None = None
    stakes: StakeSettings | None = None

    @property
    def production(self) -> bool:
        """Unset means production (PROTOCOL §6)."""
        return self.env == "production"


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: a variable is missing or malformed; the message names it.
    """
    env = os.environ if environment is None else environment
    secret = _required(env, "COCOON_NETWORK_SECRET")
    try:
        if len(bytes.fromhex(secret)) != _NETWORK_SECRET_BYTES:
            raise ValueError
    except ValueError:
        raise SettingsError("COCOON_NETWORK_SECRET must be 64 hexadecimal digits") from None
    gateway_key, delegation = _signing(env)
    global_id = int(_number(env, "COCOON_GLOBAL_ID", -3, low=-(2**31), high=2**31 - 1))
    return Settings(
        env=_one_of(env, "COCOON_ENV", ("production", "development"), "production"),
        database_url=Secret(_required(env, "COCOON_DATABASE_URL")),
        redis_url=Secret(_required(env, "COCOON_REDIS_URL")),
        network_secret=Secret(secret),
        gateway_key=gateway_key,
        delegation=delegation,
        global_id=global_id,
        allow_private_workers=_one_of(env, "COCOON_ALLOW_PRIVATE_WORKERS", ("0", "1"), "0") == "1",
        upstreams=_upstreams(env),
        otlp_endpoint=env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        processes=int(_number(env, "COCOON_GATEWAY_PROCESSES", 1, low=1, high=64)),
        drain_s=_number(env, "COCOON_DRAIN_S", 30, high=3600),
        first_byte_s=_number(env, "COCOON_FIRST_BYTE_S", 120, low=0.05, high=3600),
        idle_s=_number(env, "COCOON_IDLE_S", 60, low=0.05, high=3600),
        request_s_max=_number(env, "COCOON_REQUEST_S_MAX", 600, low=0.05, high=3600),
        keep_alive_s=_number(env, "COCOON_KEEP_ALIVE_S", 10, low=0.05, high=3600),
        body_bytes_max=int(_number(env, "COCOON_BODY_BYTES_MAX", 20_000_000, low=1024, high=2**28)),
        bodies_bytes_max=int(_number(env, "COCOON_BODIES_BYTES_MAX", 2**28, low=1024, high=2**40)),
        exchanges_max=int(_number(env, "COCOON_EXCHANGES_MAX", 4096, low=1, high=2**20)),
        lease_ttl_s=_number(env, "COCOON_LEASE_TTL_S", 60, low=1, high=3600),
        lease_idle_s=_number(env, "COCOON_LEASE_IDLE_S", 10, low=0.05, high=3600),
        alerts=_alerts(env),
        receipt_days=int(_number(env, "COCOON_RECEIPT_DAYS", 90, low=2, high=3650)),
        log=read_log(env, bytes.fromhex(secret), global_id),
        attestation=_attestation(env),
        wallet_domains=_wallet_domains(env),
        stake_unbond_s_min=_stake_unbond_s_min(env, global_id),
        stake_bounty_bps_min=int(_number(env, "COCOON_STAKE_BOUNTY_BPS_MIN", 1_000, high=BOUNTY_BPS_MAX)),
        liteservers=liteservers_setting(env),
        escrows=_escrows(env, global_id),
        stakes=read_stakes(env),
    )


def read_log(env: Mapping[str, str], network_secret: bytes, global_id: int) -> LogSettings:
    """A key of its own, or one that every replica derives from the network's secret.

    Raises:
        SettingsError: a value is malformed.
    """
    origin = env.get("COCOON_LOG_ORIGIN") or f"cocoon-log/{global_id}"
    if not is_key_name(origin):
        raise SettingsError("COCOON_LOG_ORIGIN must have 1 to 255 characters, none of them white space or a plus sign")
    seed = env.get("COCOON_LOG_KEY") or hmac.digest(network_secret, _LOG_KEY_LABEL, "sha256").hex()
    try:
        if len(bytes.fromhex(seed)) != _SEED_BYTES:
            raise ValueError
    except ValueError:
        raise SettingsError("COCOON_LOG_KEY must be 64 hexadecimal digits") from None
    return LogSettings(origin=origin, seed=Secret(seed))


def read_stakes(environment: Mapping[str, str] | None = None) -> StakeSettings | None:
    """None where workers need no stake.

    Raises:
        SettingsError: a value is malformed.
    """
    env = os.environ if environment is None else environment
    unit_nano = int(_number(env, "COCOON_STAKE_PER_UNIT_NANO", 0, high=10**18))
    window_s = _number(env, "COCOON_AUDIT_WINDOW_S", AUDIT_WINDOW_S, low=60, high=2**31)
    return StakeSettings(unit_nano=unit_nano, window_s=window_s) if unit_nano else None


def _signing(env: Mapping[str, str]) -> tuple[Secret | None, bytes | None]:
    """The key that signs, and the operator's delegation to it; only development may do without."""
    development = env.get("COCOON_ENV") == "development"
    if development and not env.get("COCOON_GATEWAY_KEY") and not env.get("COCOON_GATEWAY_DELEGATION"):
        return None, None
    key = _required(env, "COCOON_GATEWAY_KEY")
    try:
        if len(bytes.fromhex(key)) != _SEED_BYTES:
            raise ValueError
    except ValueError:
        raise SettingsError("COCOON_GATEWAY_KEY must be 64 hexadecimal digits") from None
    try:
        delegation = from_base64url(_required(env, "COCOON_GATEWAY_DELEGATION"))
        operator_of(delegation)
    except MalformedError:
        raise SettingsError("COCOON_GATEWAY_DELEGATION is not a delegation (`cocoon operator delegate`)") from None
    return Secret(key), delegation


def _required(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set")
    return value


def _one_of(env: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = env.get(name) or default
    if value not in allowed:
        raise SettingsError(f"{name} must be one of {', '.join(allowed)}")
    return value


def _number(env: Mapping[str, str], name: str, default: float, *, low: float = 0, high: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name} must be a number") from None
    if not low <= value <= high:
        raise SettingsError(f"{name} must lie between {low} and {high}")
    return value


def _alerts(env: Mapping[str, str]) -> AlertSettings:
    top_up = env.get("COCOON_ALERTS_TOP_UP") or TOP_UP_DEFAULT
    if len(top_up) > TOP_UP_CHARS_MAX or not top_up.isprintable():
        raise SettingsError(f"COCOON_ALERTS_TOP_UP is one line of at most {TOP_UP_CHARS_MAX} characters")
    return AlertSettings(
        interval_s=_number(env, "COCOON_ALERTS_S", 5, high=3600),
        retry_s=_number(env, "COCOON_ALERTS_RETRY_S", 5, low=0.01, high=3600),
        top_up=top_up,
        allow_private=_one_of(env, "COCOON_ALLOW_PRIVATE_WEBHOOKS", ("0", "1"), "0") == "1",
    )


def _attestation(env: Mapping[str, str]) -> AttestationSettings:
    path, pin = env.get("COCOON_POLICY_FILE"), env.get("COCOON_POLICY_SHA256", "")
    digest, seed = _hex(env, "COCOON_POLICY_SHA256"), _hex(env, "COCOON_SIMULATED_SEED")
    if bool(path) != bool(pin):
        raise SettingsError("COCOON_POLICY_FILE and COCOON_POLICY_SHA256 go together (`cocoon policy check FILE`)")
    policy: bytes | None = None
    if path:
        try:
            with Path(path).open("rb") as file:
                policy = file.read(POLICY_BYTES_MAX + 1)
        except OSError as error:
            raise SettingsError(f"COCOON_POLICY_FILE cannot be read: {error.strerror}") from None
    rims = env.get("COCOON_RIMS")
    if rims and not Path(rims).is_dir():
        raise SettingsError("COCOON_RIMS must be a folder")
    required = _one_of(env, "COCOON_EVIDENCE_REQUIRED", ("0", "1"), "0") == "1"
    if required and policy is None:
        raise SettingsError("COCOON_EVIDENCE_REQUIRED needs a COCOON_POLICY_FILE")
    return AttestationSettings(
        policy=policy, policy_sha256=digest, pccs_url=env.get("COCOON_PCCS_URL") or None,
        rims=Path(rims) if rims else None, simulated_seed=seed, required=required,
        refresh_s=_number(env, "COCOON_COLLATERAL_S", 3600, low=0.05, high=86400),
    )  # fmt: skip


def _hex(env: Mapping[str, str], name: str) -> bytes:
    """32 bytes, or none where nothing is said."""
    text = env.get(name, "")
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b"?"
    if len(value) not in (0, _SEED_BYTES):
        raise SettingsError(f"{name} must be 64 hexadecimal digits")
    return value


def _escrows(env: Mapping[str, str], global_id: int) -> EscrowSettings | None:
    wallet, payout = env.get("COCOON_OPERATOR_WALLET"), env.get("COCOON_PAYOUT_CONTRACT")
    if bool(wallet) != bool(payout):
        raise SettingsError("COCOON_OPERATOR_WALLET and COCOON_PAYOUT_CONTRACT go together")
    if not wallet or not payout:
        return None
    challenge_s = int(_number(env, "COCOON_ESCROW_CHALLENGE_S_MIN", 0, high=2**32 - 1))
    if challenge_s and not _on_development_chain(env, global_id):
        raise SettingsError("COCOON_ESCROW_CHALLENGE_S_MIN is for the development chain only")
    try:
        operator, contract = Address.parse_any(wallet), Address.parse_any(payout)
    except MalformedError as error:
        raise SettingsError(f"COCOON_OPERATOR_WALLET and COCOON_PAYOUT_CONTRACT are addresses: {error}") from error
    return EscrowSettings(
        operator=operator, payout=contract, challenge_s_min=challenge_s,
        operator_key=_hex(env, "COCOON_SETTLEMENT_KEY_PUBLIC") or bytes(_SEED_BYTES),
    )  # fmt: skip


def _stake_unbond_s_min(env: Mapping[str, str], global_id: int) -> int:
    seconds = int(_number(env, "COCOON_STAKE_UNBOND_S_MIN", STAKE_UNBOND_S_MIN, high=2**32 - 1))
    if seconds < STAKE_UNBOND_S_MIN and not _on_development_chain(env, global_id):
        raise SettingsError(
            f"COCOON_STAKE_UNBOND_S_MIN is at least {STAKE_UNBOND_S_MIN}, except on the development chain"
        )
    return seconds


def _on_development_chain(env: Mapping[str, str], global_id: int) -> bool:
    return env.get("COCOON_ENV") == "development" and global_id == DEVELOPMENT_CHAIN


def _wallet_domains(env: Mapping[str, str]) -> tuple[str, ...]:
    text = env.get("COCOON_WALLET_DOMAINS") or ""
    if not text and env.get("COCOON_ENV") == "development":
        return _LOOPBACK_DOMAINS
    domains = tuple(domain.strip() for domain in text.split(",") if domain.strip())
    if any(_DOMAIN.fullmatch(domain) is None for domain in domains):
        raise SettingsError("COCOON_WALLET_DOMAINS are host names in lower case, separated by commas")
    return domains


def _upstreams(env: Mapping[str, str]) -> tuple[UpstreamSettings, ...]:
    text = env.get("COCOON_UPSTREAMS")
    if not text:
        return ()
    try:
        upstreams = msgspec.json.decode(text, type=tuple[UpstreamSettings, ...])
    except msgspec.DecodeError as error:
        # The message names the path, never the value: an API key may be among them.
        raise SettingsError(f"COCOON_UPSTREAMS is malformed: {str(error).split(' - ')[-1]}") from None
    if len({upstream.name for upstream in upstreams}) != len(upstreams):
        raise SettingsError("COCOON_UPSTREAMS is malformed: two upstreams have the same name")
    return upstreams
