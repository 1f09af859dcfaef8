"""Organisations, projects, rotation and adjustments in a real database, with what they leave in the audit log."""

import asyncio
import datetime as dt
import uuid

import pytest

from billing.ledger import Code
from billing.ports import InsufficientCreditError, LedgerUnavailableError, TransferConflictError, UnknownCustomerError
from billing.postgres.adjustments import Adjustment, TransferTimeError, post_adjustment
from billing.postgres.audit import list_changes
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from cocoon.clock import ManualClock, SystemClock, system_random
from cocoon.errors import MalformedError
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway.auth import Role
from gateway.postgres.keys import (
    Allowance,
    KeySpec,
    KeyStore,
    KeyUnknownError,
    ProjectUnknownError,
    load_keys,
    own_organisation,
)
from gateway.postgres.organisations import (
    Organisations,
    OrganisationTakenError,
    OrganisationUnknownError,
    ProjectNeededError,
    ProjectTakenError,
)
from tests.ledger_values import hold_request, job_id

ACTOR = "key:admin"
LIMITS = Allowance(requests_per_min=5, spend_day_nano_max=10**9)


@pytest.fixture
def organisations(pool: Pool) -> Organisations:
    return Organisations(pool, system_random(), actor=ACTOR)


@pytest.fixture
def keys(pool: Pool) -> KeyStore:
    return KeyStore(pool, system_random(), actor=ACTOR)


@pytest.fixture
async def ada(organisations: Organisations) -> uuid.UUID:
    return (await organisations.create("Ada"))[0].id


def adjustment(customer: uuid.UUID, code: Code = Code.DEPOSIT, nano: int = 100, **changes: object) -> Adjustment:
    values: dict[str, object] = {"transfer_id": job_id(), "customer_id": customer, "code": code}
    return Adjustment(**{**values, "amount": Amount(nano), "reason": "invoice 7", **changes})  # pyright: ignore[reportArgumentType]


async def test_an_organisation_is_made_once_for_its_id_and_another_of_its_name_is_refused(
    organisations: Organisations, pool: Pool
) -> None:
    chosen = uuid.uuid4()
    made = await asyncio.gather(*(organisations.create("Ada", chosen) for _ in range(3)))
    assert sorted(new for _, new in made) == [False, False, True]
    assert {organisation.id for organisation, _ in made} == {chosen}
    for name, other in (("Ada", None), ("Ada", uuid.uuid4()), ("Bob", chosen)):
        with pytest.raises(OrganisationTakenError):
            await organisations.create(name, other)
    assert [project.name for project in await organisations.list_projects(chosen, limit=9)] == ["default"]
    assert [(row.actor, row.action, row.subject_id, row.detail) for row in await list_changes(
        pool, chosen, before=None, limit=9
    )] == [(ACTOR, "organisation.create", chosen, {"name": "Ada"})]  # fmt: skip


async def test_a_projects_name_is_its_organisations_and_its_limits_are_replaced_as_a_whole(
    organisations: Organisations, ada: uuid.UUID
) -> None:
    bob = (await organisations.create("Bob"))[0].id
    project, new = await organisations.create_project(ada, "chat", LIMITS)
    assert new
    assert (project.limits, project.archived_at) == (LIMITS, None)
    assert await organisations.create_project(ada, "chat", LIMITS, project.id) == (project, False)
    assert (await organisations.create_project(bob, "chat", LIMITS))[1]
    with pytest.raises(ProjectTakenError):
        await organisations.create_project(ada, "chat", LIMITS)
    with pytest.raises(ProjectTakenError):
        await organisations.create_project(bob, "stolen", LIMITS, project.id)
    with pytest.raises(OrganisationUnknownError):
        await organisations.create_project(uuid.uuid4(), "x", LIMITS)
    changed = await organisations.limit_project(project.id, Allowance(tokens_per_min=7))
    assert changed.limits == Allowance(tokens_per_min=7)
    with pytest.raises(ProjectUnknownError):
        await organisations.limit_project(project.id, LIMITS, own_organisation(bob))


async def test_an_archived_project_takes_its_keys_with_it_and_no_new_ones(
    organisations: Organisations, keys: KeyStore, ada: uuid.UUID, connection: Connection
) -> None:
    project, _ = await organisations.create_project(ada, "chat", Allowance())
    inside = await keys.create(KeySpec(customer_id=ada, name="in", project_id=project.id))
    outside = await keys.create(KeySpec(customer_id=ada, name="out"))
    archived = await organisations.archive_project(project.id)
    assert archived.archived_at is not None
    assert await organisations.archive_project(project.id) == archived
    assert [record.principal.key_id for record in await load_keys(connection)] == [outside.key_id]
    assert (await keys.find(inside.key_id)).revoked_at is not None
    with pytest.raises(ProjectUnknownError):
        await keys.create(KeySpec(customer_id=ada, name="late", project_id=project.id))
    with pytest.raises(ProjectUnknownError):
        await organisations.limit_project(project.id, LIMITS)
    default = await organisations.find_project_by_name(ada, "default")
    with pytest.raises(ProjectNeededError):
        await organisations.archive_project(default.id)


