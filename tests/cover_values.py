"""A stake in the table, as tests of covers have it: what the biller would have seen, and what its worker earned."""

import uuid

from billing.postgres.pool import Connection
from cocoon.addresses import Address

ACCOUNT = b"\x5a" * 32
ADDRESS = str(Address(0, ACCOUNT))
WORKER = uuid.UUID(int=9)
BOND_NANO = 10_000


async def bond(
    connection: Connection, nano: int = BOND_NANO, *, address: str = ADDRESS, worker: uuid.UUID = WORKER,
    state: str = "live", unbond_s: int = 86_400,
) -> None:  # fmt: skip
    """The stake is on the chain with so much bonded, as of now."""
    await connection.execute(
        "INSERT INTO stakes (address, worker_id, owner, staked_key, operator_key, unbond_s, state, bond_nano,"
        " seen_seqno, seen_at)"
        " VALUES ($1, $2, '0:' || repeat('11', 32), $3, $3, $4, $5, $6, 1, now())"
        " ON CONFLICT (address) DO UPDATE SET worker_id = excluded.worker_id, state = excluded.state,"
        " bond_nano = excluded.bond_nano, unbond_s = excluded.unbond_s, seen_at = now()",
        address, worker, bytes(32), unbond_s, state, nano,
    )  # fmt: skip


async def earn(connection: Connection, nano: int, worker: uuid.UUID = WORKER) -> None:
    """So much is credited to the worker; where from is not said."""
    await connection.execute(
        "INSERT INTO accounts (kind, owner, asset, credits_posted) VALUES ('worker_payable', $1, 'TON', $2)"
        " ON CONFLICT (kind, owner, asset)"
        " DO UPDATE SET credits_posted = accounts.credits_posted + excluded.credits_posted",
        worker, nano,
    )  # fmt: skip


async def age(connection: Connection, seconds: float) -> None:
    """Let so much time pass for covers and marks; the clock of a database cannot be moved."""
    await connection.execute("UPDATE stake_covers SET counts_until = counts_until - make_interval(secs => $1)", seconds)
    await connection.execute("UPDATE stake_earnings SET marked_at = marked_at - make_interval(secs => $1)", seconds)
