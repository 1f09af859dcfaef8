"""What a network admin and an organisation admin both do, each within its reach."""

import uuid
from collections.abc import Callable
from typing import TypeVar

import msgspec
from litestar import Response

from billing.postgres.audit import list_changes
from cocoon.clock import system_random
from gateway.auth import Principal, Role
from gateway.errors import InvalidRequestError
from gateway.http.records import (
    AuditView,
    CreateKey,
    CreateOwnKey,
    CreateProject,
    KeyView,
    Limits,
    Page,
    ProjectView,
    Rotate,
    key_view,
    project_view,
)
from gateway.postgres.keys import KeySpec, KeyStore, Reach
from gateway.postgres.organisations import Organisations
from gateway.services import Services

_EXPIRY_YEAR_MAX = 2999
"""Far from what dates can say in every time zone."""
_NO_STORE = {"cache-control": "no-store"}
Item = TypeVar("Item")


class Administration:
    """One caller's hands: they reach no further than `reach`, and the audit log names whose they are."""

    def __init__(self, services: Services, caller: Principal, reach: Reach) -> None:
        self._services = services
        self._reach = reach
        actor = f"key:{caller.key_id}"
        self.organisations = Organisations(services.pool, system_random(), actor=actor)
        self._keys = KeyStore(services.pool, system_random(), actor=actor)
        self.actor = actor

    async def create_project(self, organisation_id: uuid.UUID, asked: CreateProject) -> Response[ProjectView]:
        """201 with a new project, 200 with the one that was asked for before."""
        project, new = await self.organisations.create_project(
            organisation_id, asked.name, asked.limits.allowance(), asked.id
        )
        return Response(project_view(project), status_code=201 if new else 200)

    async def list_projects(
        self, organisation_id: uuid.UUID, *, archived: bool, after: uuid.UUID | None, limit: int
    ) -> Page[ProjectView]:
        """A page of an organisation's projects."""
        found = await self.organisations.list_projects(organisation_id, archived=archived, after=after, limit=limit + 1)
        return page([project_view(project) for project in found], limit, lambda project: str(project.id))

    async def limit_project(self, project_id: uuid.UUID, limits: Limits) -> ProjectView:
        """The project with exactly these limits."""
        return project_view(await self.organisations.limit_project(project_id, limits.allowance(), self._reach))

    async def archive_project(self, project_id: uuid.UUID) -> ProjectView:
        """The project, closed, its keys revoked."""
        return project_view(await self.organisations.archive_project(project_id, self._reach))

    async def create_key(self, organisation_id: uuid.UUID, asked: CreateOwnKey) -> Response[KeyView]:
        """A new key with its secret."""
        if asked.expires_at is not None and asked.expires_at <= self._services.clock.now():
            raise InvalidRequestError("expires_at lies in the past.", param="expires_at")
        if asked.expires_at is not None and asked.expires_at.year > _EXPIRY_YEAR_MAX:
            raise InvalidRequestError("expires_at lies too far ahead; leave it out instead.", param="expires_at")
        role, admin = (asked.role, asked.organisation_admin) if isinstance(asked, CreateKey) else (Role.CUSTOMER, False)
        if admin and role is not Role.CUSTOMER:
            raise InvalidRequestError("Only a customer's key manages its organisation.", param="organisation_admin")
        made = await self._keys.create(
            KeySpec(
                customer_id=organisation_id, name=asked.name, project_id=asked.project_id, role=role,
                organisation_admin=admin, allowed_models=asked.allowed_models, cors_origins=asked.cors_origins,
                expires_at=asked.expires_at, required_evidence=asked.required_evidence,
                **msgspec.structs.asdict(asked.limits),
            )
        )  # fmt: skip
        return Response(key_view(await self._keys.find(made.key_id), made), status_code=201, headers=_NO_STORE)

    async def list_keys(
        self, organisation_id: uuid.UUID, *, project_id: uuid.UUID | None, revoked: bool, after: uuid.UUID | None,
        limit: int,
    ) -> Page[KeyView]:  # fmt: skip
        """A page of an organisation's keys, as far as they are within reach."""
        found = await self._keys.list_keys(
            Reach(customer_id=organisation_id, roles=self._reach.roles), revoked=revoked, project_id=project_id,
            after=after, limit=limit + 1,
        )  # fmt: skip
        return page([key_view(key) for key in found], limit, lambda key: str(key.id))

    async def find_key(self, key_id: uuid.UUID) -> KeyView:
        """One key, revoked or not."""
        return key_view(await self._keys.find(key_id, self._reach))

    async def limit_key(self, key_id: uuid.UUID, limits: Limits) -> KeyView:
        """The key with exactly these limits."""
        return key_view(await self._keys.set_limits(key_id, limits.allowance(), self._reach))

    async def rotate_key(self, key_id: uuid.UUID, asked: Rotate) -> Response[KeyView]:
        """The key with a new secret."""
        made = await self._keys.rotate(
            key_id, rotation_id=asked.rotation_id or uuid.uuid4(), grace_s=asked.grace_s, reach=self._reach
        )
        return Response(key_view(await self._keys.find(key_id), made), status_code=200, headers=_NO_STORE)

    async def revoke_key(self, key_id: uuid.UUID) -> KeyView:
        """The key, revoked; revoking it again changes nothing."""
        key = await self._keys.find(key_id, self._reach)
        if key.revoked_at is None:
            await self._keys.revoke(str(key_id), self._reach)
            key = await self._keys.find(key_id, self._reach)
        return key_view(key)

    async def list_changes(
        self, organisation_id: uuid.UUID | None, *, before: int | None, limit: int
    ) -> Page[AuditView]:
        """A page of the audit log, newest first."""
        found = await list_changes(self._services.pool, organisation_id, before=before, limit=limit + 1)
        views = [
            AuditView(
                id=row.id, created_at=row.created_at, actor=row.actor, action=row.action,
                organisation_id=row.customer_id, subject_id=row.subject_id, detail=row.detail,
            )
            for row in found
        ]  # fmt: skip
        return page(views, limit, lambda view: str(view.id))


def page(found: list[Item], limit: int, place: Callable[[Item], str]) -> Page[Item]:
    """The first `limit` of what was found; one more says that there is a next page."""
    more = len(found) > limit
    shown = found[:limit]
    return Page(data=shown, has_more=more, next=place(shown[-1]) if more else None)