async def test_no_key_slips_into_a_project_that_is_being_archived(
    organisations: Organisations, keys: KeyStore, ada: uuid.UUID, connection: Connection
) -> None:
    for number in range(5):
        project, _ = await organisations.create_project(ada, f"p{number}", Allowance())
        specs = [KeySpec(customer_id=ada, name=f"{number}-{n}", project_id=project.id) for n in range(3)]
        await asyncio.gather(
            *(keys.create(spec) for spec in specs), organisations.archive_project(project.id), return_exceptions=True
        )
        assert await connection.fetch(
            "SELECT id FROM api_keys WHERE project_id = $1 AND revoked_at IS NULL", project.id
        ) == []  # fmt: skip


async def test_an_organisation_cannot_archive_keys_that_are_not_its_to_revoke(
    organisations: Organisations, keys: KeyStore, ada: uuid.UUID
) -> None:
    project, _ = await organisations.create_project(ada, "shared", Allowance())
    admin = await keys.create(KeySpec(customer_id=ada, name="root", project_id=project.id, role=Role.ADMIN))
    with pytest.raises(ProjectNeededError):
        await organisations.archive_project(project.id, own_organisation(ada))
    assert (await keys.find(admin.key_id)).revoked_at is None
    assert (await organisations.list_projects(ada, limit=9))[1].archived_at is None


async def test_keys_out_of_reach_are_unknown(organisations: Organisations, keys: KeyStore, ada: uuid.UUID) -> None:
    bob = (await organisations.create("Bob"))[0].id
    out_of_reach = [
        await keys.create(KeySpec(customer_id=bob, name="his")),
        await keys.create(KeySpec(customer_id=ada, name="root", role=Role.ADMIN)),
        await keys.create(KeySpec(customer_id=ada, name="gpu", role=Role.WORKER)),
    ]
    reach = own_organisation(ada)
    for key in out_of_reach:
        with pytest.raises(KeyUnknownError):
            await keys.find(key.key_id, reach)
        with pytest.raises(KeyUnknownError):
            await keys.rotate(key.key_id, rotation_id=uuid.uuid4(), reach=reach)
        with pytest.raises(KeyUnknownError):
            await keys.set_limits(key.key_id, LIMITS, reach)
        with pytest.raises(KeyUnknownError):
            await keys.revoke(str(key.key_id), reach)
        with pytest.raises(KeyUnknownError):
            await keys.revoke(key.secret[:16], reach)
    assert await keys.list_keys(reach) == []
    assert all(key.previous_expires_at is None and key.revoked_at is None for key in await keys.list_keys())


async def test_a_rotation_asked_for_again_keeps_the_old_secrets_time(
    keys: KeyStore, ada: uuid.UUID, connection: Connection, pool: Pool
) -> None:
    created = await keys.create(KeySpec(customer_id=ada, name="app"))
    rotation = uuid.uuid4()
    await keys.rotate(created.key_id, rotation_id=rotation, grace_s=600)
    [first] = await load_keys(connection)
    again = await keys.rotate(created.key_id, rotation_id=rotation, grace_s=60)
    [second] = await load_keys(connection)
    assert again.key_id == created.key_id
    assert second.sha256 != first.sha256
    assert (second.previous_sha256, second.previous_expires_at) == (first.previous_sha256, first.previous_expires_at)
    await keys.rotate(created.key_id, rotation_id=uuid.uuid4())
    [third] = await load_keys(connection)
    assert third.previous_sha256 is None
    assert third.sha256 not in {first.sha256, second.sha256}
    changes = await list_changes(pool, ada, before=None, limit=9)
    assert [row.action for row in changes] == ["key.rotate"] * 3 + ["key.create", "organisation.create"]
    assert all(secret[16:] not in repr(changes) for secret in (created.secret, again.secret))


async def test_limits_of_a_key_are_replaced_as_a_whole(keys: KeyStore, ada: uuid.UUID, connection: Connection) -> None:
    created = await keys.create(KeySpec(customer_id=ada, name="app", concurrency_max=3, spend_day_nano_max=4))
    [before] = await load_keys(connection)
    assert (before.principal.concurrency_max, before.principal.spend_day_nano_max) == (3, 4)
    await keys.set_limits(created.key_id, Allowance(spend_month_nano_max=9))
    [after] = await load_keys(connection)
    assert after.principal.concurrency_max is None
    assert (after.principal.spend_day_nano_max, after.principal.spend_month_nano_max) == (None, 9)


