"""Projects and keys by their ids: the same six routes for a network admin and for an organisation's own."""

import uuid
from typing import Any

from litestar import Controller, Response, get, post, put
from litestar.connection import Request

from gateway.auth import Principal
from gateway.http.administration import Administration
from gateway.http.records import KeyView, Limits, ProjectView, Rotate
from gateway.http.workers import CONTROL_BYTES_MAX
from gateway.postgres.keys import Reach
from gateway.services import Services

AdminRequest = Request[Any, Principal, Any]


class OwnedController(Controller):
    """What a caller may change within its reach. A guard has found the caller."""

    request_max_body_size = CONTROL_BYTES_MAX

    @staticmethod
    def reach(caller: Principal) -> Reach:
        """How far the caller's hands go."""
        raise NotImplementedError

    def hands(self, request: AdminRequest, services: Services) -> Administration:
        """The caller's."""
        return Administration(services, request.auth, self.reach(request.auth))

    @put("/projects/{project_id:uuid}/limits")
    async def limit_project(
        self, request: AdminRequest, services: Services, project_id: uuid.UUID, data: Limits
    ) -> ProjectView:
        """Give a project exactly these limits; every gateway knows them within a second."""
        return await self.hands(request, services).limit_project(project_id, data)

    @post("/projects/{project_id:uuid}/archive", status_code=200)
    async def archive_project(self, request: AdminRequest, services: Services, project_id: uuid.UUID) -> ProjectView:
        """Close a project and revoke its keys."""
        return await self.hands(request, services).archive_project(project_id)

    @get("/keys/{key_id:uuid}")
    async def find_key(self, request: AdminRequest, services: Services, key_id: uuid.UUID) -> KeyView:
        """One key, revoked or not."""
        return await self.hands(request, services).find_key(key_id)

    @put("/keys/{key_id:uuid}/limits")
    async def limit_key(self, request: AdminRequest, services: Services, key_id: uuid.UUID, data: Limits) -> KeyView:
        """Give a key exactly these limits."""
        return await self.hands(request, services).limit_key(key_id, data)

    @post("/keys/{key_id:uuid}/rotate", status_code=200)
    async def rotate_key(
        self, request: AdminRequest, services: Services, key_id: uuid.UUID, data: Rotate
    ) -> Response[KeyView]:
        """A new secret, shown once; the old one works for `grace_s` seconds more."""
        return await self.hands(request, services).rotate_key(key_id, data)

    @post("/keys/{key_id:uuid}/revoke", status_code=200)
    async def revoke_key(self, request: AdminRequest, services: Services, key_id: uuid.UUID) -> KeyView:
        """Revoke a key, everywhere within a second."""
        return await self.hands(request, services).revoke_key(key_id)
