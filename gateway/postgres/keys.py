"""API keys in Postgres, and the listener that keeps a `KeyTable` equal to them."""

import asyncio
import datetime as dt
import random
import uuid
from importlib.resources import files

import msgspec
import structlog

from billing.ports import BillingError
from billing.postgres.audit import SYSTEM_ACTOR, Change, Detail, record
from billing.postgres.pool import (
    Connection,
    DuplicateRecordError,
    Pool,
    Record,
    acquired,
    connect,
    transaction,
    translated,
)
from cocoon.clock import Clock
from cocoon.ids import ADMIN_KEY_PREFIX, API_KEY_PREFIX, WORKER_KEY_PREFIX, new_secret_key, secret_key_hash
from cocoon.sql import named_statements
from gateway.auth import KeyRecord, KeyTable, Principal, Project, Role
from gateway.errors import GatewayError
from workers.targets import Requirement

CHANNEL = "cocoon_keys"
HEARTBEAT_S = 5.0
"""How often a quiet connection is asked whether it still lives: several times within `auth.FRESH_S_MAX`."""
ANSWER_S_MAX = 5.0
BACKOFF_S_FIRST = 0.1
BACKOFF_S_MAX = 3.0
CHANGES_MAX = 1000
"""More changed keys than this at once are one full reload."""
LISTED_MAX = 10_000
GRACE_S_MAX = 7 * 24 * 3600
"""Longest time that a rotated key's old secret is still believed."""
SHOWN_PREFIX_CHARACTERS = 16
"""The form's ten characters and six of the secret: enough to recognise a key by, 36 bits of 256."""
_FORMS = {Role.CUSTOMER: API_KEY_PREFIX, Role.ADMIN: ADMIN_KEY_PREFIX, Role.WORKER: WORKER_KEY_PREFIX}
_SQL = named_statements(files("gateway.postgres").joinpath("queries.sql").read_text(encoding="utf-8"))

log = structlog.get_logger()


class KeyNameTakenError(GatewayError):
    """This customer has a live key of this name."""

    code = "key_name_taken"


class KeyUnknownError(GatewayError):
    """No live key, or more than one, answers to this."""

    code = "key_unknown"


class ProjectUnknownError(GatewayError):
    """The organisation has no such live project."""

    code = "project_unknown"


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a key or a project. None is unlimited; spend is nano per UTC day and month."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency_max: int | None = None
    spend_day_nano_max: int | None = None
    spend_month_nano_max: int | None = None


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Which keys and projects somebody may touch: those of one organisation (None: of all), and keys of these roles."""

    customer_id: uuid.UUID | None = None
    roles: tuple[Role, ...] = tuple(Role)


WHOLE_NETWORK = Reach()


def own_organisation(customer_id: uuid.UUID) -> Reach:
    """What an organisation may touch: its customers' keys. A worker's or network admin's key is none of them."""
    return Reach(customer_id=customer_id, roles=(Role.CUSTOMER,))


class KeySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key may do. None is unlimited; empty `allowed_models` allows every model.

    `project_id` None is the customer's project `default`. `wallet` is the address whose owner proved it. Workers meet
    `required_evidence`, whatever a request says.
    """

    customer_id: uuid.UUID
    name: str
    project_id: uuid.UUID | None = None
    role: Role = Role.CUSTOMER
    organisation_admin: bool = False
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency_max: int | None = None
    spend_day_nano_max: int | None = None
    spend_month_nano_max: int | None = None
    allowed_models: tuple[str, ...] = ()
    required_evidence: Requirement = "any"
    cors_origins: tuple[str, ...] = ()
    expires_at: dt.datetime | None = None
    wallet: str | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at the only moment when it is known."""

    key_id: uuid.UUID
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(key_id={self.key_id!r}, secret=<redacted>)"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as people see it afterwards."""

    key_id: uuid.UUID
    customer_id: uuid.UUID
    customer: str
    project_id: uuid.UUID
    project: str
    name: str
    prefix: str
    role: Role
    organisation_admin: bool
    requests_per_min: int | None
    tokens_per_min: int | None
    concurrency_max: int | None
    spend_day_nano_max: int | None
    spend_month_nano_max: int | None
    allowed_models: tuple[str, ...]
    required_evidence: Requirement
    cors_origins: tuple[str, ...]
    expires_at: dt.datetime | None
    previous_expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    created_at: dt.datetime
    wallet: str | None = None


