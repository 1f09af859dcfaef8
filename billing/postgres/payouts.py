"""Epochs, payees and the payout contract in Postgres."""

import datetime as dt
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from billing import ledger
from billing.escrows import ChainContradictionError, Movement, MovementKind
from billing.ledger import AccountKind, Code, Phase
from billing.payouts import (
    Epoch,
    OtherPayoutError,
    Payee,
    PayeeSeen,
    PayoutSeen,
    funded,
    payee_movements,
)
from billing.postgres.entries import Entries, Transfer
from billing.postgres.movements import Leg, Side, lock_accounts, post_movements
from billing.postgres.pool import Connection, Pool, Record, acquired, transaction
from billing.postgres.statements import load_statements
from cocoon.addresses import Address
from cocoon.contracts.payout import Earnings, EpochTree

_SQL = load_statements("payouts.sql")
_TODAY = load_statements("escrows.sql")["today"]
_PAYOUT = Side(AccountKind.PAYOUT_ASSET)
_REVENUE = Side(AccountKind.NETWORK_REVENUE)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The transparency log's last signed checkpoint; `note` is what was signed, `now` the database's time."""

    size: int
    root: bytes
    note: str
    now: dt.datetime


class Payouts:
    """Every method is one transaction and raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool, address: str) -> None:
        self._pool = pool
        self._address = address

    async def observe_contract(self, seen: PayoutSeen) -> tuple[Movement, ...] | None:
        """Book what a block showed of the payout contract; None where the books have seen a later block.

        Raises:
            OtherPayoutError: these books belong to another one.
            ChainContradictionError: it says less than it said before, or has an epoch that is none of ours.
        """
        async with transaction(self._pool) as connection:
            row = await self._locked(connection)
            if row["seen_seqno"] is not None and seen.seqno < row["seen_seqno"]:
                return None
            if seen.received_nano < row["received_nano"] or seen.fee_withdrawn_nano < row["fee_withdrawn_nano"]:
                raise ChainContradictionError(f"{self._address} has received or withdrawn less than before")
            await _require_our_roots(connection, seen)
            moved: list[Movement] = []
            taken = seen.fee_withdrawn_nano - row["fee_withdrawn_nano"]
            if taken:
                moved.append(
                    Movement(
                        subject=self._address, kind=MovementKind.FEE, cumulative_nano=seen.fee_withdrawn_nano,
                        amount_nano=taken, seqno=seen.seqno,
                    )
                )  # fmt: skip
            await post_movements(connection, [Leg(one, _REVENUE, _PAYOUT) for one in moved])
            await connection.execute(
                _SQL["update_contract"], seen.received_nano, seen.paid_nano, seen.fee_withdrawn_nano,
                seen.active_epoch, seen.anchor_count, seen.anchor_size, seen.anchor_root, seen.seqno, seen.at,
            )  # fmt: skip
            posted = max(seen.active_epoch, seen.pending_epoch)
            await connection.execute(_SQL["note_posted"], posted, seen.active_epoch, seen.at)
            await connection.execute(_SQL["note_anchored"], seen.anchor_size, seen.anchor_root, seen.at)
            return tuple(moved)

    async def payees(self) -> tuple[Payee, ...]:
        """Every wallet that epochs pay."""
        async with acquired(self._pool) as connection:
            return tuple(_payee(row) for row in await connection.fetch(_SQL["payees"]))

    async def observe_payee(self, payee_id: uuid.UUID, account: str, seen: PayeeSeen) -> tuple[Movement, ...]:
        """Book what a block showed of a wallet's child.

        Raises:
            ChainContradictionError: it claimed more than any epoch gave, or less than before; nothing was booked.
        """
        async with transaction(self._pool) as connection:
            await connection.execute(_SQL["name_account"], payee_id, account)
            row = await connection.fetchrow(_SQL["lock_payee"], payee_id)
            assert row is not None, "payees are never deleted"
            payee = _payee(row)
            moved = payee_movements(payee, seen)
            if payee.seen_seqno is not None and seen.seqno < payee.seen_seqno:
                return ()
            flight = Side(AccountKind.PAYOUT_IN_FLIGHT, payee_id)
            paid, returned = payee.paid_nano, payee.returned_nano
            for one in moved:
                if one.kind is MovementKind.PAID:
                    paid = one.cumulative_nano
                    await post_movements(connection, [Leg(one, flight, _PAYOUT)])
                else:
                    returned = one.cumulative_nano
                    await post_movements(connection, [Leg(one, _PAYOUT, flight)])
            await connection.execute(
                _SQL["update_payee"], payee_id, seen.claimed_nano, seen.owed_nano, paid, returned, seen.seqno, seen.at
            )
            return moved

    async def last_epoch(self) -> Epoch | None:
        """The epoch that was fixed last."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["last_epoch"])
        return None if row is None else _epoch(row)

    async def revenue(self) -> int:
        """What the books have as the operator's own, in nano."""
        async with acquired(self._pool) as connection:
            return int(await connection.fetchval(_SQL["revenue"]))

    async def tree(self, epoch: int) -> EpochTree:
        """The tree of an epoch's leaves."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["leaves"], epoch)
        return EpochTree([Earnings(Address.parse(row["wallet"]), row["cumulative_nano"]) for row in rows])

    async def prepare_epoch(self, budget_nano: int) -> Epoch | None:
        """Fix the next epoch: leaves, root, and what they add moved to payout_in_flight; None when nobody is due.

        `budget_nano` is the most that all leaves together may come to (what was received less the highest fee). The
        epoch before it must be active.
        """
        async with transaction(self._pool) as connection:
            await self._locked(connection)
            last = await connection.fetchrow(_SQL["last_epoch"])
            total_before = 0 if last is None else int(last["total_nano"])
            number = 1 if last is None else int(last["epoch"]) + 1
            rows = await connection.fetch(_SQL["earned"])
            given = funded({row["worker_id"]: row["payable"] for row in rows}, max(0, budget_nano - total_before))
            if not given:
                return None
            payees = await _open_payees(connection, rows)
            wallets = {row["worker_id"]: row["wallet"] for row in rows}
            added: defaultdict[str, int] = defaultdict(int)
            for worker, nano in given.items():
                added[wallets[worker]] += nano
            leaves = {
                wallet: payee.leaf_nano + added[wallet]
                for wallet, payee in payees.items()
                if payee.leaf_nano + added[wallet]
            }
            await _move_to_flight(connection, number, given, {w: payees[wallets[w]].payee_id for w in given})
            tree = EpochTree([Earnings(Address.parse(wallet), nano) for wallet, nano in leaves.items()])
            earned = sum(row["earned"] for row in rows)
            created = await connection.fetchval(_SQL["insert_epoch"], number, tree.root, tree.total_nano, earned)
            await connection.execute(
                _SQL["insert_leaves"], number, [payees[wallet].payee_id for wallet in leaves], list(leaves.values())
            )
        return Epoch(epoch=number, root=tree.root, total_nano=tree.total_nano, earned_nano=earned, created_at=created)

    async def note_claims(self, epoch: int, claims: Sequence[tuple[uuid.UUID, str]]) -> None:
        """Write down that these payees' claims were sent, with their purposes."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                _SQL["insert_claims"], epoch, [payee for payee, _ in claims], [purpose for _, purpose in claims]
            )

    async def last_checkpoint(self) -> Checkpoint | None:
        """The log's last signed checkpoint."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["last_checkpoint"])
        if row is None:
            return None
        return Checkpoint(size=row["size"], root=row["root"], note=row["note"], now=row["now"])

    async def _locked(self, connection: Connection) -> Record:
        await connection.execute(_SQL["insert_contract"], self._address)
        row = await connection.fetchrow(_SQL["lock_contract"])
        assert row is not None, "it was inserted"
        if row["address"] != self._address:
            raise OtherPayoutError(f"these books belong to {row['address']}")
        return row


async def _require_our_roots(connection: Connection, seen: PayoutSeen) -> None:
    """What is active or pending on the chain is what we fixed: nobody else may post, and we post nothing else."""
    shown = {seen.active_epoch: seen.active_root, seen.pending_epoch: seen.pending_root}
    ours = {row["epoch"]: row["root"] for row in await connection.fetch(_SQL["roots"], list(shown))}
    for epoch, root in shown.items():
        if epoch and ours.get(epoch) != root:
            raise ChainContradictionError(f"the chain's root of epoch {epoch} is not ours")


async def _open_payees(connection: Connection, rows: Sequence[Record]) -> dict[str, Payee]:
    wallets = sorted({row["wallet"] for row in rows})
    await connection.execute(_SQL["insert_payees"], [_payee_id(wallet) for wallet in wallets], wallets)
    return {row["wallet"]: _payee(row) for row in await connection.fetch(_SQL["payees"])}


async def _move_to_flight(
    connection: Connection, epoch: int, given: dict[uuid.UUID, int], payee_of: dict[uuid.UUID, uuid.UUID]
) -> None:
    sides = {worker: Side(AccountKind.WORKER_PAYABLE, worker) for worker in given}
    flights = {payee: Side(AccountKind.PAYOUT_IN_FLIGHT, payee) for payee in set(payee_of.values())}
    accounts = await lock_accounts(connection, [*sides.values(), *flights.values()])
    day: dt.date = await connection.fetchval(_TODAY)
    entries = Entries()
    for worker, nano in sorted(given.items()):
        entries.add(
            Transfer(
                day=day,
                id=ledger.derived_id(hashlib.sha256(b"claim " + worker.bytes + epoch.to_bytes(8, "big")).digest()),
                phase=Phase.SINGLE,
                code=Code.CLAIM,
                debit=accounts[sides[worker]],
                credit=accounts[flights[payee_of[worker]]],
                amount=nano,
            )
        )
    await entries.write(connection)


def _payee_id(wallet: str) -> uuid.UUID:
    return ledger.derived_id(hashlib.sha256(b"payee " + wallet.encode()).digest())


def _payee(row: Record) -> Payee:
    return Payee(
        payee_id=row["id"],
        wallet=row["wallet"],
        account=row["account"],
        claimed_nano=row["claimed_nano"],
        owed_nano=row["owed_nano"],
        paid_nano=row["paid_nano"],
        returned_nano=row["returned_nano"],
        leaf_nano=row["leaf_nano"],
        seen_seqno=row["seen_seqno"],
    )


def _epoch(row: Record) -> Epoch:
    return Epoch(
        epoch=row["epoch"],
        root=row["root"],
        total_nano=row["total_nano"],
        earned_nano=row["earned_nano"],
        created_at=row["created_at"],
        posted_at=row["posted_at"],
        active_at=row["active_at"],
    )
