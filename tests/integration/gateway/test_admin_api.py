"""Organisations, projects and keys over HTTP: what admins can do, and what everybody else is refused."""

import random
import uuid
from typing import Any

import httpx
import pytest

from billing.postgres.pool import open_pool
from cocoon.ids import ADMIN_KEY_PREFIX, API_KEY_PREFIX, new_secret_key
from gateway.auth import Role
from gateway.postgres.keys import KeySpec, KeyStore
from tests.fixtures_gateway import Stack, chat
from tests.ledger_values import job_id

ORGANISATIONS = "/v1/admin/organisations"
NO_LIMITS = {
    "requests_per_min": None,
    "tokens_per_min": None,
    "concurrency_max": None,
    "spend_day_nano_max": None,
    "spend_month_nano_max": None,
}


async def planted(stack: Stack, name: str, role: Role, **rights: Any) -> str:
    """A key of the stack's own organisation, put straight into the database."""
    prefix = ADMIN_KEY_PREFIX if role is Role.ADMIN else API_KEY_PREFIX
    secret = new_secret_key(prefix, random.SystemRandom())
    async with open_pool(stack.database_url, application="test") as pool:
        spec = KeySpec(customer_id=stack.customer_id, name=name, role=role, **rights)
        await KeyStore(pool, random.SystemRandom()).seed(secret, spec)
    await stack.until_known(secret)
    return secret


@pytest.fixture
async def admin(gateway: Stack) -> str:
    """A network admin's key. It belongs to the very organisation whose admin is the attacker below."""
    return await planted(gateway, "root", Role.ADMIN)


