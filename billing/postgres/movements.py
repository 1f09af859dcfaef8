"""What the chain did, as transfers: each once, by its contract, kind and cumulative amount.

The caller holds the lock of the row that has the cumulative amount, and changes it in the same transaction.
"""

import datetime as dt
import hashlib
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from billing import ledger
from billing.escrows import Movement, MovementKind
from billing.ledger import AccountKind, Code, Phase
from billing.postgres.entries import SQL, Entries, Transfer
from billing.postgres.pool import Connection
from billing.postgres.statements import load_statements
from cocoon.money import Asset

CODES = {
    MovementKind.DEPOSIT: Code.DEPOSIT,
    MovementKind.SETTLE: Code.SETTLE,
    MovementKind.REFUND: Code.REFUND,
    MovementKind.FORGONE: Code.FORGONE,
    MovementKind.PAID: Code.PAID,
    MovementKind.RETURNED: Code.RETURNED,
    MovementKind.FEE: Code.WITHDRAWAL,
}
_SQL = load_statements("escrows.sql")


class Side(NamedTuple):
    """An account: its kind, and its owner unless it is the network's own."""

    kind: AccountKind
    owner: uuid.UUID | None = None


class Leg(NamedTuple):
    """A movement and the accounts it goes between."""

    movement: Movement
    debit: Side
    credit: Side


async def lock_accounts(connection: Connection, sides: Sequence[Side], asset: Asset = Asset.TON) -> dict[Side, int]:
    """The ids of these accounts, locked in id order, opened where they are missing."""
    owned = sorted({side for side in sides if side.owner is not None})
    if owned:
        await connection.execute(
            SQL["open_accounts"],
            [side.kind.value for side in owned],
            [side.owner for side in owned],
            [asset.value] * len(owned),
        )
    rows = await connection.fetch(
        SQL["lock_accounts"],
        [],
        list({side.owner for side in owned}),
        list({side.kind.value for side in owned}),
        list({side.kind.value for side in sides if side.owner is None}),
    )
    found = {Side(AccountKind(row["kind"]), row["owner"]): row["id"] for row in rows if row["asset"] == asset.value}
    return {side: found[side] for side in sides}


async def post_movements(connection: Connection, legs: Sequence[Leg]) -> None:
    """Move the money and write down what it was for.

    Raises:
        DuplicateRecordError: it was moved before.
        RecordRefusedError: an account would be overdrawn.
    """
    if not legs:
        return
    accounts = await lock_accounts(connection, [side for leg in legs for side in (leg.debit, leg.credit)])
    day: dt.date = await connection.fetchval(_SQL["today"])
    entries = Entries()
    for movement, debit, credit in legs:
        transfer_id = movement_id(movement)
        await connection.execute(
            _SQL["insert_movement"], movement.subject, movement.kind.value, movement.cumulative_nano,
            movement.amount_nano, day, transfer_id, movement.seqno,
        )  # fmt: skip
        entries.add(
            Transfer(
                day=day,
                id=transfer_id,
                phase=Phase.SINGLE,
                code=CODES[movement.kind],
                debit=accounts[debit],
                credit=accounts[credit],
                amount=movement.amount_nano,
            )
        )
    await entries.write(connection)


def movement_id(movement: Movement) -> uuid.UUID:
    """The id of a movement's transfer: the same contract, kind and cumulative amount have the same one."""
    named = f"{movement.kind} {movement.subject} {movement.cumulative_nano}".encode()
    return ledger.derived_id(hashlib.sha256(b"chain " + named).digest())
