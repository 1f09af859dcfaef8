"""API keys in Postgres, and the listener that keeps a `KeyTable` equal to them."""

import asyncio
import datetime as dt
import random
import uuid
from importlib.resources import files

import msgspec
import structlog

from billing.ports import BillingError
from billing.postgres.pool import Connection, DuplicateRecordError, Pool, Record, acquired, connect, translated
from cocoon.clock import Clock
from cocoon.ids import ADMIN_KEY_PREFIX, API_KEY_PREFIX, WORKER_KEY_PREFIX, new_secret_key, secret_key_hash
from cocoon.sql import named_statements
from gateway.auth import KeyRecord, KeyTable, Principal, Project, Role
from gateway.errors import GatewayError

CHANNEL = "cocoon_keys"
HEARTBEAT_S = 5.0
"""How often a quiet connection is asked whether it still lives: several times within `auth.FRESH_S_MAX`."""
ANSWER_S_MAX = 5.0
BACKOFF_S_FIRST = 0.1
BACKOFF_S_MAX = 3.0
CHANGES_MAX = 1000
"""More changed keys than this at once are one full reload."""
LISTED_MAX = 10_000
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


class KeySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key may do. None is unlimited; empty `allowed_models` allows every model."""

    customer_id: uuid.UUID
    name: str
    role: Role = Role.CUSTOMER
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency_max: int | None = None
    allowed_models: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    expires_at: dt.datetime | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at the only moment when it is known."""

    key_id: uuid.UUID
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(key_id={self.key_id!r}, secret=<redacted>)"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as people see it afterwards."""

    key_id: uuid.UUID
    customer: str
    name: str
    prefix: str
    role: Role
    requests_per_min: int | None
    tokens_per_min: int | None
    concurrency_max: int | None
    allowed_models: tuple[str, ...]
    cors_origins: tuple[str, ...]
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    created_at: dt.datetime


class KeyStore:
    """The table of keys. Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool, rng: random.Random) -> None:
        self._pool = pool
        self._rng = rng

    async def create(self, spec: KeySpec) -> NewKey:
        """Make a key. Its secret is returned here and never again.

        Raises:
            KeyNameTakenError: the customer has a live key of this name.
            RecordRefusedError: no such customer, or a limit that is none.
        """
        secret = new_secret_key(_FORMS[spec.role], self._rng)
        return NewKey(key_id=await self._insert(secret, spec), secret=secret)

    async def seed(self, secret: str, spec: KeySpec) -> uuid.UUID:
        """Make a key whose secret is chosen by the caller; a key that exists already stays as it is.

        Raises:
            KeyNameTakenError: the customer has another live key of this name.
        """
        assert secret.startswith(_FORMS[spec.role]), "a key's form tells its role"
        async with acquired(self._pool) as connection:
            known: uuid.UUID | None = await connection.fetchval(_SQL["find_hash"], secret_key_hash(secret))
        return known or await self._insert(secret, spec)

    async def list_keys(self, *, revoked: bool = False) -> list[StoredKey]:
        """Keys by customer and age, at most `LISTED_MAX`; revoked ones only when asked for."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["list_keys"], revoked, LISTED_MAX)
        return [_stored(row) for row in rows]

    async def revoke(self, key: str) -> uuid.UUID:
        """Revoke by id or displayed prefix. Every gateway stops accepting the key within a second.

        Raises:
            KeyUnknownError: no live key, or more than one, answers to `key`.
        """
        async with acquired(self._pool) as connection:
            revoked: uuid.UUID | None = await connection.fetchval(_SQL["revoke_key"], key)
        if revoked is None:
            raise KeyUnknownError
        return revoked

    async def _insert(self, secret: str, spec: KeySpec) -> uuid.UUID:
        key_id = uuid.UUID(int=self._rng.getrandbits(128), version=4)
        try:
            async with acquired(self._pool) as connection:
                await connection.execute(
                    _SQL["insert_key"],
                    key_id,
                    spec.customer_id,
                    spec.name,
                    secret_key_hash(secret),
                    secret[:SHOWN_PREFIX_CHARACTERS],
                    spec.role.value,
                    spec.requests_per_min,
                    spec.tokens_per_min,
                    spec.concurrency_max,
                    list(spec.allowed_models),
                    list(spec.cors_origins),
                    spec.expires_at,
                )
        except DuplicateRecordError as error:
            raise KeyNameTakenError(f"the customer has a live key named {spec.name!r}") from error
        return key_id


async def load_keys(connection: Connection, only: list[uuid.UUID] | None = None) -> list[KeyRecord]:
    """Live keys, all of them or those of `only`."""
    with translated():
        rows = await connection.fetch(_SQL["live_keys"], only)
    return [
        KeyRecord(
            sha256=row["sha256"],
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
        customer=row["customer"],
        name=row["name"],
        prefix=row["prefix"],
        role=Role(row["role"]),
        requests_per_min=row["requests_per_min"],
        tokens_per_min=row["tokens_per_min"],
        concurrency_max=row["concurrency_max"],
        allowed_models=tuple(row["allowed_models"] or ()),
        cors_origins=tuple(row["cors_origins"]),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        created_at=row["created_at"],
    )
