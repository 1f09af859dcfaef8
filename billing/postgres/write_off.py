"""Jobs that are given up: from then on nobody can charge them, however late they come.

Three parties may still come with a charge of a job whose process died: that process itself, when it was only cut off;
its journal, which resends until the store answers; and the worker, with its receipt. All of them look for a usage row
of the job first, and its customer is charged once a job at most (`usage_charged_once`). So a job is written off by
writing that row, with a charge of nothing.
"""

import hashlib
import uuid

import msgspec

from billing.ledger import ATTEMPT_MAX, AccountKind
from billing.ports import Outcome
from billing.postgres.entries import SQL
from billing.postgres.pool import Connection
from billing.postgres.statements import load_statements
from cocoon.ids import job_day
from cocoon.money import Asset

ATTEMPT = ATTEMPT_MAX
"""No gateway gives out this many."""
OWN_SQL = load_statements("write_off.sql")
_LOCKED = (AccountKind.CUSTOMER_AVAILABLE, AccountKind.CUSTOMER_LEASED, AccountKind.LEASE_RECOVERY)
_MODEL_CHARACTERS_MAX = 128
_DIGEST_LABEL = b"cocoon/written-off/1\x00"


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """A job and who would have paid for it."""

    job_id: uuid.UUID
    customer_id: uuid.UUID
    key_id: uuid.UUID
    model: str


async def write_off(connection: Connection, job: GivenUp) -> Outcome | None:
    """None once nobody can charge the job any more; otherwise how it was charged before. Inside a transaction."""
    day = job_day(job.job_id)
    # Whoever charges this customer holds these, so that what is read stays true; and rollups are written under them.
    await connection.fetch(SQL["lock_accounts"], [], [job.customer_id], [kind.value for kind in _LOCKED], [])
    charged = await connection.fetchval(OWN_SQL["read_charge"], day, job.job_id, job.customer_id)
    if charged is not None:
        return Outcome(charged)
    await connection.execute(
        OWN_SQL["write_off"], day, job.job_id, ATTEMPT, job.customer_id, job.key_id,
        job.model[:_MODEL_CHARACTERS_MAX] or "unknown", Asset.TON.value,
        hashlib.sha256(_DIGEST_LABEL + job.job_id.bytes).digest(),
    )  # fmt: skip
    return None
