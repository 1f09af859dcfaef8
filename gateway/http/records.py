"""What the account and admin endpoints take and give, as documented in `/schema`.

What comes in is ours and strict: unknown members are refused, every text and number is bounded.
"""

import datetime as dt
import uuid
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from billing.postgres.adjustments import ADJUSTMENT_NANO_MAX
from billing.postgres.discrepancies import Counts
from billing.recoveries import DiscrepancyKind
from cocoon.money import NUMERATOR_PER_NANO, Amount, decimal_units
from gateway.auth import Role
from gateway.postgres.keys import GRACE_S_MAX, Allowance, NewKey, StoredKey
from gateway.postgres.organisations import Organisation, StoredProject
from workers.targets import Requirement

PAGE_DEFAULT = 50
PAGE_MAX = 200
_INT_MAX = 2**31 - 1
_BIGINT_MAX = 2**63 - 1
_PRINTABLE = "^[^\\x00-\\x1f\\x7f]*$(?!\\n)"

Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=_PRINTABLE)]
_Text = Annotated[str, Meta(min_length=1, max_length=256, pattern=_PRINTABLE)]
_Count = Annotated[int, Meta(ge=1, le=_INT_MAX)]
_Large = Annotated[int, Meta(ge=1, le=_BIGINT_MAX)]
Item = TypeVar("Item")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of a key or a project; those left out are none. Spend is nano per UTC day and month."""

    requests_per_min: _Count | None = None
    tokens_per_min: _Large | None = None
    concurrency_max: _Count | None = None
    spend_day_nano_max: _Large | None = None
    spend_month_nano_max: _Large | None = None

    def allowance(self) -> Allowance:
        """The same, for the store."""
        return Allowance(**msgspec.structs.asdict(self))


class CreateOrganisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new organisation; with an `id` of the caller's choice it may be asked for again."""

    name: Name
    id: uuid.UUID | None = None


class CreateProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new project; with an `id` of the caller's choice it may be asked for again."""

    name: Name
    id: uuid.UUID | None = None
    limits: Limits = Limits()


class CreateOwnKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new key of the caller's organisation: it can buy answers and nothing else."""

    name: Name
    project_id: uuid.UUID | None = None
    limits: Limits = Limits()
    allowed_models: Annotated[tuple[_Text, ...], Meta(max_length=64)] = ()
    required_evidence: Requirement = "any"
    cors_origins: Annotated[tuple[_Text, ...], Meta(max_length=32)] = ()
    expires_at: Annotated[dt.datetime, Meta(tz=True)] | None = None


class CreateKey(CreateOwnKey, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new key of any kind; only a network admin gives roles and rights."""

    role: Role = Role.CUSTOMER
    organisation_admin: bool = False


class Rotate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rotation. With the same `rotation_id` it may be asked for again when the answer was lost."""

    grace_s: Annotated[int, Meta(ge=0, le=GRACE_S_MAX)] = 0
    rotation_id: uuid.UUID | None = None


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A deposit, a credit that the network gives, or the reversal of a deposit."""

    type: Literal["deposit", "credit", "reversal"]
    amount_nano: Annotated[int, Meta(ge=1, le=ADJUSTMENT_NANO_MAX)]
    reason: _Text


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """Part of a list; `next` is the `after` of the next part, if there is one."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    next: str | None


class OrganisationView(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays."""

    object: Literal["organisation"] = "organisation"
    id: uuid.UUID
    name: str
    created_at: dt.datetime


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """A project and what all of its keys together may use."""

    object: Literal["project"] = "project"
    id: uuid.UUID
    organisation_id: uuid.UUID
    name: str
    limits: Allowance
    archived_at: dt.datetime | None
    created_at: dt.datetime


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it can be seen afterwards. `previous_expires_at` ends the time of the secret before the last rotation.

    `secret` is given once, by the answer that made it.
    """

    object: Literal["key"] = "key"
    id: uuid.UUID
    organisation_id: uuid.UUID
    project_id: uuid.UUID
    project: str
    name: str
    prefix: str
    role: Role
    organisation_admin: bool
    limits: Allowance
    allowed_models: tuple[str, ...]
    required_evidence: Requirement
    cors_origins: tuple[str, ...]
    expires_at: dt.datetime | None
    previous_expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    created_at: dt.datetime
    secret: str | msgspec.UnsetType = msgspec.UNSET


class TransferView(msgspec.Struct, frozen=True, kw_only=True):
    """A movement; `created` is false when it was posted before."""

    object: Literal["transfer"] = "transfer"
    id: uuid.UUID
    organisation_id: uuid.UUID
    type: str
    amount: str
    amount_nano: int
    created: bool


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what, and when."""

    object: Literal["audit"] = "audit"
    id: int
    created_at: dt.datetime
    actor: str
    action: str
    organisation_id: uuid.UUID | None
    subject_id: uuid.UUID
    detail: dict[str, str | int | bool | list[str] | None]


class DiscrepancyView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's receipt against the books; `booked` is null where they say nothing."""

    object: Literal["discrepancy"] = "discrepancy"
    job_id: uuid.UUID
    attempt: int
    kind: DiscrepancyKind
    worker_id: uuid.UUID
    organisation_id: uuid.UUID
    against_worker: bool
    booked_attempt: int | None
    booked: Counts | None
    claimed: Counts
    created_at: dt.datetime


class RecoveryView(msgspec.Struct, frozen=True, kw_only=True):
    """A charge that came from a receipt: what the organisation covered and what the operator lost."""

    object: Literal["recovery"] = "recovery"
    job_id: uuid.UUID
    attempt: int
    worker_id: uuid.UUID
    organisation_id: uuid.UUID
    drawn_nano: int
    lost_nano: int
    created_at: dt.datetime


def organisation_view(organisation: Organisation) -> OrganisationView:
    """An organisation as shown."""
    return OrganisationView(id=organisation.id, name=organisation.name, created_at=organisation.created_at)


def project_view(project: StoredProject) -> ProjectView:
    """A project as shown."""
    return ProjectView(
        id=project.id, organisation_id=project.customer_id, name=project.name, limits=project.limits,
        archived_at=project.archived_at, created_at=project.created_at,
    )  # fmt: skip


def key_view(key: StoredKey, made: NewKey | None = None) -> KeyView:
    """A key as shown, with its secret when it was `made` just now."""
    return KeyView(
        id=key.key_id, organisation_id=key.customer_id, project_id=key.project_id, project=key.project, name=key.name,
        prefix=key.prefix, role=key.role, organisation_admin=key.organisation_admin,
        limits=Allowance(**{name: getattr(key, name) for name in Allowance.__struct_fields__}),
        allowed_models=key.allowed_models, required_evidence=key.required_evidence,
        cors_origins=key.cors_origins, expires_at=key.expires_at,
        previous_expires_at=key.previous_expires_at, revoked_at=key.revoked_at, created_at=key.created_at,
        secret=msgspec.UNSET if made is None else made.secret,
    )  # fmt: skip


def decimal(amount: Amount) -> str:
    """An amount as an exact decimal of whole units."""
    return decimal_units(amount.nano * NUMERATOR_PER_NANO)