@pytest.fixture
async def org_admin(gateway: Stack) -> str:
    return await planted(gateway, "boss", Role.CUSTOMER, organisation_admin=True)


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def made(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_an_admin_makes_an_organisation_its_projects_and_keys(gateway: Stack, admin: str) -> None:
    async with gateway.client(admin) as client:
        chosen = str(uuid.uuid4())
        organisation = await made(client, ORGANISATIONS, name="Ada", id=chosen)
        assert organisation["id"] == chosen
        again = await client.post(ORGANISATIONS, json={"name": "Ada", "id": chosen})
        assert (again.status_code, again.json()) == (200, organisation)
        assert_refused(await client.post(ORGANISATIONS, json={"name": "Ada"}), 409, "organisation_taken")
        base = f"{ORGANISATIONS}/{chosen}"
        project = await made(client, f"{base}/projects", name="chat", limits={"requests_per_min": 3})
        assert project["limits"] == {**NO_LIMITS, "requests_per_min": 3}
        key = await made(
            client, f"{base}/keys", name="app", project_id=project["id"], limits={"spend_day_nano_max": 7},
            expires_at="2999-01-01T00:00:00Z",
        )  # fmt: skip
        assert (key["project"], key["role"], key["organisation_admin"]) == ("chat", "customer", False)
        assert key["limits"] == {**NO_LIMITS, "spend_day_nano_max": 7}
        [listed] = (await client.get(f"{base}/keys")).json()["data"]
        assert listed == {name: value for name, value in key.items() if name != "secret"}
        assert [p["name"] for p in (await client.get(f"{base}/projects")).json()["data"]] == ["default", "chat"]
        for moment in ("2020-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00", "2998-01-01T00:00:00", "soon"):
            answer = await client.post(f"{base}/keys", json={"name": "timed", "expires_at": moment})
            assert answer.status_code == 400, answer.text
        await gateway.until_known(key["secret"])
        async with gateway.client(key["secret"]) as app:
            assert (await app.get("/v1/account/balance")).json()["available_nano"] == 0


async def test_lists_come_in_pages_and_pages_are_bounded(gateway: Stack, admin: str) -> None:
    async with gateway.client(admin) as client:
        path = f"{ORGANISATIONS}/{gateway.customer_id}/projects"
        for number in range(5):
            await made(client, path, name=f"p{number}")
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            part = (await client.get(path, params={"limit": 2, **after})).json()
            assert len(part["data"]) <= 2
            seen += [project["name"] for project in part["data"]]
            if not part["has_more"]:
                break
            after = {"after": part["next"]}
        assert seen == ["default", "p0", "p1", "p2", "p3", "p4"]
        for limit in ("0", "201", "x"):
            assert (await client.get(path, params={"limit": limit})).status_code == 400


async def test_a_revoked_key_stops_working_in_every_process(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    admin = await planted(stack, "root", Role.ADMIN)
    async with stack.client(admin) as client:
        key = await made(client, f"{ORGANISATIONS}/{stack.customer_id}/keys", name="app")
        await stack.until_known(key["secret"])
        revoked = (await client.post(f"/v1/admin/keys/{key['id']}/revoke")).json()
        assert revoked["revoked_at"] is not None
        assert (await client.post(f"/v1/admin/keys/{key['id']}/revoke")).json() == revoked
    # The table of keys promises a second; a machine under load gets ten.
    async with stack.client(key["secret"]) as app:
        streak = 0

        async def refused() -> bool:
            nonlocal streak
            # A new connection each time meets either process.
            answer = await app.get("/v1/models", headers={"connection": "close"})
            streak = streak + 1 if answer.status_code == 401 else 0
            return streak >= 16

        await stack.until_true(refused, bool, deadline_s=60)


async def test_a_rotated_keys_old_secret_works_for_its_grace_period_only(gateway: Stack, admin: str) -> None:
    async with gateway.client(admin) as client:
        keys = f"{ORGANISATIONS}/{gateway.customer_id}/keys"
        key = await made(client, keys, name="app")
        await gateway.until_known(key["secret"])
        rotated = await client.post(f"/v1/admin/keys/{key['id']}/rotate", json={"grace_s": 600})
        assert rotated.headers["cache-control"] == "no-store"
        fresh = rotated.json()
        assert fresh["id"] == key["id"]
        assert fresh["secret"] != key["secret"]
        await gateway.until_known(fresh["secret"])
        async with gateway.client(key["secret"]) as old:
            assert (await old.get("/v1/models")).status_code == 200
            await gateway.rows(
                "UPDATE api_keys SET previous_expires_at = now() - interval '1 s' WHERE id = $1", uuid.UUID(key["id"])
            )
            await gateway.until_true(lambda: old.get("/v1/models"), lambda answer: answer.status_code == 401)
        async with gateway.client(fresh["secret"]) as new:
            assert (await new.get("/v1/models")).status_code == 200
            last = (await client.post(f"/v1/admin/keys/{key['id']}/rotate", json={})).json()
            await gateway.until_true(lambda: new.get("/v1/models"), lambda answer: answer.status_code == 401)
        async with gateway.client(last["secret"]) as newest:
            assert (await newest.get("/v1/models")).status_code == 200
        for grace in (-1, 7 * 24 * 3600 + 1, "x", 1.5):
            answer = await client.post(f"/v1/admin/keys/{key['id']}/rotate", json={"grace_s": grace})
            assert answer.status_code == 400


async def test_limits_are_replaced_and_reach_running_gateways(gateway: Stack, admin: str) -> None:
    async with gateway.client(admin) as client:
        key = await made(client, f"{ORGANISATIONS}/{gateway.customer_id}/keys", name="app")
        await gateway.until_known(key["secret"])
        put = await client.put(f"/v1/admin/keys/{key['id']}/limits", json={"requests_per_min": 1})
        assert put.json()["limits"] == {**NO_LIMITS, "requests_per_min": 1}
        async with gateway.client(key["secret"]) as app:
            await gateway.until_true(
                lambda: app.post("/v1/chat/completions", json=chat()), lambda answer: answer.status_code == 429
            )
        for bad in ({"requests_per_min": 0}, {"requests_per_min": 2**31}, {"rpm": 1}, {"tokens_per_min": "x"}, []):
            answer = await client.put(f"/v1/admin/keys/{key['id']}/limits", json=bad)
            assert answer.status_code == 400, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_money_is_moved_once_and_only_by_admins(gateway: Stack, admin: str, org_admin: str) -> None:
    transfer = job_id()
    path = f"{ORGANISATIONS}/{gateway.customer_id}/transfers/{transfer}"
    body = {"type": "credit", "amount_nano": 5, "reason": "an outage"}
    async with gateway.client(org_admin) as attacker:
        assert_refused(await attacker.put(path, json=body), 403, "role_forbidden")
    async with gateway.client(admin) as client:
        first, second = [await client.put(path, json=body) for _ in range(2)]
        assert [(a.status_code, a.json()["created"]) for a in (first, second)] == [(201, True), (200, False)]
        assert first.json()["amount"] == "0.000000005"
        assert_refused(await client.put(path, json={**body, "amount_nano": 6}), 409, "transfer_conflict")
        elsewhere = f"{ORGANISATIONS}/{gateway.customer_id}/transfers/{uuid.uuid4()}"
        assert_refused(await client.put(elsewhere, json=body), 400, "invalid_request")
        unknown = f"{ORGANISATIONS}/{uuid.uuid4()}/transfers/{job_id()}"
        assert_refused(await client.put(unknown, json=body), 404, "organisation_unknown")
        take = {"type": "reversal", "amount_nano": 10**15, "reason": "typing error"}
        answer = await client.put(f"{ORGANISATIONS}/{gateway.customer_id}/transfers/{job_id()}", json=take)
        assert_refused(answer, 402, "insufficient_quota")
        for change in ({"amount_nano": 0}, {"amount_nano": 1.5}, {"type": "charge"}, {"reason": ""}, {"more": 1}):
            assert (await client.put(path, json={**body, **change})).status_code == 400
        [line] = (await client.get("/v1/admin/audit", params={"limit": 1})).json()["data"]
        [key] = await gateway.rows("SELECT id FROM api_keys WHERE name = 'root'")
        assert (line["actor"], line["action"]) == (f"key:{key['id']}", "ledger.credit")
        assert line["detail"] == {"amount_nano": 5, "reason": "an outage"}
    await gateway.check_books()


async def test_an_organisation_admin_manages_its_own_keys(gateway: Stack, org_admin: str) -> None:
    async with gateway.client(org_admin) as client:
        assert (await client.get("/v1/account/organisation")).json()["id"] == str(gateway.customer_id)
        project = await made(client, "/v1/account/projects", name="mine")
        key = await made(client, "/v1/account/keys", name="app", project_id=project["id"])
        limits = await client.put(f"/v1/account/projects/{project['id']}/limits", json={"tokens_per_min": 9})
        assert limits.json()["limits"]["tokens_per_min"] == 9
        assert (await client.put(f"/v1/account/keys/{key['id']}/limits", json={})).json()["limits"] == NO_LIMITS
        rotated = (await client.post(f"/v1/account/keys/{key['id']}/rotate", json={})).json()
        assert rotated["secret"] not in (key["secret"], None)
        archived = await client.post(f"/v1/account/projects/{project['id']}/archive")
        assert archived.json()["archived_at"] is not None
        assert (await client.get(f"/v1/account/keys/{key['id']}")).json()["revoked_at"] is not None
        actions = [line["action"] for line in (await client.get("/v1/account/audit")).json()["data"]]
        assert actions[:6] == [
            "project.archive", "key.rotate", "key.limit", "project.limit", "key.create", "project.create",
        ]  # fmt: skip


async def test_an_organisation_admin_cannot_touch_another_organisation(
    gateway: Stack, admin: str, org_admin: str
) -> None:
    async with gateway.client(admin) as client:
        other = (await made(client, ORGANISATIONS, name="victim"))["id"]
        project = await made(client, f"{ORGANISATIONS}/{other}/projects", name="secret")
        key = await made(client, f"{ORGANISATIONS}/{other}/keys", name="app", project_id=project["id"])
    async with gateway.client(org_admin) as attacker:
        keys, projects = f"/v1/account/keys/{key['id']}", f"/v1/account/projects/{project['id']}"
        assert_refused(await attacker.get(keys), 404, "key_unknown")
        assert_refused(await attacker.post(f"{keys}/rotate", json={}), 404, "key_unknown")
        assert_refused(await attacker.post(f"{keys}/revoke"), 404, "key_unknown")
        assert_refused(await attacker.put(f"{keys}/limits", json={}), 404, "key_unknown")
        assert_refused(await attacker.put(f"{projects}/limits", json={}), 404, "project_unknown")
        assert_refused(await attacker.post(f"{projects}/archive"), 404, "project_unknown")
        intruder = {"name": "intruder", "project_id": project["id"]}
        assert_refused(await attacker.post("/v1/account/keys", json=intruder), 404, "project_unknown")
        squatter = {"name": "secret", "id": project["id"]}
        assert_refused(await attacker.post("/v1/account/projects", json=squatter), 409, "project_taken")
        assert all(row["organisation_id"] == str(gateway.customer_id) for row in (
            await attacker.get("/v1/account/audit", params={"limit": 200})
        ).json()["data"])  # fmt: skip
        # Whatever names another organisation in the request is not looked at, or refused.
        named = {"name": "x", "customer_id": other}
        assert (await attacker.post("/v1/account/keys", json=named)).status_code == 400
        listed = (await attacker.get("/v1/account/keys", params={"organisation_id": other})).json()["data"]
        assert key["id"] not in [row["id"] for row in listed]
    async with gateway.client(key["secret"]) as app:
        assert (await app.get("/v1/models")).status_code == 200


async def test_an_organisation_admin_cannot_become_a_network_admin(gateway: Stack, admin: str, org_admin: str) -> None:
    [root] = await gateway.rows("SELECT id FROM api_keys WHERE name = 'root'")
    async with gateway.client(org_admin) as attacker:
        for rights in ({"role": "admin"}, {"role": "worker"}, {"organisation_admin": True}):
            answer = await attacker.post("/v1/account/keys", json={"name": "x", **rights})
            assert answer.status_code == 400, answer.text
        # The network admin's key belongs to the attacker's organisation, and is still none of its business.
        for call in (
            attacker.get(f"/v1/account/keys/{root['id']}"),
            attacker.post(f"/v1/account/keys/{root['id']}/rotate", json={}),
            attacker.post(f"/v1/account/keys/{root['id']}/revoke"),
        ):
            assert_refused(await call, 404, "key_unknown")
        assert str(root["id"]) not in (await attacker.get("/v1/account/keys")).text
        [project] = (await attacker.get("/v1/account/projects")).json()["data"]
        assert_refused(await attacker.post(f"/v1/account/projects/{project['id']}/archive"), 409, "project_needed")
        for path in (ORGANISATIONS, "/v1/admin/audit", "/v1/admin/discrepancies", "/v1/admin/recoveries"):
            assert_refused(await attacker.get(path), 403, "role_forbidden")
        for path, body in (
            (ORGANISATIONS, {"name": "x"}),
            (f"{ORGANISATIONS}/{gateway.customer_id}/keys", {"name": "x", "role": "admin"}),
            (f"/v1/admin/keys/{root['id']}/rotate", {}),
        ):
            assert_refused(await attacker.post(path, json=body), 403, "role_forbidden")
    async with gateway.client(admin) as client:
        assert (await client.get("/v1/admin/audit")).status_code == 200
    assert await gateway.rows("SELECT 1 FROM api_keys WHERE role = 'admin' AND name <> 'root'") == []


async def test_ordinary_and_worker_keys_manage_nothing(gateway: Stack, admin: str) -> None:
    managing = [
        ("GET", "/v1/account/organisation"), ("GET", "/v1/account/keys"), ("GET", "/v1/account/projects"),
        ("GET", "/v1/account/audit"), ("POST", "/v1/account/keys"), ("POST", "/v1/account/projects"),
        ("POST", f"/v1/account/keys/{gateway.key_id}/rotate"), ("POST", f"/v1/account/keys/{gateway.key_id}/revoke"),
        ("PUT", f"/v1/account/keys/{gateway.key_id}/limits"), ("GET", ORGANISATIONS), ("POST", ORGANISATIONS),
        ("GET", f"{ORGANISATIONS}/{gateway.customer_id}/balance"),
    ]  # fmt: skip
    reading = [("GET", f"/v1/account/{what}") for what in ("balance", "usage", "statements/2026-11")]
    for key, paths in ((gateway.api_key, managing), (gateway.worker_key, managing + reading)):
        async with gateway.client(key) as client:
            for method, path in paths:
                # Refused before the body is looked at: what is in it does not matter.
                assert_refused(await client.request(method, path, content=b"{"), 403, "role_forbidden")
    async with gateway.client() as client:
        for method, path in managing + reading:
            answer = await client.request(method, path, headers={"authorization": "Bearer ak-cocoon-" + "x" * 43})
            assert_refused(answer, 401, "invalid_api_key")
    async with gateway.client(admin) as client:
        # A network admin is no organisation's admin: it has endpoints of its own.
        assert_refused(await client.get("/v1/account/keys"), 403, "role_forbidden")
    assert await gateway.rows("SELECT 1 FROM audit_log WHERE actor LIKE 'key:%'") == []


@pytest.mark.parametrize(
    "name",
    ["", "x" * 129, "a\x00b", "a\nb", "a\n", 7, None],
    ids=["empty", "long", "nul", "lf", "end", "number", "null"],
)
async def test_bad_names_are_refused_with_a_reason(gateway: Stack, admin: str, name: object) -> None:
    async with gateway.client(admin) as client:
        answer = await client.post(ORGANISATIONS, json={"name": name})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert "name" in error["message"], error


async def test_bodies_are_bounded_and_must_be_unicode(gateway: Stack, admin: str) -> None:
    async with gateway.client(admin) as client:
        assert (await client.post(ORGANISATIONS, content=b'{"name": "\\ud800"}')).status_code == 400
        # Last: the connection is closed with it.
        big = await client.post(ORGANISATIONS, content=b'{"name": "' + b"x" * 66_000 + b'"}')
        assert big.status_code == 413


async def test_what_receipts_brought_to_light_is_listed_in_pages(gateway: Stack, admin: str) -> None:
    jobs = [job_id() for _ in range(3)]
    for job in jobs:
        await gateway.rows(
            "INSERT INTO discrepancies (day, job_id, attempt, kind, worker_id, customer_id, against_worker, "
            "claimed_prompt_tokens, claimed_cached_tokens, claimed_completion_tokens, claimed_nano, receipt_head, "
            "receipt_signature) VALUES (current_date, $1, 0, 'over_claim', $2, $3, TRUE, 1, 0, 2, 3, '', '')",
            job, uuid.UUID(int=1), gateway.customer_id,
        )  # fmt: skip
        await gateway.rows(
            "INSERT INTO recoveries (day, job_id, attempt, hold_id, worker_id, customer_id, drawn_nano, lost_nano, "
            "drawn_id, lost_id, ticket, receipt_body) VALUES (current_date, $1, 0, $1, $2, $3, 0, 4, NULL, $1, $4, '')",
            job, uuid.UUID(int=1), gateway.customer_id, bytes(125),
        )  # fmt: skip
    newest = [str(job) for job in sorted(jobs, reverse=True)]
    async with gateway.client(admin) as client:
        for path in ("/v1/admin/discrepancies", "/v1/admin/recoveries"):
            first = (await client.get(path, params={"limit": 2})).json()
            rest = (await client.get(path, params={"limit": 2, "after": first["next"]})).json()
            assert [row["job_id"] for row in first["data"] + rest["data"]] == newest
            assert (first["has_more"], rest["has_more"], rest["next"]) == (True, False, None)
            assert (await client.get(path, params={"after": str(uuid.uuid4())})).status_code == 400
            assert (await client.get(path, params={"worker_id": str(uuid.UUID(int=2))})).json()["data"] == []
        kinds = await client.get("/v1/admin/discrepancies", params={"kind": "broken"})
        assert kinds.json()["data"] == []
        assert (await client.get("/v1/admin/discrepancies", params={"kind": "x"})).status_code == 400
        row = (await client.get("/v1/admin/discrepancies", params={"against_worker": "true"})).json()["data"][0]
        claimed = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 2, "nano": 3}
        assert (row["booked"], row["claimed"]) == (None, claimed)


async def test_every_endpoint_is_in_the_document(gateway: Stack) -> None:
    async with gateway.client() as client:
        paths = (await client.get("/schema/openapi.json")).json()["paths"]
    for path in (
        "/v1/admin/organisations/{organisation_id}/keys", "/v1/admin/keys/{key_id}/rotate", "/v1/account/usage",
        "/v1/account/statements/{month}", "/v1/account/keys", "/v1/admin/discrepancies",
        "/v1/admin/organisations/{organisation_id}/transfers/{transfer_id}",
    ):  # fmt: skip
        assert path in paths
    body = paths["/v1/account/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("CreateOwnKey")