class KeyStore:
    """The table of keys; changes are recorded as made by `actor`.

    Every method raises `LedgerUnavailableError` when the database is away.
    """

    def __init__(self, pool: Pool, rng: random.Random, *, actor: str = SYSTEM_ACTOR) -> None:
        self._pool = pool
        self._rng = rng
        self._actor = actor

    async def create(self, spec: KeySpec) -> NewKey:
        """Make a key. Its secret is returned here and never again.

        Raises:
            KeyNameTakenError: the customer has a live key of this name.
            ProjectUnknownError: the customer has no such project, or it is archived.
            RecordRefusedError: no such customer, or a limit that is none.
        """
        secret = new_secret_key(_FORMS[spec.role], self._rng)
        return NewKey(key_id=await self._insert(secret, spec), secret=secret)

    async def create_on(self, connection: Connection, spec: KeySpec) -> NewKey:
        """As `create`, in the caller's transaction, which a name that is taken ends."""
        secret = new_secret_key(_FORMS[spec.role], self._rng)
        return NewKey(key_id=await self._insert_on(connection, secret, spec), secret=secret)

    async def seed(self, secret: str, spec: KeySpec) -> uuid.UUID:
        """Make a key whose secret is chosen by the caller; a key that exists already stays as it is.

        Raises:
            KeyNameTakenError: the customer has another live key of this name.
        """
        assert secret.startswith(_FORMS[spec.role]), "a key's form tells its role"
        async with acquired(self._pool) as connection:
            known: uuid.UUID | None = await connection.fetchval(_SQL["find_hash"], secret_key_hash(secret))
        return known or await self._insert(secret, spec)

    async def knows(self, secret: str) -> bool:
        """Whether this is the present secret of a key, revoked or not."""
        async with acquired(self._pool) as connection:
            return await connection.fetchval(_SQL["find_hash"], secret_key_hash(secret)) is not None

    async def list_keys(
        self, reach: Reach = WHOLE_NETWORK, *, revoked: bool = False, project_id: uuid.UUID | None = None,
        after: uuid.UUID | None = None, limit: int = LISTED_MAX,
    ) -> list[StoredKey]:  # fmt: skip
        """Keys by customer and age, at most `limit`; revoked ones only when asked for. `after` ended the last page."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["list_keys"], revoked, limit, *_reach(reach), project_id, after)
        return [_stored(row) for row in rows]

    async def find(self, key_id: uuid.UUID, reach: Reach = WHOLE_NETWORK) -> StoredKey:
        """One key, revoked or not.

        Raises:
            KeyUnknownError: no such key within reach.
        """
        async with acquired(self._pool) as connection:
            return await _found(connection, key_id, reach)

    async def resolve(self, key: str) -> uuid.UUID:
        """The live key of this id or displayed prefix.

        Raises:
            KeyUnknownError: no live key, or more than one, answers to `key`.
        """
        async with acquired(self._pool) as connection:
            found: uuid.UUID | None = await connection.fetchval(_SQL["resolve_key"], key)
        if found is None:
            raise KeyUnknownError
        return found

    async def set_limits(self, key_id: uuid.UUID, allowance: Allowance, reach: Reach = WHOLE_NETWORK) -> StoredKey:
        """Give a live key these limits and no others.

        Raises:
            KeyUnknownError: no live key of this id within reach.
        """
        async with transaction(self._pool) as connection:
            if await connection.fetchval(
                _SQL["limit_key"], key_id, *_reach(reach), *msgspec.structs.astuple(allowance)
            ) is None:  # fmt: skip
                raise KeyUnknownError
            key = await _found(connection, key_id, reach)
            await self._record(connection, "key.limit", key, msgspec.structs.asdict(allowance))
        return key

    async def rotate(
        self, key_id: uuid.UUID, *, rotation_id: uuid.UUID, grace_s: int = 0, reach: Reach = WHOLE_NETWORK
    ) -> NewKey:
        """A new secret for a live key; the old one is believed for `grace_s` seconds more.

        Asked again with the same `rotation_id`, because the first answer was lost, it replaces the secret that nobody
        saw and leaves the old one's time as it was.

        Raises:
            KeyUnknownError: no live key of this id within reach.
        """
        async with transaction(self._pool) as connection:
            return await self.rotate_on(connection, key_id, rotation_id=rotation_id, grace_s=grace_s, reach=reach)

    async def rotate_on(
        self, connection: Connection, key_id: uuid.UUID, *, rotation_id: uuid.UUID, grace_s: int = 0,
        reach: Reach = WHOLE_NETWORK,
    ) -> NewKey:  # fmt: skip
        """As `rotate`, in the caller's transaction."""
        assert 0 <= grace_s <= GRACE_S_MAX, "the caller bounds the grace period"
        key = await _found(connection, key_id, reach)
        secret = new_secret_key(_FORMS[key.role], self._rng)
        rotated = await connection.fetchval(
            _SQL["rotate_key"], key_id, *_reach(reach), secret_key_hash(secret), _prefix(secret), rotation_id,
            float(grace_s),
        )  # fmt: skip
        if rotated is None:
            raise KeyUnknownError
        await self._record(connection, "key.rotate", key, {"rotation_id": str(rotation_id), "grace_s": grace_s})
        return NewKey(key_id=key_id, secret=secret)

    async def revoke(self, key: str, reach: Reach = WHOLE_NETWORK) -> uuid.UUID:
        """Revoke by id or displayed prefix. Every gateway stops accepting the key within a second.

        Raises:
            KeyUnknownError: no live key, or more than one, answers to `key`.
        """
        async with transaction(self._pool) as connection:
            revoked: uuid.UUID | None = await connection.fetchval(_SQL["revoke_key"], key, *_reach(reach))
            if revoked is None:
                raise KeyUnknownError
            await self._record(connection, "key.revoke", await _found(connection, revoked, reach), {})
        return revoked

    async def _insert(self, secret: str, spec: KeySpec) -> uuid.UUID:
        try:
            async with transaction(self._pool) as connection:
                return await self._insert_on(connection, secret, spec)
        except DuplicateRecordError as error:
            raise KeyNameTakenError(f"the customer has a live key named {spec.name!r}") from error

    async def _insert_on(self, connection: Connection, secret: str, spec: KeySpec) -> uuid.UUID:
        key_id = uuid.UUID(int=self._rng.getrandbits(128), version=4)
        if spec.project_id is not None:
            known = await connection.fetchval(_SQL["lock_live_project"], spec.project_id, spec.customer_id)
            if known is None:
                raise ProjectUnknownError
        await connection.execute(_SQL["insert_key"], key_id, *_columns(secret, spec))
        key = await _found(connection, key_id, WHOLE_NETWORK)
        limits = {name: getattr(spec, name) for name in Allowance.__struct_fields__}
        await self._record(connection, "key.create", key, limits)
        return key_id

    async def _record(self, connection: Connection, action: str, key: StoredKey, detail: Detail) -> None:
        about: Detail = {
            "name": key.name, "prefix": key.prefix, "role": key.role.value, "project_id": str(key.project_id),
            "organisation_admin": key.organisation_admin,
        }  # fmt: skip
        await record(
            connection,
            Change(
                actor=self._actor, action=action, customer_id=key.customer_id, subject_id=key.key_id,
                detail=about | detail,
            ),
        )  # fmt: skip


