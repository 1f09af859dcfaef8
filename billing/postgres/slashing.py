"""The table of evidence against stakes: filled where receipts are kept, submitted by the biller, shown to people."""

import uuid
from collections.abc import Sequence

import msgspec
import structlog

from billing.postgres.pool import Connection, Pool, Record, acquired
from billing.postgres.statements import load_statements
from billing.slashing import Charge, EvidenceState, KeptEvidence, StakeEvidence, Unproven
from cocoon.addresses import Address
from cocoon.contracts.judge import Accused
from cocoon.contracts.stake import EvidenceKind

PER_STAKE_MAX = 16
"""Pieces that are kept against one stake: a slash needs one."""
CHARGES_MAX = 1_000
REFUSED_SHOWN_MAX = 100
_SQL = load_statements("slashing.sql")
_KINDS = {EvidenceKind.EQUIVOCATION: "equivocation", EvidenceKind.OVER_USE: "over_use"}
_KIND_OF = {name: kind for kind, name in _KINDS.items()}
log = structlog.get_logger()


class Followed(msgspec.Struct, frozen=True):
    """Evidence that has changed with its stake."""

    id: int
    stake: str
    worker_id: uuid.UUID
    state: EvidenceState
    staked_nano: int | None


class Refused(msgspec.Struct, frozen=True):
    """Evidence that its contract does not take, and why."""

    id: int
    stake: str
    detail: str


async def keep_evidence(connection: Connection, found: Sequence[StakeEvidence]) -> None:
    """Keep evidence in the transaction of whoever found it; once for each slot and kind."""
    for one in found:
        kept = await connection.fetchval(
            _SQL["keep_evidence"], one.stake, one.worker_id, _KINDS[one.kind], one.slot, one.job_id, one.attempt,
            one.boc, PER_STAKE_MAX,
        )  # fmt: skip
        if kept is not None:
            log.error(
                "slash_evidence_kept", id=kept, kind=_KINDS[one.kind], stake=one.stake, worker_id=str(one.worker_id)
            )


class SlashEvidence:
    """Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def follow_stakes(self, worth_nano: int) -> list[Followed]:
        """Close what the chain has closed: the stake is slashed, foreign, or holds less than this."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["follow_stakes"], worth_nano)
        return [
            Followed(row["id"], row["stake"], row["worker_id"], EvidenceState(row["state"]), row["staked_nano"])
            for row in rows
        ]

    async def charges(self, *, global_id: int) -> list[Charge]:
        """Pending evidence against live stakes, by stake; of each first what was submitted first."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["charges"], CHARGES_MAX)
        return [
            Charge(
                evidence=_kept(row),
                accused=Accused(
                    global_id=global_id, stake=Address.parse(row["stake"]).account, staked_key=row["staked_key"],
                    operator_key=row["operator_key"],
                ),
                staked_nano=row["live_nano"],
            )
            for row in rows
        ]  # fmt: skip

    async def mark_submitted(self, one: int, staked_nano: int) -> None:
        """This evidence is on its way, against so much; the first time counts."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["mark_submitted"], one, staked_nano)

    async def refuse(self, one: int, detail: str) -> None:
        """The contract does not take this evidence."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["refuse_evidence"], one, detail)

    async def refused(self, within_s: float) -> list[Refused]:
        """What was refused lately."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["refused_since"], within_s, REFUSED_SHOWN_MAX)
        return [Refused(row["id"], row["stake"], row["detail"]) for row in rows]

    async def list(self, *, limit: int) -> list[KeptEvidence]:
        """What is kept, the newest first."""
        async with acquired(self._pool) as connection:
            return [_kept(row) for row in await connection.fetch(_SQL["list_evidence"], None, limit)]

    async def find(self, one: int) -> KeptEvidence | None:
        """One piece."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["list_evidence"], one, 1)
        return None if row is None else _kept(row)

    async def unproven(self) -> tuple[Unproven, ...]:
        """Over-claims and equivocations that are known and are no evidence against a stake."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["count_unproven"])
        return tuple(Unproven(kind=_KIND_OF[row["kind"]], count=row["count"]) for row in rows)


def _kept(row: Record) -> KeptEvidence:
    return KeptEvidence(
        id=row["id"],
        stake=row["stake"],
        worker_id=row["worker_id"],
        kind=_KIND_OF[row["kind"]],
        slot=row["slot"],
        job_id=row["job_id"],
        attempt=row["attempt"],
        boc=row["evidence"],
        state=EvidenceState(row["state"]),
        detail=row["detail"],
        staked_nano=row["staked_nano"],
        created_at=row["created_at"],
        submitted_at=row["submitted_at"],
        closed_at=row["closed_at"],
    )
