"""Who is calling: API keys in memory, looked up by hash.

`KeyTable` does no I/O: `gateway.postgres.keys` fills it and keeps it fresh. A lookup costs one SHA-256 and one
dictionary access whatever is sent, and a revocation takes effect with the table's next change. A table that nobody
has confirmed for `FRESH_S_MAX` refuses every key, because it could be serving revoked ones.
"""

import datetime as dt
import enum
import hashlib
import uuid
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from cocoon.clock import Clock
from gateway.errors import GatewayError
from workers.targets import Requirement

FRESH_S_MAX = 30.0
"""Seconds without contact to the database after which no key is believed (DESIGN §5)."""
_SCHEME = b"bearer "
_HEADER_BYTES_MAX = 512
_SHA256 = hashlib.sha256()
"""Copied, because OpenSSL takes longer to find the function than to compute it."""


class AuthError(GatewayError):
    """The caller cannot be admitted."""

    code: ClassVar[str] = "invalid_api_key"


class MissingKeyError(AuthError):
    """You didn't provide an API key. Send it as 'Authorization: Bearer sk-cocoon-...'."""

    code: ClassVar[str] = "missing_api_key"


class InvalidKeyError(AuthError):
    """Incorrect API key provided."""


class ExpiredKeyError(AuthError):
    """The API key has expired."""

    code: ClassVar[str] = "expired_api_key"


class RoleForbiddenError(AuthError):
    """This API key may not be used here."""

    code: ClassVar[str] = "role_forbidden"


class KeysStaleError(AuthError):
    """The table of keys has not been confirmed recently."""

    code: ClassVar[str] = "keys_stale"
    transient: ClassVar[bool] = True


class Role(enum.StrEnum):
    """What a key is for."""

    CUSTOMER = "customer"
    ADMIN = "admin"
    WORKER = "worker"


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's project allows all of its keys together. None is unlimited; spend is nano per UTC day and month."""

    project_id: uuid.UUID
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency_max: int | None = None
    spend_day_nano_max: int | None = None
    spend_month_nano_max: int | None = None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a key and its limits. None is unlimited; empty `allowed_models` allows every model.

    `customer_id` is the organisation that pays. Every stored key has a `project`, whose limits apply besides its own.
    `organisation_admin` lets a customer's key manage its own organisation. Its requests go only to workers that meet
    `required_evidence`.
    """

    key_id: uuid.UUID
    customer_id: uuid.UUID
    name: str
    role: Role = Role.CUSTOMER
    organisation_admin: bool = False
    project: Project | None = None
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency_max: int | None = None
    spend_day_nano_max: int | None = None
    spend_month_nano_max: int | None = None
    allowed_models: frozenset[str] = frozenset()
    required_evidence: Requirement = "any"
    cors_origins: frozenset[str] = frozenset()
    expires_at: dt.datetime | None = None

    @property
    def limits_spend(self) -> bool:
        """Whether the key or its project has a limit on spend."""
        if self.spend_day_nano_max is not None or self.spend_month_nano_max is not None:
            return True
        project = self.project
        return project is not None and (
            project.spend_day_nano_max is not None or project.spend_month_nano_max is not None
        )


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A live key as stored: its SHA-256 and whom it admits.

    After a rotation the secret before it, `previous_sha256`, admits the same until `previous_expires_at`.
    """

    sha256: bytes
    principal: Principal
    previous_sha256: bytes | None = None
    previous_expires_at: dt.datetime | None = None

    def holders(self) -> dict[bytes, Principal]:
        """Whom each of the key's secrets admits, by hash."""
        held = {self.sha256: self.principal}
        if self.previous_sha256 is not None and self.previous_expires_at is not None:
            ends = [end for end in (self.principal.expires_at, self.previous_expires_at) if end is not None]
            held[self.previous_sha256] = msgspec.structs.replace(self.principal, expires_at=min(ends))
        return held


class KeyTable:
    """Every live key, by hash. Starts stale: nothing is admitted before the first load."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_hash: dict[bytes, Principal] = {}
        self._hashes_of: dict[uuid.UUID, tuple[bytes, ...]] = {}
        self._confirmed: float | None = None
        self._origins: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self._hashes_of)

    @property
    def fresh(self) -> bool:
        """Whether the table was confirmed within `FRESH_S_MAX`."""
        return self._confirmed is not None and self._clock.monotonic() - self._confirmed <= FRESH_S_MAX

    def replace(self, records: Iterable[KeyRecord], *, confirmed_at: float) -> None:
        """Take a full load that was asked for at `confirmed_at` (monotonic); keys that are not in it stop working."""
        self._by_hash = {}
        self._hashes_of = {}
        for record in records:
            self._add(record)
        self._origins = None
        self.confirm(confirmed_at)

    def put(self, record: KeyRecord) -> None:
        """Add or change one key."""
        self.remove(record.principal.key_id)
        self._add(record)
        self._origins = None

    def remove(self, key_id: uuid.UUID) -> None:
        """Forget a key; unknown ids are no error."""
        for sha256 in self._hashes_of.pop(key_id, ()):
            del self._by_hash[sha256]
            self._origins = None

    def allows_origin(self, origin: str) -> bool:
        """Whether any key may be used from this web origin; a CORS preflight does not say which key it is for."""
        if self._origins is None:
            self._origins = frozenset[str]().union(*(held.cors_origins for held in self._by_hash.values()))
        return origin in self._origins

    def confirm(self, confirmed_at: float) -> None:
        """The database answered a question asked at `confirmed_at` (monotonic): nothing was missed until then."""
        self._confirmed = confirmed_at if self._confirmed is None else max(self._confirmed, confirmed_at)

    def authenticate(self, authorization: bytes | None, *, now: dt.datetime) -> Principal:
        """The principal of an `Authorization` header; `now` is wall time.

        Raises:
            MissingKeyError: no header, or not a bearer token.
            InvalidKeyError: no live key has this hash; revoked and never issued look alike.
            ExpiredKeyError: the key's time is over.
            KeysStaleError: the table may be outdated.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise MissingKeyError
        if len(authorization) > _HEADER_BYTES_MAX:
            raise InvalidKeyError
        if not self.fresh:
            raise KeysStaleError
        # Looking up a hash instead of the key leaves nothing to be learnt from timing.
        digest = _SHA256.copy()
        digest.update(secret_of(authorization))
        principal = self._by_hash.get(digest.digest())
        if principal is None:
            raise InvalidKeyError
        if principal.expires_at is not None and principal.expires_at <= now:
            raise ExpiredKeyError
        return principal

    def _add(self, record: KeyRecord) -> None:
        holders = record.holders()
        self._by_hash.update(holders)
        self._hashes_of[record.principal.key_id] = tuple(holders)


def secret_of(authorization: bytes) -> bytes:
    """The key in an `Authorization` header that `KeyTable.authenticate` has accepted."""
    return authorization[len(_SCHEME) :].strip()


def require_role(principal: Principal, *roles: Role) -> None:
    """Refuse a key of another role.

    Raises:
        RoleForbiddenError: a worker's key at a customer's endpoint, and so on.
    """
    if principal.role not in roles:
        raise RoleForbiddenError


def require_organisation_admin(principal: Principal) -> None:
    """Refuse whoever may not manage the projects and keys of its own organisation.

    Raises:
        RoleForbiddenError: the key's organisation gave it no such right; a network admin has its own endpoints.
    """
    require_role(principal, Role.CUSTOMER)
    if not principal.organisation_admin:
        raise RoleForbiddenError("This API key may not manage its organisation.")
