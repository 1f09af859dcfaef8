"""`/v1/account`, the managing part: what an organisation's admin key may do to its own projects and keys.

The organisation is the caller's own, whatever the request says. Keys of workers and network admins are out of reach
even where the organisation owns them, and no right can be given that the caller's own kind of key does not have: new
keys are plain customers' keys.
"""

import uuid
from typing import Annotated

from litestar import Response, get, post
from litestar.params import Parameter

from gateway.auth import Principal
from gateway.http.access import require_own_admin
from gateway.http.owned import AdminRequest, OwnedController
from gateway.http.records import (
    PAGE_DEFAULT,
    PAGE_MAX,
    AuditView,
    CreateOwnKey,
    CreateProject,
    KeyView,
    OrganisationView,
    Page,
    ProjectView,
    organisation_view,
)
from gateway.postgres.keys import Reach, own_organisation
from gateway.services import Services

PageSize = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="Items on a page")]


class OrganisationController(OwnedController):
    """Projects and keys of the caller's organisation."""

    path = "/v1/account"
    guards = (require_own_admin,)
    tags = ("account",)

    @staticmethod
    def reach(caller: Principal) -> Reach:
        """The caller's own organisation."""
        return own_organisation(caller.customer_id)

    @get("/organisation")
    async def organisation(self, request: AdminRequest, services: Services) -> OrganisationView:
        """The caller's organisation."""
        return organisation_view(await self.hands(request, services).organisations.find(request.auth.customer_id))

    @post("/projects")
    async def create_project(
        self, request: AdminRequest, services: Services, data: CreateProject
    ) -> Response[ProjectView]:
        """A new project."""
        return await self.hands(request, services).create_project(request.auth.customer_id, data)

    @get("/projects")
    async def list_projects(
        self, request: AdminRequest, services: Services, *, archived: bool = False, after: uuid.UUID | None = None,
        limit: PageSize = PAGE_DEFAULT,
    ) -> Page[ProjectView]:  # fmt: skip
        """Projects by age."""
        administration = self.hands(request, services)
        return await administration.list_projects(request.auth.customer_id, archived=archived, after=after, limit=limit)

    @post("/keys")
    async def create_key(self, request: AdminRequest, services: Services, data: CreateOwnKey) -> Response[KeyView]:
        """A new key that can buy answers. Its secret is in this answer and nowhere else."""
        return await self.hands(request, services).create_key(request.auth.customer_id, data)

    @get("/keys")
    async def list_keys(
        self, request: AdminRequest, services: Services, *, project_id: uuid.UUID | None = None, revoked: bool = False,
        after: uuid.UUID | None = None, limit: PageSize = PAGE_DEFAULT,
    ) -> Page[KeyView]:  # fmt: skip
        """Keys by age, without their secrets."""
        return await self.hands(request, services).list_keys(
            request.auth.customer_id, project_id=project_id, revoked=revoked, after=after, limit=limit
        )

    @get("/audit")
    async def audit(
        self, request: AdminRequest, services: Services, after: Annotated[int | None, Parameter(ge=1)] = None,
        limit: PageSize = PAGE_DEFAULT,
    ) -> Page[AuditView]:  # fmt: skip
        """Who changed what in the organisation, newest first."""
        return await self.hands(request, services).list_changes(request.auth.customer_id, before=after, limit=limit)