def _reach(reach: Reach) -> tuple[uuid.UUID | None, list[str]]:
    return reach.customer_id, [role.value for role in reach.roles]


def _prefix(secret: str) -> str:
    return secret[:SHOWN_PREFIX_CHARACTERS]


def _columns(secret: str, spec: KeySpec) -> tuple[object, ...]:
    """Values in the order of `insert_key`, after the id."""
    return (
        spec.customer_id, spec.name, secret_key_hash(secret), _prefix(secret), spec.role.value, spec.requests_per_min,
        spec.tokens_per_min, spec.concurrency_max, list(spec.allowed_models), list(spec.cors_origins),
        spec.expires_at, spec.project_id, spec.organisation_admin, spec.spend_day_nano_max, spec.spend_month_nano_max,
        spec.wallet, spec.required_evidence,
    )  # fmt: skip


async def _found(connection: Connection, key_id: uuid.UUID, reach: Reach) -> StoredKey:
    row = await connection.fetchrow(_SQL["find_key"], key_id, *_reach(reach))
    if row is None:
        raise KeyUnknownError
    return _stored(row)


async def load_keys(connection: Connection, only: list[uuid.UUID] | None = None) -> list[KeyRecord]:
    """Live keys, all of them or those of `only`."""
    with translated():
        rows = await connection.fetch(_SQL["live_keys"], only)
    return [
        KeyRecord(
            sha256=row["sha256"],
            previous_sha256=row["previous_sha256"],
            previous_expires_at=row["previous_expires_at"],
            principal=Principal(
                key_id=row["id"],
                customer_id=row["customer_id"],
                name=row["name"],
                role=Role(row["role"]),
                organisation_admin=row["organisation_admin"],
                project=Project(
                    project_id=row["project_id"],
                    requests_per_min=row["project_requests_per_min"],
                    tokens_per_min=row["project_tokens_per_min"],
                    concurrency_max=row["project_concurrency_max"],
                    spend_day_nano_max=row["project_spend_day_nano_max"],
                    spend_month_nano_max=row["project_spend_month_nano_max"],
                ),
                requests_per_min=row["requests_per_min"],
                tokens_per_min=row["tokens_per_min"],
                concurrency_max=row["concurrency_max"],
                spend_day_nano_max=row["spend_day_nano_max"],
                spend_month_nano_max=row["spend_month_nano_max"],
                allowed_models=frozenset[str](row["allowed_models"] or ()),
                required_evidence=row["required_evidence"],
                cors_origins=frozenset[str](row["cors_origins"]),
                expires_at=row["expires_at"],
            ),
        )
        for row in rows
    ]


