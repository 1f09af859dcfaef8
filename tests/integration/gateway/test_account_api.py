"""What an organisation sees of its own money over HTTP, in JSON and CSV."""

import csv
import datetime as dt
import io
import uuid
from typing import Any

import httpx
import pytest

from gateway.http.tables import Exact, csv_answer
from tests.fixtures_gateway import CREDIT_NANO, Stack, chat

pytestmark = pytest.mark.usefixtures("one_day")

NANO = 10**9


def today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def table(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return list(csv.DictReader(io.StringIO(answer.text)))


def nano(decimal_ton: str) -> int:
    """Exact: what cannot be said in whole nano is an error."""
    sign, digits = (-1, decimal_ton[1:]) if decimal_ton.startswith("-") else (1, decimal_ton)
    whole, _, fraction = digits.partition(".")
    assert len(fraction) <= 9
    return sign * (int(whole) * NANO + int(fraction.ljust(9, "0")))


async def spend(stack: Stack, requests: int) -> int:
    """Nano that `requests` answers cost, once they are booked."""
    async with stack.client() as client:
        for _ in range(requests):
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
    rows = await stack.usage(requests)
    return sum(row["charge_nano"] for row in rows)


async def test_usage_names_day_model_key_and_project_in_json_and_csv(gateway: Stack) -> None:
    charged = await spend(gateway, 3)
    async with gateway.client() as client:
        answer = (await client.get("/v1/account/usage")).json()
        [line] = answer["data"]
        assert (line["key"], line["key_id"], line["project"], line["requests"]) == (
            "test", str(gateway.key_id), "default", 3,
        )  # fmt: skip
        assert (line["charge_nano"], answer["has_more"]) == (charged, False)
        by_query = table(await client.get("/v1/account/usage", params={"format": "csv"}))
        by_header = table(await client.get("/v1/account/usage", headers={"accept": "text/csv"}))
        assert by_query == by_header == [
            {**{name: str(value) for name, value in line.items() if name != "cost"}, "cost_ton": line["cost"]}
        ]  # fmt: skip
        browser = {"accept": "text/html,text/csv,application/json;q=0.9,*/*;q=0.8"}
        assert (await client.get("/v1/account/usage", headers=browser)).json() == answer
        for bad in (
            {"format": "xml"},
            {"start": "yesterday"},
            {"end": "0001-01-05"},
            {"start": "2026-01-01", "end": "2026-12-31"},
        ):
            refused = await client.get("/v1/account/usage", params=bad)
            assert refused.status_code == 400
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}


async def test_names_that_a_spreadsheet_would_run_are_made_harmless(gateway: Stack) -> None:
    await spend(gateway, 1)
    formula = '=HYPERLINK("http://evil","x")'
    await gateway.rows("UPDATE api_keys SET name = $2 WHERE id = $1", gateway.key_id, formula)
    async with gateway.client() as client:
        [line] = table(await client.get("/v1/account/usage", params={"format": "csv"}))
        assert line["key"] == "'" + formula
        assert (await client.get("/v1/account/usage")).json()["data"][0]["key"] == formula


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "|cmd", "%0"])
def test_every_beginning_of_a_formula_is_made_harmless(text: str) -> None:
    body = csv_answer("x", ["a", "b"], [[text, Exact("-0.5")], ["plain, quoted", -7]]).content
    rows = list(csv.reader(io.StringIO(body.decode(), newline="")))
    assert rows == [["a", "b"], ["'" + text, "-0.5"], ["plain, quoted", "-7"]]


async def test_the_statement_ties_to_the_balance_in_json_and_csv(gateway: Stack) -> None:
    charged = await spend(gateway, 2)
    month = today().strftime("%Y-%m")
    async with gateway.client() as client:
        statement = (await client.get(f"/v1/account/statements/{month}")).json()
        assert (statement["opening_nano"], statement["deposits_nano"]) == (0, CREDIT_NANO)
        assert (statement["charged_nano"], statement["complete"]) == (charged, False)
        assert [(line["model"], line["requests"]) for line in statement["charges"]] == [("scripted", 2)]
        assert statement["closing_nano"] == CREDIT_NANO - charged
        assert nano(statement["closing"]) == statement["closing_nano"]
        balance = (await client.get("/v1/account/balance")).json()
        assert balance["available_nano"] + balance["held_nano"] == statement["closing_nano"]
        assert 0 <= balance["leased_nano"] <= CREDIT_NANO
        lines = table(await client.get(f"/v1/account/statements/{month}", params={"format": "csv"}))
        assert [line["line"] for line in lines] == [
            "opening", "deposits", "reversals", "credits", "borne", "charge", "closing",
        ]  # fmt: skip
        assert all(nano(line["amount_ton"]) == int(line["amount_nano"]) for line in lines)
        assert sum(int(line["amount_nano"]) for line in lines[:-1]) == int(lines[-1]["amount_nano"])
        before = (today().replace(day=1) - dt.timedelta(days=1)).strftime("%Y-%m")
        old = (await client.get(f"/v1/account/statements/{before}")).json()
        assert (old["complete"], old["closing_nano"], old["charges"]) == (True, 0, [])
        for bad in ("2026-13", "2026-1", "0001-01", "9999-12", "2998-01", "x", "2026-11-01"):
            assert (await client.get(f"/v1/account/statements/{bad}")).status_code == 400
    await gateway.check_books()


async def test_an_organisation_sees_only_its_own_money(gateway: Stack) -> None:
    await spend(gateway, 1)
    stranger = await gateway.new_key(credit_nano=7)
    async with gateway.client(stranger) as client:
        month = today().strftime("%Y-%m")
        params: dict[str, Any] = {"organisation_id": str(gateway.customer_id), "customer_id": str(gateway.customer_id)}
        assert (await client.get("/v1/account/usage", params=params)).json()["data"] == []
        statement = (await client.get(f"/v1/account/statements/{month}", params=params)).json()
        assert (statement["closing_nano"], statement["charges"]) == (7, [])
        assert (await client.get("/v1/account/balance", params=params)).json()["spent_nano"] == 0
        for what in ("balance", "usage", f"statements/{month}"):
            path = f"/v1/admin/organisations/{gateway.customer_id}/{what}"
            assert (await client.get(path)).status_code == 403


async def test_more_lines_than_a_file_holds_are_refused_rather_than_cut_off(gateway: Stack) -> None:
    await gateway.rows(
        "INSERT INTO usage_daily SELECT $1, current_date, $2, 'm' || n, 'TON', 1, 0, 1, 0, 1, 0, 0, 0, 0 "
        "FROM generate_series(1, 10001) AS n",
        gateway.customer_id, uuid.uuid4(),
    )  # fmt: skip
    async with gateway.client() as client:
        shown = (await client.get("/v1/account/usage")).json()
        assert (len(shown["data"]), shown["has_more"]) == (10_000, True)
        assert (await client.get("/v1/account/usage", params={"format": "csv"})).status_code == 400
