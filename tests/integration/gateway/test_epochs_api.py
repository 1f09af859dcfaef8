"""Epochs over HTTP, for anybody: a worker's claim must not depend on anybody's good will."""

import uuid

import pytest

from cocoon.addresses import Address
from cocoon.contracts.epochs import EPOCH_MAX, EpochLeaves, Leaf
from cocoon.contracts.payout import Earnings, EpochTree
from tests.fixtures_gateway import Stack

PAYOUT = "0:" + "a1" * 32
WALLETS = tuple("0:" + name * 32 for name in ("b2", "c3"))


async def fix_epoch(stack: Stack, epoch: int, *earned: int) -> EpochLeaves:
    """An epoch in the books, as the biller fixes it."""
    leaves = tuple(Leaf(wallet, nano) for wallet, nano in zip(WALLETS, earned, strict=False))
    tree = EpochTree([Earnings(Address.parse(leaf.wallet), leaf.cumulative_nano) for leaf in leaves])
    await stack.rows("INSERT INTO payout_contract (address) VALUES ($1) ON CONFLICT (singleton) DO NOTHING", PAYOUT)
    await stack.rows(
        "INSERT INTO epochs (epoch, root, total_nano, earned_nano) VALUES ($1, $2, $3, $3)",
        epoch, tree.root, tree.total_nano,
    )  # fmt: skip
    for leaf in leaves:
        payee = uuid.uuid5(uuid.NAMESPACE_URL, leaf.wallet)
        await stack.rows("INSERT INTO payees (id, wallet) VALUES ($1, $2) ON CONFLICT DO NOTHING", payee, leaf.wallet)
        await stack.rows(
            "INSERT INTO epoch_leaves (epoch, payee_id, cumulative_nano) VALUES ($1, $2, $3)",
            epoch, payee, leaf.cumulative_nano,
        )  # fmt: skip
    return EpochLeaves(payout=PAYOUT, epoch=epoch, root=tree.root.hex(), total_nano=tree.total_nano, leaves=leaves)


async def test_anybody_reads_the_leaves_of_every_epoch(stack: Stack) -> None:
    await stack.start_gateway()
    async with stack.client() as client:
        client.headers.pop("authorization", None)
        assert (await client.get("/v1/epochs/last")).status_code == 404
        first, second = await fix_epoch(stack, 1, 5), await fix_epoch(stack, 2, 9, 7)
        for name, expected in (("1", first), ("2", second), ("last", second)):
            answer = await client.get(f"/v1/epochs/{name}")
            found = EpochLeaves.decode(answer.content)
            assert found == expected
            assert found.tree().total_nano == expected.total_nano
            assert ("immutable" in answer.headers["cache-control"]) is (name != "last")
        unknown = await client.get("/v1/epochs/3")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "epoch_unknown")


@pytest.mark.parametrize("name", ["0", "-1", "x", str(EPOCH_MAX + 1), "9" * 40])
async def test_what_is_no_number_of_an_epoch_is_a_clear_refusal(stack: Stack, name: str) -> None:
    await stack.start_gateway()
    async with stack.client() as client:
        answer = await client.get(f"/v1/epochs/{name}")
        assert answer.status_code in {400, 404}
        assert answer.json()["error"]["message"]