async def test_an_adjustment_moves_once_whoever_asks_how_often(
    pool: Pool, ledger: PostgresLedger, ada: uuid.UUID
) -> None:
    asked = adjustment(ada)
    answers = await asyncio.gather(*(post_adjustment(pool, asked, actor=ACTOR) for _ in range(5)))
    assert sorted(answers) == [False] * 4 + [True]
    assert await post_adjustment(pool, adjustment(ada, Code.CREDIT, 30), actor=ACTOR)
    assert await post_adjustment(pool, adjustment(ada, Code.REVERSAL, 20), actor=ACTOR)
    assert (await ledger.balance(ada)).available == Amount(110)
    changes = await list_changes(pool, ada, before=None, limit=3)
    assert [(row.action, row.detail) for row in changes] == [
        ("ledger.reversal", {"amount_nano": 20, "reason": "invoice 7"}),
        ("ledger.credit", {"amount_nano": 30, "reason": "invoice 7"}),
        ("ledger.deposit", {"amount_nano": 100, "reason": "invoice 7"}),
    ]


async def test_the_same_transfer_id_with_another_body_is_a_conflict(
    pool: Pool, ledger: PostgresLedger, ada: uuid.UUID, organisations: Organisations
) -> None:
    bob = (await organisations.create("Bob"))[0].id
    asked = adjustment(ada)
    await post_adjustment(pool, asked, actor=ACTOR)
    for other in (
        adjustment(ada, nano=101, transfer_id=asked.transfer_id),
        adjustment(ada, Code.CREDIT, transfer_id=asked.transfer_id),
        adjustment(bob, transfer_id=asked.transfer_id),
    ):
        with pytest.raises(TransferConflictError):
            await post_adjustment(pool, other, actor=ACTOR)
    assert (await ledger.balance(ada)).available == Amount(100)
    assert (await ledger.balance(bob)).available == Amount(0)


async def test_a_reversal_takes_only_what_can_be_spent(pool: Pool, ledger: PostgresLedger, ada: uuid.UUID) -> None:
    await post_adjustment(pool, adjustment(ada), actor=ACTOR)
    await ledger.hold(hold_request(ada, 60))
    with pytest.raises(InsufficientCreditError):
        await post_adjustment(pool, adjustment(ada, Code.REVERSAL, 41), actor=ACTOR)
    assert await post_adjustment(pool, adjustment(ada, Code.REVERSAL, 40), actor=ACTOR)
    assert (await ledger.balance(ada)).available == Amount(0)


@pytest.mark.parametrize("hours", [-25, 25])
async def test_no_new_transfer_can_be_dated_into_another_months_statement(
    pool: Pool, ledger: PostgresLedger, ada: uuid.UUID, hours: int
) -> None:
    moment = ManualClock(SystemClock().now() + dt.timedelta(hours=hours))
    with pytest.raises(TransferTimeError):
        await post_adjustment(
            pool, adjustment(ada, transfer_id=new_job_id(moment, system_random())), actor=ACTOR
        )  # fmt: skip
    with pytest.raises(MalformedError):
        await post_adjustment(pool, adjustment(ada, transfer_id=uuid.uuid4()), actor=ACTOR)
    with pytest.raises(UnknownCustomerError):
        await post_adjustment(pool, adjustment(uuid.uuid4()), actor=ACTOR)
    assert (await ledger.balance(ada)).available == Amount(0)


async def test_a_change_that_cannot_be_recorded_does_not_happen(
    keys: KeyStore, ada: uuid.UUID, pool: Pool, ledger: PostgresLedger, connection: Connection
) -> None:
    created = await keys.create(KeySpec(customer_id=ada, name="app"))
    await connection.execute("ALTER TABLE audit_log RENAME TO gone")
    for change in (
        keys.revoke(str(created.key_id)),
        keys.rotate(created.key_id, rotation_id=uuid.uuid4()),
        keys.set_limits(created.key_id, LIMITS),
        keys.create(KeySpec(customer_id=ada, name="other")),
        post_adjustment(pool, adjustment(ada), actor=ACTOR),
    ):
        with pytest.raises(LedgerUnavailableError):
            await change
    await connection.execute("ALTER TABLE gone RENAME TO audit_log")
    [key] = await keys.list_keys(revoked=True)
    assert (key.prefix, key.revoked_at, key.requests_per_min) == (created.secret[:16], None, None)
    assert (await ledger.balance(ada)).available == Amount(0)
