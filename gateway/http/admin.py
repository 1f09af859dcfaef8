"""`/v1/admin`: what a network admin's key may do, to every organisation. Each change leaves a line in the audit log."""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Annotated

from litestar import Controller, Response, get, post, put
from litestar.params import Parameter, QueryParameter

from billing.ledger import Code
from billing.postgres.adjustments import Adjustment, post_adjustment
from billing.postgres.discrepancies import About, Place, list_discrepancies, list_recoveries
from billing.recoveries import DiscrepancyKind
from cocoon.errors import MalformedError
from cocoon.money import Amount
from gateway.auth import Principal
from gateway.errors import InvalidRequestError
from gateway.http.access import require_network_admin
from gateway.http.account import AccountView, BalanceView, StatementView, UsageView
from gateway.http.administration import Administration, page
from gateway.http.owned import AdminRequest, OwnedController
from gateway.http.records import (
    PAGE_DEFAULT,
    PAGE_MAX,
    AuditView,
    CreateKey,
    CreateOrganisation,
    CreateProject,
    DiscrepancyView,
    KeyView,
    Move,
    OrganisationView,
    Page,
    ProjectView,
    RecoveryView,
    TransferView,
    decimal,
    organisation_view,
)
from gateway.http.workers import CONTROL_BYTES_MAX
from gateway.postgres.keys import WHOLE_NETWORK, Reach
from gateway.services import Services

PageSize = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="Items on a page")]
_CODES: Mapping[str, Code] = {"deposit": Code.DEPOSIT, "credit": Code.CREDIT, "reversal": Code.REVERSAL}


def hands(request: AdminRequest, services: Services) -> Administration:
    """The caller's, which reach everything."""
    return Administration(services, request.auth, WHOLE_NETWORK)


class OrganisationsController(Controller):
    """Organisations, what they own, and what they have."""

    path = "/v1/admin/organisations"
    guards = (require_network_admin,)
    request_max_body_size = CONTROL_BYTES_MAX
    tags = ("admin",)

    @post()
    async def create(
        self, request: AdminRequest, services: Services, data: CreateOrganisation
    ) -> Response[OrganisationView]:
        """A new organisation with a project `default` and no credit."""
        made, new = await hands(request, services).organisations.create(data.name, data.id)
        return Response(organisation_view(made), status_code=201 if new else 200)

    @get()
    async def list_organisations(
        self, request: AdminRequest, services: Services, after: uuid.UUID | None = None, limit: PageSize = PAGE_DEFAULT
    ) -> Page[OrganisationView]:
        """Organisations by age."""
        found = await hands(request, services).organisations.list_organisations(after=after, limit=limit + 1)
        return page([organisation_view(one) for one in found], limit, lambda view: str(view.id))

    @get("/{organisation_id:uuid}")
    async def find(self, request: AdminRequest, services: Services, organisation_id: uuid.UUID) -> OrganisationView:
        """One organisation."""
        return organisation_view(await hands(request, services).organisations.find(organisation_id))

    @post("/{organisation_id:uuid}/projects")
    async def create_project(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, data: CreateProject
    ) -> Response[ProjectView]:
        """A new project."""
        return await hands(request, services).create_project(organisation_id, data)

    @get("/{organisation_id:uuid}/projects")
    async def list_projects(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, *, archived: bool = False,
        after: uuid.UUID | None = None, limit: PageSize = PAGE_DEFAULT,
    ) -> Page[ProjectView]:  # fmt: skip
        """Projects by age."""
        administration = hands(request, services)
        return await administration.list_projects(organisation_id, archived=archived, after=after, limit=limit)

    @post("/{organisation_id:uuid}/keys")
    async def create_key(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, data: CreateKey
    ) -> Response[KeyView]:
        """A new key of any role. Its secret is in this answer and nowhere else."""
        administration = hands(request, services)
        await administration.organisations.find(organisation_id)
        return await administration.create_key(organisation_id, data)

    @get("/{organisation_id:uuid}/keys")
    async def list_keys(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, *,
        project_id: uuid.UUID | None = None, revoked: bool = False, after: uuid.UUID | None = None,
        limit: PageSize = PAGE_DEFAULT,
    ) -> Page[KeyView]:  # fmt: skip
        """Keys by age, without their secrets."""
        return await hands(request, services).list_keys(
            organisation_id, project_id=project_id, revoked=revoked, after=after, limit=limit
        )

    @put("/{organisation_id:uuid}/transfers/{transfer_id:uuid}")
    async def transfer(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, transfer_id: uuid.UUID, data: Move
    ) -> Response[TransferView]:
        """Move money once. `transfer_id` is a UUIDv7 of the caller's choice: asking again moves nothing."""
        administration = hands(request, services)
        await administration.organisations.find(organisation_id)
        amount = Amount(data.amount_nano)
        asked = Adjustment(
            transfer_id=transfer_id, customer_id=organisation_id, code=_CODES[data.type], amount=amount,
            reason=data.reason,
        )  # fmt: skip
        try:
            new = await post_adjustment(services.pool, asked, actor=administration.actor)
        except MalformedError as error:
            raise InvalidRequestError("The transfer's id must be a UUIDv7.", param="transfer_id") from error
        view = TransferView(
            id=transfer_id, organisation_id=organisation_id, type=data.type, amount=decimal(amount),
            amount_nano=amount.nano, created=new,
        )  # fmt: skip
        return Response(view, status_code=201 if new else 200)

    @get("/{organisation_id:uuid}/balance")
    async def balance(self, request: AdminRequest, services: Services, organisation_id: uuid.UUID) -> BalanceView:
        """What the organisation has."""
        await hands(request, services).organisations.find(organisation_id)
        return await AccountView(services, organisation_id).balance()

    @get("/{organisation_id:uuid}/usage")
    async def usage(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, start: dt.date | None = None,
        end: dt.date | None = None, shape: Annotated[str | None, QueryParameter(name="format")] = None,
    ) -> Response[UsageView] | Response[bytes]:  # fmt: skip
        """What the organisation used, by UTC day, model, key and project."""
        await hands(request, services).organisations.find(organisation_id)
        return await AccountView(services, organisation_id).usage(request, start, end, shape)

    @get("/{organisation_id:uuid}/statements/{month:str}")
    async def statement(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID, month: str,
        shape: Annotated[str | None, QueryParameter(name="format")] = None,
    ) -> Response[StatementView] | Response[bytes]:  # fmt: skip
        """The organisation's month (YYYY-MM)."""
        await hands(request, services).organisations.find(organisation_id)
        return await AccountView(services, organisation_id).statement(request, month, shape)


