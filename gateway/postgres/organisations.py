"""Organisations and their projects in Postgres. An organisation is the customer that pays."""

import contextlib
import datetime as dt
import random
import uuid
from importlib.resources import files

import msgspec

from billing.postgres.adjustments import open_customer_accounts
from billing.postgres.audit import Change, Detail, record
from billing.postgres.pool import Connection, Pool, Record, acquired, transaction
from cocoon.sql import named_statements
from gateway.errors import GatewayError
from gateway.postgres.keys import WHOLE_NETWORK, Allowance, ProjectUnknownError, Reach

DEFAULT_PROJECT = "default"
"""The project that takes keys which name none; it is never archived."""
_SQL = named_statements(files("gateway.postgres").joinpath("organisations.sql").read_text(encoding="utf-8"))


class OrganisationUnknownError(GatewayError):
    """There is no such organisation."""

    code = "organisation_unknown"


class OrganisationTakenError(GatewayError):
    """There is another organisation of this name or id."""

    code = "organisation_taken"


class ProjectTakenError(GatewayError):
    """The organisation has another project of this name, perhaps archived, or the id is another one's."""

    code = "project_taken"


class ProjectNeededError(GatewayError):
    """This project cannot be archived."""

    code = "project_needed"


class Organisation(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays."""

    id: uuid.UUID
    name: str
    created_at: dt.datetime


class StoredProject(msgspec.Struct, frozen=True, kw_only=True):
    """A project and what all of its keys together may use."""

    id: uuid.UUID
    customer_id: uuid.UUID
    name: str
    limits: Allowance
    archived_at: dt.datetime | None
    created_at: dt.datetime


class Organisations:
    """Organisations and projects; changes are recorded as made by `actor`.

    Every method raises `LedgerUnavailableError` when the database is away.
    """

    def __init__(self, pool: Pool, rng: random.Random, *, actor: str) -> None:
        self._pool = pool
        self._rng = rng
        self._actor = actor

    async def create(self, name: str, organisation_id: uuid.UUID | None = None) -> tuple[Organisation, bool]:
        """An organisation with empty accounts and a project `default`, and whether it is new.

        With an id of the caller's choice it may be asked for again.

        Raises:
            OrganisationTakenError: the name is taken, or the id by another name.
        """
        chosen = organisation_id or self._new_id()
        async with transaction(self._pool) as connection:
            made = await connection.fetchval(_SQL["insert_organisation"], chosen, name)
            if made is not None:
                await open_customer_accounts(connection, chosen)
                await connection.fetchval(_SQL["make_default_project"], chosen)
                await self._record(connection, "organisation.create", chosen, chosen, {"name": name})
            row = await connection.fetchrow(_SQL["find_organisation"], chosen)
        if row is None or row["name"] != name:
            raise OrganisationTakenError
        return _organisation(row), made is not None

    async def open(self, name: str) -> Organisation:
        """The organisation of this name, made when it is new."""
        with contextlib.suppress(OrganisationTakenError):
            return (await self.create(name))[0]
        return await self.find_by_name(name)

    async def find(self, organisation_id: uuid.UUID) -> Organisation:
        """One organisation.

        Raises:
            OrganisationUnknownError: there is none of this id.
        """
        return await self._found("find_organisation", organisation_id)

    async def find_by_name(self, name: str) -> Organisation:
        """One organisation.

        Raises:
            OrganisationUnknownError: there is none of this name.
        """
        return await self._found("find_organisation_by_name", name)

    async def list_organisations(self, *, after: uuid.UUID | None, limit: int) -> list[Organisation]:
        """Organisations by age; `after` ended the last page."""
        async with acquired(self._pool) as connection:
            return [_organisation(row) for row in await connection.fetch(_SQL["list_organisations"], after, limit)]

    async def create_project(
        self, customer_id: uuid.UUID, name: str, allowance: Allowance, project_id: uuid.UUID | None = None
    ) -> tuple[StoredProject, bool]:
        """A project, and whether it is new. With an id of the caller's choice it may be asked for again.

        Raises:
            OrganisationUnknownError: there is no such organisation.
            ProjectTakenError: the name is taken, or the id is of another project.
        """
        await self.find(customer_id)
        chosen = project_id or self._new_id()
        limits = msgspec.structs.astuple(allowance)
        async with transaction(self._pool) as connection:
            made = await connection.fetchval(_SQL["insert_project"], chosen, customer_id, name, *limits)
            if made is not None:
                detail: Detail = {"name": name, **msgspec.structs.asdict(allowance)}
                await self._record(connection, "project.create", customer_id, chosen, detail)
            row = await connection.fetchrow(_SQL["find_project"], chosen, customer_id)
        if row is None or row["name"] != name:
            raise ProjectTakenError
        return _project(row), made is not None

    async def find_project_by_name(self, customer_id: uuid.UUID, name: str) -> StoredProject:
        """One project.

        Raises:
            ProjectUnknownError: the organisation has none of this name.
        """
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["find_project_by_name"], customer_id, name)
        if row is None:
            raise ProjectUnknownError
        return _project(row)

    async def list_projects(
        self, customer_id: uuid.UUID, *, archived: bool = False, after: uuid.UUID | None = None, limit: int
    ) -> list[StoredProject]:
        """Projects of an organisation by age; `after` ended the last page."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["list_projects"], customer_id, archived, after, limit)
        return [_project(row) for row in rows]

    async def limit_project(
        self, project_id: uuid.UUID, allowance: Allowance, reach: Reach = WHOLE_NETWORK
    ) -> StoredProject:
        """Give a live project these limits and no others; every replica knows them within a second.

        Raises:
            ProjectUnknownError: no live project of this id within reach.
        """
        limits = msgspec.structs.astuple(allowance)
        async with transaction(self._pool) as connection:
            if await connection.fetchval(_SQL["limit_project"], project_id, reach.customer_id, *limits) is None:
                raise ProjectUnknownError
            project = await _project_of(connection, project_id, reach)
            detail: Detail = {"name": project.name, **msgspec.structs.asdict(allowance)}
            await self._record(connection, "project.limit", project.customer_id, project_id, detail)
        return project

    async def archive_project(self, project_id: uuid.UUID, reach: Reach = WHOLE_NETWORK) -> StoredProject:
        """Close a project and revoke its keys, everywhere within a second. Archiving it again changes nothing.

        Raises:
            ProjectUnknownError: no such project within reach.
            ProjectNeededError: it is the default one, or it has keys that are out of reach.
        """
        async with transaction(self._pool) as connection:
            project = await _project_of(connection, project_id, reach)
            if project.name == DEFAULT_PROJECT:
                raise ProjectNeededError("The default project is always there.")
            if await connection.fetchval(_SQL["archive_project"], project_id, reach.customer_id) is None:
                return project
            # After the row is locked: no key can come into the project any more.
            if await connection.fetchval(_SQL["has_foreign_keys"], project_id, [role.value for role in reach.roles]):
                raise ProjectNeededError("The project has keys that are not the organisation's to revoke.")
            revoked = await connection.fetch(_SQL["revoke_keys_of_project"], project_id)
            detail: Detail = {"name": project.name, "keys_revoked": len(revoked)}
            await self._record(connection, "project.archive", project.customer_id, project_id, detail)
            return await _project_of(connection, project_id, reach)

    async def _found(self, statement: str, wanted: uuid.UUID | str) -> Organisation:
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL[statement], wanted)
        if row is None:
            raise OrganisationUnknownError
        return _organisation(row)

    async def _record(
        self, connection: Connection, action: str, customer_id: uuid.UUID, subject_id: uuid.UUID, detail: Detail
    ) -> None:
        await record(
            connection,
            Change(actor=self._actor, action=action, customer_id=customer_id, subject_id=subject_id, detail=detail),
        )

    def _new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self._rng.getrandbits(128), version=4)


async def _project_of(connection: Connection, project_id: uuid.UUID, reach: Reach) -> StoredProject:
    row = await connection.fetchrow(_SQL["find_project"], project_id, reach.customer_id)
    if row is None:
        raise ProjectUnknownError
    return _project(row)


def _organisation(row: Record) -> Organisation:
    return Organisation(id=row["id"], name=row["name"], created_at=row["created_at"])


def _project(row: Record) -> StoredProject:
    return StoredProject(
        id=row["id"],
        customer_id=row["customer_id"],
        name=row["name"],
        limits=Allowance(**{name: row[name] for name in Allowance.__struct_fields__}),
        archived_at=row["archived_at"],
        created_at=row["created_at"],
    )