class KeyListener:
    """Keeps a table equal to the database: a full load, then changes as they are notified.

    Every connection begins with LISTEN and then a full load, so that nothing is missed in between. A lost connection
    leaves the table as it is; it goes stale by itself unless a new connection confirms it in time.
    """

    def __init__(self, database_url: str, table: KeyTable, clock: Clock, rng: random.Random) -> None:
        self._database_url = database_url
        self._table = table
        self._clock = clock
        self._rng = rng
        self._changed: set[uuid.UUID] = set()
        self._reload = True
        self._wake = asyncio.Event()
        self._gone = False
        self._backoff_s = BACKOFF_S_FIRST
        self.loaded = asyncio.Event()
        """Set once the table has been filled for the first time."""

    async def run(self) -> None:
        """Follow the database for ever."""
        while True:
            try:
                async with connect(self._database_url, application="cocoon-keys") as connection:
                    await self._follow(connection)
            except (BillingError, TimeoutError) as error:
                log.warning("key_listener_lost", error=type(error).__name__)
            await asyncio.sleep(self._backoff_s * self._rng.uniform(0.5, 1.0))
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)

    async def _follow(self, connection: Connection) -> None:
        self._gone = False
        self._reload = True
        connection.add_termination_listener(self._note_loss)
        async with asyncio.timeout(ANSWER_S_MAX):
            with translated():
                await connection.add_listener(CHANNEL, self._note_change)
        while not self._gone:
            self._wake.clear()
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._catch_up(connection)
            self._backoff_s = BACKOFF_S_FIRST
            if not self._changed and not self._reload and not self._gone:
                await self._rest()

    async def _catch_up(self, connection: Connection) -> None:
        asked_at = self._clock.monotonic()
        changed, self._changed = self._changed, set()
        if self._reload or len(changed) > CHANGES_MAX:
            self._reload = False
            self._table.replace(await load_keys(connection), confirmed_at=asked_at)
            log.info("keys_loaded", count=len(self._table))
            self.loaded.set()
            return
        if changed:
            records = await load_keys(connection, list(changed))
            # No await in between: a key whose limits change is never unknown.
            for key_id in changed:
                self._table.remove(key_id)
            for record in records:
                self._table.put(record)
        else:
            with translated():
                await connection.fetchval(_SQL["heartbeat"])
        self._table.confirm(asked_at)

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            return

    def _note_change(self, _connection: object, _process_id: int, _channel: str, payload: str) -> None:
        try:
            self._changed.add(uuid.UUID(payload))
        except ValueError:
            self._reload = True
        self._wake.set()

    def _note_loss(self, _connection: object) -> None:
        self._gone = True
        self._wake.set()


def _stored(row: Record) -> StoredKey:
    return StoredKey(
        key_id=row["id"],
        customer_id=row["customer_id"],
        customer=row["customer"],
        project_id=row["project_id"],
        project=row["project"],
        name=row["name"],
        prefix=row["prefix"],
        role=Role(row["role"]),
        organisation_admin=row["organisation_admin"],
        requests_per_min=row["requests_per_min"],
        tokens_per_min=row["tokens_per_min"],
        concurrency_max=row["concurrency_max"],
        spend_day_nano_max=row["spend_day_nano_max"],
        spend_month_nano_max=row["spend_month_nano_max"],
        allowed_models=tuple(row["allowed_models"] or ()),
        required_evidence=row["required_evidence"],
        cors_origins=tuple(row["cors_origins"]),
        expires_at=row["expires_at"],
        previous_expires_at=row["previous_expires_at"],
        revoked_at=row["revoked_at"],
        created_at=row["created_at"],
        wallet=row["wallet"],
    )
