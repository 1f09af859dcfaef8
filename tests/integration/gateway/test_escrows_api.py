"""Escrows and vouchers over HTTP: what counts, what is served on it, and every voucher that is not taken."""

from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.escrows import EscrowState
from cocoon.addresses import Address
from tests.escrow_stack import CLIENT, ENVIRONMENT, PlayedEscrow
from tests.fixtures_gateway import Stack, chat

DEPOSIT = 10**9
UNSIGNED_MAX = 400
"""Of the order of one request's worst case: a few answers use it up."""
ANSWERS_MAX = 60
"""More than the bound lets through, whatever an answer costs."""


@pytest.fixture
async def network(stack: Stack) -> Stack:
    """A gateway that takes escrows; the customer's key may manage its organisation."""
    await stack.rows("UPDATE api_keys SET organisation_admin = TRUE WHERE id = $1", stack.key_id)
    await stack.start_gateway(**ENVIRONMENT)
    return stack


@pytest.fixture
async def escrow(network: Stack) -> PlayedEscrow:
    """With a deposit."""
    made = PlayedEscrow(network)
    async with network.client() as client:
        await made.register(client)
    await made.observe(DEPOSIT)
    await made.allow_unsigned(UNSIGNED_MAX)
    return made


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


async def refused(client: httpx.AsyncClient) -> dict[str, Any]:
    """The first refusal for want of credit."""
    for _ in range(ANSWERS_MAX):
        answer = await client.post("/v1/chat/completions", json=chat(max_tokens=20))
        if answer.status_code != 200:
            return error_of(answer, 402)
    raise AssertionError("the ceiling held nothing back")


async def test_what_may_be_unsigned_is_served_and_a_voucher_goes_on(network: Stack, escrow: PlayedEscrow) -> None:
    async with network.client() as client:
        demand = await refused(client)
        assert (demand["code"], demand["escrow"], demand["epoch"]) == ("voucher_required", escrow.address, 1)
        await network.until_settled()
        [shown] = (await client.get("/v1/account/escrows")).json()["data"]
        assert demand["cumulative"] <= shown["charged_nano"] <= UNSIGNED_MAX
        assert shown["charged_nano"] > 0
        signed = escrow.voucher(shown["demand_nano"])
        for new in (True, False):
            kept = await client.post("/v1/account/vouchers", json=signed)
            assert (kept.status_code, kept.json()["new"]) == (200, new), kept.text
        more = await client.post("/v1/chat/completions", json=chat(max_tokens=20))
        assert more.status_code == 200, more.text
        assert (await refused(client))["cumulative"] >= shown["demand_nano"]
        await network.until_settled()
        balance = (await client.get("/v1/account/balance")).json()
        assert balance["escrow"] == {
            "deposited_nano": DEPOSIT, "settled_nano": 0, "signed_nano": shown["demand_nano"],
            "charged_nano": balance["spent_nano"],
        }  # fmt: skip
        assert balance["spent_nano"] - shown["demand_nano"] <= UNSIGNED_MAX


async def test_a_close_request_stops_every_process_at_once(network: Stack, escrow: PlayedEscrow) -> None:
    async with network.client() as client:
        assert (await client.post("/v1/chat/completions", json=chat(max_tokens=20))).status_code == 200
        await escrow.observe(DEPOSIT, state=EscrowState.CLOSING, close_requested_at=1)
        await network.until_true(
            lambda: client.post("/v1/chat/completions", json=chat(max_tokens=20)),
            lambda answer: answer.status_code == 402 and answer.json()["error"]["code"] == "escrow_closing",
        )
        leases = "SELECT lease_id FROM leases WHERE state = 'active' AND amount > 0"
        await network.until_true(lambda: network.rows(leases), lambda rows: not rows)


async def test_vouchers_that_the_escrow_would_not_pay_are_refused(network: Stack, escrow: PlayedEscrow) -> None:
    foreign = PlayedEscrow(network)
    async with network.client() as client:
        kept = await client.post("/v1/account/vouchers", json=escrow.voucher(100))
        assert kept.status_code == 200
        attacks = {
            "another chain": escrow.voucher(200, global_id=-239),
            "another escrow": escrow.voucher(200, escrow=Address.parse(foreign.address)),
            "another epoch": escrow.voucher(200, epoch=2),
            "another amount": {**escrow.voucher(200), "cumulative": 300},
            "another root": {**escrow.voucher(200), "usage_root": "01" * 32},
            "another key": escrow.voucher(200, key=Ed25519PrivateKey.generate()),
            "above the deposit": escrow.voucher(DEPOSIT + 1),
        }
        for name, body in attacks.items():
            error = error_of(await client.post("/v1/account/vouchers", json=body), 400)
            assert error["code"] == "voucher_refused", name
        for stale in (99, 1):
            error = error_of(await client.post("/v1/account/vouchers", json=escrow.voucher(stale)), 409)
            assert error["code"] == "stale_voucher"
        unknown = error_of(await client.post("/v1/account/vouchers", json=foreign.voucher(200)), 404)
        assert unknown["code"] == "unknown_escrow"
        async with network.client(await network.new_key()) as stranger:
            error = error_of(await stranger.post("/v1/account/vouchers", json=escrow.voucher(200)), 404)
            assert error["code"] == "unknown_escrow"
            assert (await stranger.get("/v1/account/escrows")).json()["data"] == []
        rows = await network.rows("SELECT cumulative_nano FROM vouchers")
        assert [row["cumulative_nano"] for row in rows] == [100]


async def test_only_escrows_with_our_terms_are_registered_and_only_by_who_manages(network: Stack) -> None:
    made = PlayedEscrow(network)
    async with network.client() as client:
        for bad in (PlayedEscrow(network, challenge_s=59), PlayedEscrow(network, payout=CLIENT)):
            error = error_of(await client.post("/v1/account/escrows", json=bad.registration()), 400)
            assert error["code"] == "escrow_terms_refused"
        first = await client.post("/v1/account/escrows", json=made.registration(amount_nano=5))
        again = await client.post("/v1/account/escrows", json=made.registration(amount_nano=5))
        assert first.json() == again.json()
        assert first.json()["state"] == "registered"
        assert first.json()["deposit_link"].startswith("ton://transfer/")
        terms = (await client.get("/v1/account/escrows")).json()["terms"]
        assert (terms["challenge_s_min"], terms["code_hash"]) == (60, made.init.code.hash.hex())
    async with network.client(await network.new_key()) as plain:
        assert error_of(await plain.post("/v1/account/escrows", json=made.registration()), 403)


async def test_a_gateway_without_a_chain_takes_no_escrow(stack: Stack) -> None:
    await stack.rows("UPDATE api_keys SET organisation_admin = TRUE WHERE id = $1", stack.key_id)
    await stack.start_gateway()
    async with stack.client() as client:
        asked = await client.post("/v1/account/escrows", json=PlayedEscrow(stack).registration())
        assert error_of(asked, 403)["code"] == "escrows_off"
        assert (await client.get("/v1/account/escrows")).json() == {"object": "list", "terms": None, "data": []}
        assert (await client.get("/v1/account/balance")).json()["escrow"] is None