class AdminController(OwnedController):
    """Projects and keys by their ids, the audit log, and what receipts brought to light."""

    path = "/v1/admin"
    guards = (require_network_admin,)
    tags = ("admin",)

    @staticmethod
    def reach(caller: Principal) -> Reach:  # noqa: ARG004  whoever it is
        """The whole network."""
        return WHOLE_NETWORK

    @get("/audit")
    async def audit(
        self, request: AdminRequest, services: Services, organisation_id: uuid.UUID | None = None,
        after: Annotated[int | None, Parameter(ge=1)] = None, limit: PageSize = PAGE_DEFAULT,
    ) -> Page[AuditView]:  # fmt: skip
        """Who changed what, newest first."""
        return await self.hands(request, services).list_changes(organisation_id, before=after, limit=limit)

    @get("/discrepancies")
    async def discrepancies(
        self, services: Services, kind: DiscrepancyKind | None = None, worker_id: uuid.UUID | None = None,
        organisation_id: uuid.UUID | None = None, *, against_worker: bool = False, after: str | None = None,
        limit: PageSize = PAGE_DEFAULT,
    ) -> Page[DiscrepancyView]:  # fmt: skip
        """Receipts that say something else than the books, newest day first."""
        about = About(kind=kind, worker_id=worker_id, customer_id=organisation_id, against_worker=against_worker)
        found = await list_discrepancies(services.pool, about, after=_place(after), limit=limit + 1)
        views = [
            DiscrepancyView(
                job_id=row.job_id, attempt=row.attempt, kind=row.kind, worker_id=row.worker_id,
                organisation_id=row.customer_id, against_worker=row.against_worker, booked_attempt=row.booked_attempt,
                booked=row.booked, claimed=row.claimed, created_at=row.created_at,
            )
            for row in found
        ]  # fmt: skip
        return page(views, limit, lambda view: f"{view.job_id}.{view.attempt}.{view.kind.value}")

    @get("/recoveries")
    async def recoveries(
        self, services: Services, worker_id: uuid.UUID | None = None, organisation_id: uuid.UUID | None = None,
        after: uuid.UUID | None = None, limit: PageSize = PAGE_DEFAULT,
    ) -> Page[RecoveryView]:  # fmt: skip
        """Charges that came from receipts, newest day first."""
        about = About(worker_id=worker_id, customer_id=organisation_id)
        try:
            found = await list_recoveries(services.pool, about, after=after, limit=limit + 1)
        except MalformedError as error:
            raise InvalidRequestError("after is not where a page ended.", param="after") from error
        views = [
            RecoveryView(
                job_id=row.job_id, attempt=row.attempt, worker_id=row.worker_id, organisation_id=row.customer_id,
                drawn_nano=row.drawn_nano, lost_nano=row.lost_nano, created_at=row.created_at,
            )
            for row in found
        ]  # fmt: skip
        return page(views, limit, lambda view: str(view.job_id))


def _place(after: str | None) -> Place | None:
    """Where the last page of discrepancies ended: job, attempt and kind."""
    if after is None:
        return None
    job, _, rest = after.partition(".")
    attempt, _, kind = rest.partition(".")
    try:
        place = Place(uuid.UUID(job), int(attempt), DiscrepancyKind(kind))
    except ValueError as error:
        raise InvalidRequestError("after is not where a page ended.", param="after") from error
    if place.job_id.version != 7 or not 0 <= place.attempt <= 255:  # noqa: PLR2004  as the books have them
        raise InvalidRequestError("after is not where a page ended.", param="after")
    return place
