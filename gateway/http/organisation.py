"""`/v1/account`, the managing part: what an organisation's admin key may do to its own projects and keys.

The organisation is the caller's own, whatever the request says. Keys of workers and network admins are out of reach
even where the organisation owns them, and no right can be given that the caller's own kind of key does not have: new
keys are plain customers' keys.
"""

import uuid
from typing import Annotated, Any

from litestar import Controller, Response, get, post, put
from litestar.connection import Request
from litestar.params import Parameter

from gateway.auth import Principal
from gateway.http.access import require_own_admin
from gateway.http.administration import Administration
from gateway.http.records import (
    PAGE_DEFAULT,
    PAGE_MAX,
    AuditView,
    CreateOwnKey,
    CreateProject,
    KeyView,
    Limits,
    OrganisationView,
    Page,
    ProjectView,
    Rotate,
    organisation_view,
)
from gateway.http.workers import CONTROL_BYTES_MAX
from gateway.postgres.keys import own_organisation
from gateway.services import Services

OwnRequest = Request[Any, Principal, Any]
PageSize = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="Items on a page")]


def hands(request: OwnRequest, services: Services) -> Administration:
    """The caller's, which reach its own organisation."""
    return Administration(services, request.auth, own_organisation(request.auth.customer_id))


class OrganisationController(Controller):
    """Projects and keys of the caller's organisation."""

    path = "/v1/account"
    guards = (require_own_admin,)
    request_max_body_size = CONTROL_BYTES_MAX
    tags = ("account",)

    @get("/organisation")
    async def organisation(self, request: OwnRequest, services: Services) -> OrganisationView:
        """The caller's organisation."""
        return organisation_view(await hands(request, services).organisations.find(request.auth.customer_id))

    @post("/projects")
    async def create_project(
        self, request: OwnRequest, services: Services, data: CreateProject
    ) -> Response[ProjectView]:
        """A new project."""
        return await hands(request, services).create_project(request.auth.customer_id, data)

    @get("/projects")
    async def list_projects(
        self, request: OwnRequest, services: Services, *, archived: bool = False, after: uuid.UUID | None = None,
        limit: PageSize = PAGE_DEFAULT,
    ) -> Page[ProjectView]:  # fmt: skip
        """Projects by age."""
        administration = hands(request, services)
        return await administration.list_projects(request.auth.customer_id, archived=archived, after=after, limit=limit)

    @put("/projects/{project_id:uuid}/limits")
    async def limit_project(
        self, request: OwnRequest, services: Services, project_id: uuid.UUID, data: Limits
    ) -> ProjectView:
        """Give a project exactly these limits; every gateway knows them within a second."""
        return await hands(request, services).limit_project(project_id, data)

    @post("/projects/{project_id:uuid}/archive", status_code=200)
    async def archive_project(self, request: OwnRequest, services: Services, project_id: uuid.UUID) -> ProjectView:
        """Close a project and revoke its keys."""
        return await hands(request, services).archive_project(project_id)

    @post("/keys")
    async def create_key(self, request: OwnRequest, services: Services, data: CreateOwnKey) -> Response[KeyView]:
        """A new key that can buy answers. Its secret is in this answer and nowhere else."""
        return await hands(request, services).create_key(request.auth.customer_id, data)

    @get("/keys")
    async def list_keys(
        self, request: OwnRequest, services: Services, *, project_id: uuid.UUID | None = None, revoked: bool = False,
        after: uuid.UUID | None = None, limit: PageSize = PAGE_DEFAULT,
    ) -> Page[KeyView]:  # fmt: skip
        """Keys by age, without their secrets."""
        return await hands(request, services).list_keys(
            request.auth.customer_id, project_id=project_id, revoked=revoked, after=after, limit=limit
        )

    @get("/keys/{key_id:uuid}")
    async def find_key(self, request: OwnRequest, services: Services, key_id: uuid.UUID) -> KeyView:
        """One key, revoked or not."""
        return await hands(request, services).find_key(key_id)

    @put("/keys/{key_id:uuid}/limits")
    async def limit_key(self, request: OwnRequest, services: Services, key_id: uuid.UUID, data: Limits) -> KeyView:
        """Give a key exactly these limits."""
        return await hands(request, services).limit_key(key_id, data)

    @post("/keys/{key_id:uuid}/rotate", status_code=200)
    async def rotate_key(
        self, request: OwnRequest, services: Services, key_id: uuid.UUID, data: Rotate
    ) -> Response[KeyView]:
        """A new secret, shown once; the old one works for `grace_s` seconds more."""
        return await hands(request, services).rotate_key(key_id, data)

    @post("/keys/{key_id:uuid}/revoke", status_code=200)
    async def revoke_key(self, request: OwnRequest, services: Services, key_id: uuid.UUID) -> KeyView:
        """Revoke a key, everywhere within a second."""
        return await hands(request, services).revoke_key(key_id)

    @get("/audit")
    async def audit(
        self, request: OwnRequest, services: Services, after: Annotated[int | None, Parameter(ge=1)] = None,
        limit: PageSize = PAGE_DEFAULT,
    ) -> Page[AuditView]:  # fmt: skip
        """Who changed what in the organisation, newest first."""
        return await hands(request, services).list_changes(request.auth.customer_id, before=after, limit=limit)
