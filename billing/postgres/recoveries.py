"""Receipts against the books in Postgres: what agrees, what is charged late, what is recorded as a discrepancy.

A late charge has no hold any more: the customer got the credit back when it expired. So it is drawn from what the
customer has now, as a transfer `recovered` into the leased account, from which the charge goes the usual way; what
the customer cannot cover comes from the operator, as a transfer `loss`. The worker is paid either way, and nobody is
ever overdrawn (PROTOCOL §6). Where an expired lease is still recovering, its store takes the claim instead.
"""

import asyncio
import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from billing import ledger
from billing.lease_store import ROWS_MAX, JournalRow, LeaseStore
from billing.ledger import AccountKind, Code, Numerators, Phase
from billing.ports import BillingError, LedgerUnavailableError, Outcome, Posted, Settlement
from billing.postgres.ceilings import Room, read_rooms
from billing.postgres.entries import SQL, Entries, Transfer
from billing.postgres.pool import Connection, DuplicateRecordError, Pool, Record, acquired, transaction
from billing.postgres.statements import load_statements
from billing.recoveries import Action, Booked, Claim, Decision, DiscrepancyKind, HoldState, against_worker, decide
from cocoon.ids import job_day
from cocoon.money import Amount, Asset, ceiling
from cocoon.receipt_batch import Verdict
from cocoon.usage import TokenUsage

TRIES_MAX = 5
"""Another process that records the same receipt in the same moment makes ours start over, and then find it done."""
RETRY_S = 0.02
LEASE_CLOSED = "closed"
LEASE_RECOVERING = "recovering"
HOLD_ID_VERSION = 7
"""Holds are named by their job's UUIDv7."""
OWN_SQL = load_statements("recoveries.sql")
_KINDS = (AccountKind.CUSTOMER_AVAILABLE, AccountKind.CUSTOMER_LEASED, AccountKind.WORKER_PAYABLE)
_NETWORK = (AccountKind.ROUNDING, AccountKind.NETWORK_REVENUE, AccountKind.OPERATOR_LOSS)

log = structlog.get_logger()


class Recoveries:
    """Reconciles receipts. Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool, leases: LeaseStore) -> None:
        self._pool = pool
        self._leases = leases

    async def booked(self, jobs: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Booked]]:
        """The usage rows of jobs (UUIDv7), without a lock: enough to see that a receipt brings nothing new."""
        async with acquired(self._pool) as connection:
            return await _read_booked(connection, set(jobs))

    async def note_over_claims(self, claims: Sequence[tuple[Settlement, TokenUsage]]) -> None:
        """Record that answers came with more than their tickets allowed: what is settled for each, and what it said.

        Sending them again adds nothing, and neither does a receipt that says the same later.
        """
        rows = [
            _discrepancy_row(
                Claim(
                    settlement=settlement, claimed=claimed, hold_id=settlement.job_id, ticket=b"", receipt_body=b""
                ),
                DiscrepancyKind.OVER_CLAIM,
                None,
            )
            for settlement, claimed in claims
        ]  # fmt: skip
        await self._note(rows)

    async def note_equivocations(self, claims: Sequence[Claim]) -> None:
        """Record that receipts have a number that their key has signed another head under. Again adds nothing."""
        await self._note([_discrepancy_row(claim, DiscrepancyKind.EQUIVOCATION, None) for claim in claims])

    async def _note(self, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            async with acquired(self._pool) as connection:
                await connection.execute(OWN_SQL["insert_discrepancies"], *_columns(rows))

    async def reconcile(self, claims: Sequence[Claim]) -> list[Verdict]:
        """Judge authentic receipts and charge what was lost; one verdict for each claim, in order.

        Of several claims for one job only the first is judged; the others are to be sent again.
        """
        first: dict[uuid.UUID, Claim] = {}
        for claim in claims:
            first.setdefault(claim.settlement.job_id, claim)
        judged = await self._judged(list(first.values()))
        judged = await self._claimed(list(first.values()), judged)
        verdicts = dict(zip((claim.settlement.job_id for claim in first.values()), judged, strict=True))
        return [
            verdicts[claim.settlement.job_id] if first[claim.settlement.job_id] is claim else Verdict.PENDING
            for claim in claims
        ]

    async def _claimed(self, claims: list[Claim], judged: list["Verdict | None"]) -> list[Verdict]:
        """Have expired leases pay for what was left open (None); what they cannot pay waits until they are closed."""
        late = [claim for claim, verdict in zip(claims, judged, strict=True) if verdict is None]
        paid: dict[uuid.UUID, Verdict] = {}
        for first in range(0, len(late), ROWS_MAX):
            part = late[first : first + ROWS_MAX]
            rows = [JournalRow(settlement=claim.settlement, lease_id=claim.hold_id, fence=None) for claim in part]
            for claim, answer in zip(part, await self._leases.flush(rows), strict=True):
                job_id = claim.settlement.job_id
                paid[job_id] = Verdict.RECOVERED if isinstance(answer, Posted) else Verdict.PENDING
                log.info(
                    "charge_recovered" if isinstance(answer, Posted) else "recovery_postponed", job_id=str(job_id),
                    worker_id=str(claim.worker_id), reason=answer.code if isinstance(answer, BillingError) else "",
                )  # fmt: skip
        return [
            paid[claim.settlement.job_id] if verdict is None else verdict
            for claim, verdict in zip(claims, judged, strict=True)
        ]

    async def _judged(self, claims: list[Claim]) -> list[Verdict | None]:
        try:
            return await self._transacted(claims)
        except LedgerUnavailableError:
            raise
        except BillingError as error:
            # One member that the books refuse must not stop the others; it stays with the worker and in our log.
            if len(claims) == 1:
                log.error("recovery_refused", job_id=str(claims[0].settlement.job_id), code=error.code)
                return [Verdict.PENDING]
            half = len(claims) // 2
            return await self._judged(claims[:half]) + await self._judged(claims[half:])

    async def _transacted(self, claims: list[Claim]) -> list[Verdict | None]:
        if not claims:
            return []
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                async with transaction(self._pool) as connection:
                    await _open_payables(connection, claims)
                async with transaction(self._pool) as connection:
                    return await _reconcile(connection, claims)
            except DuplicateRecordError:
                if not tries_left:
                    raise
            await asyncio.sleep(RETRY_S)
        raise AssertionError("the last try returns or raises")


async def _reconcile(connection: Connection, claims: list[Claim]) -> list[Verdict | None]:
    """One verdict each; None where an expired lease is to pay."""
    booked = await _read_booked(connection, {claim.settlement.job_id for claim in claims})
    holds = await _read_holds(connection, claims)
    decisions = [decide(claim, booked.get(claim.settlement.job_id, []), holds.get(claim.hold_id)) for claim in claims]
    lost = [claim for claim, decision in zip(claims, decisions, strict=True) if decision.action is Action.RECOVER]
    losses = await _recover(connection, lost) if lost else set[uuid.UUID]()
    found: list[tuple[Claim, DiscrepancyKind, Booked | None]] = []
    for claim, decision in zip(claims, decisions, strict=True):
        kinds = decision.kinds
        if claim.settlement.job_id in losses:
            kinds = (*kinds, DiscrepancyKind.OPERATOR_LOSS)
        found += [(claim, kind, decision.booked) for kind in kinds]
    if found:
        await connection.execute(OWN_SQL["insert_discrepancies"], *_columns(_discrepancy_row(*one) for one in found))
    return [_verdict(decision) for decision in decisions]


def _verdict(decision: Decision) -> Verdict | None:
    match decision.action:
        case Action.CLAIM:
            return None
        case Action.RECOVER:
            return Verdict.RECOVERED
        case Action.WAIT:
            return Verdict.PENDING
        case Action.NOTHING:
            return Verdict.DISCREPANCY if decision.kinds else Verdict.RECORDED


async def _read_booked(connection: Connection, jobs: set[uuid.UUID]) -> dict[uuid.UUID, list[Booked]]:
    rows = await connection.fetch(OWN_SQL["read_booked"], list({job_day(job) for job in jobs}), list(jobs))
    found: defaultdict[uuid.UUID, list[Booked]] = defaultdict(list)
    for row in rows:
        found[row["job_id"]].append(
            Booked(
                attempt=row["attempt"],
                worker_id=row["worker_id"],
                usage=TokenUsage(
                    prompt=row["prompt_tokens"], cached=row["cached_tokens"], completion=row["completion_tokens"]
                ),
                outcome=Outcome(row["outcome"]),
                numerator=int(row["numerator"]),
                charge_nano=row["charge_nano"],
                receipt_head=row["receipt_head"],
            )
        )
    return found


async def _read_holds(connection: Connection, claims: list[Claim]) -> dict[uuid.UUID, HoldState]:
    """The holds and leases that tickets name."""
    ids = [claim.hold_id for claim in claims]
    found = {
        row["lease_id"]: HoldState(
            customer_id=row["customer_id"],
            amount_nano=None,
            resolved=Phase.EXPIRE if row["state"] == LEASE_CLOSED else None,
            recovering=row["state"] == LEASE_RECOVERING,
        )
        for row in await connection.fetch(OWN_SQL["read_leases"], ids)
    }
    days = [job_day(hold_id) for hold_id in ids if hold_id.version == HOLD_ID_VERSION]
    if not days:
        return found
    for row in await connection.fetch(SQL["read_transfers"], min(days), max(days), ids):
        if row["customer_id"] is not None:
            found[row["id"]] = HoldState(
                customer_id=row["customer_id"],
                amount_nano=row["amount"],
                resolved=None if row["resolved"] is None else Phase(row["resolved"]),
            )
    return found


async def _open_payables(connection: Connection, claims: list[Claim]) -> None:
    owed = {(claim.worker_id, claim.settlement.price.asset) for claim in claims}
    await connection.execute(
        SQL["open_accounts"],
        [AccountKind.WORKER_PAYABLE.value] * len(owed),
        [worker for worker, _ in owed],
        [asset.value for _, asset in owed],
    )


class _Books:
    """The locked accounts as they change while a batch is recovered, and what is to be written."""

    def __init__(self, rows: Sequence[Record], rooms: Mapping[tuple[uuid.UUID, Asset], Room]) -> None:
        self.entries = Entries()
        self._ids = {(row["kind"], row["owner"], row["asset"]): row["id"] for row in rows}
        self._numerators: dict[int, int] = {row["id"]: int(row["numerator"]) for row in rows}
        self._available: dict[int, int] = {row["id"]: int(row["available"]) for row in rows}
        for (customer, asset), room in rooms.items():
            # What the client has not promised is not there to be drawn from.
            account = self._id(AccountKind.CUSTOMER_AVAILABLE, customer, asset)
            self._available[account] = max(0, min(self._available[account], room.nano))

    def recover(self, claim: Claim) -> "_Recovered":
        """Charge one lost attempt."""
        settlement, asset = claim.settlement, claim.settlement.price.asset
        available = self._id(AccountKind.CUSTOMER_AVAILABLE, settlement.customer_id, asset)
        leased = self._id(AccountKind.CUSTOMER_LEASED, settlement.customer_id, asset)
        worker = self._id(AccountKind.WORKER_PAYABLE, claim.worker_id, asset)
        revenue = self._id(AccountKind.NETWORK_REVENUE, None, asset)
        rounding = self._id(AccountKind.ROUNDING, None, asset)
        charge = ledger.charge(
            settlement,
            Numerators(
                customer=self._numerators[leased],
                worker=self._numerators[worker],
                revenue=self._numerators[revenue],
            ),
        )
        posted = charge.posted
        drawn = min(self._available[available], posted.charge.nano)
        self._available[available] -= drawn
        for account, after in (
            (leased, charge.after.customer), (worker, charge.after.worker), (revenue, charge.after.revenue),
        ):  # fmt: skip
            self.entries.add_numerator(account, after - self._numerators[account])
            self._numerators[account] = after
        day, batch = job_day(settlement.job_id), ledger.batch_digest([(settlement.job_id, settlement.attempt)])
        loss = self._id(AccountKind.OPERATOR_LOSS, None, asset)
        drawn_id = self._move(day, batch, Code.RECOVERED, available, leased, drawn)
        lost_id = self._move(day, batch, Code.LOSS, loss, leased, posted.charge.nano - drawn)
        self._move(day, batch, Code.CHARGE, leased, rounding, posted.charge.nano)
        self._move(day, batch, Code.SHARE, rounding, worker, posted.worker_share.nano)
        self._move(day, batch, Code.FEE, rounding, revenue, posted.fee.nano)
        return _Recovered(claim, posted, drawn, drawn_id, lost_id)

    def _move(self, day: dt.date, batch: bytes, code: Code, debit: int, credit: int, nano: int) -> uuid.UUID | None:
        if not nano:
            return None
        transfer = Transfer(
            day=day, id=ledger.leg_id(batch, code, debit), phase=Phase.SINGLE, code=code, debit=debit, credit=credit,
            amount=nano,
        )  # fmt: skip
        self.entries.add(transfer)
        return transfer.id

    def _id(self, kind: AccountKind, owner: uuid.UUID | None, asset: Asset) -> int:
        return self._ids[kind.value, owner, asset.value]


class _Recovered(msgspec.Struct, frozen=True):
    claim: Claim
    posted: Posted
    drawn_nano: int
    drawn_id: uuid.UUID | None
    lost_id: uuid.UUID | None


async def _recover(connection: Connection, claims: list[Claim]) -> set[uuid.UUID]:
    """Charge lost attempts; returns the jobs that the operator had to pay for in part."""
    owners = {claim.settlement.customer_id for claim in claims} | {claim.worker_id for claim in claims}
    rows = await connection.fetch(
        SQL["lock_accounts"], [], list(owners), [kind.value for kind in _KINDS], [kind.value for kind in _NETWORK]
    )
    books = _Books(rows, await read_rooms(connection, {claim.settlement.customer_id for claim in claims}))
    recovered = [books.recover(claim) for claim in claims]
    await books.entries.write(connection)
    await connection.execute(SQL["insert_usage"], *_columns(_usage_row(one) for one in recovered))
    await connection.execute(OWN_SQL["insert_recoveries"], *_columns(_recovery_row(one) for one in recovered))
    for one in recovered:
        log.info(
            "charge_recovered", job_id=str(one.claim.settlement.job_id), worker_id=str(one.claim.worker_id),
            charge_nano=one.posted.charge.nano, drawn_nano=one.drawn_nano,
        )  # fmt: skip
    return {one.claim.settlement.job_id for one in recovered if one.lost_id is not None}


def _columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _usage_row(one: _Recovered) -> tuple[object, ...]:
    """Values in the order of `insert_usage`."""
    settlement, posted = one.claim.settlement, one.posted
    usage, price = settlement.usage, settlement.price
    return (
        job_day(settlement.job_id), settlement.job_id, settlement.attempt, settlement.customer_id, settlement.key_id,
        settlement.worker_id, settlement.model, price.asset.value, price.version, price.share_bps,
        usage.prompt, usage.cached, usage.completion, settlement.numerator,
        posted.charge.nano, posted.worker_share.nano, posted.fee.nano,
        settlement.outcome.value, settlement.finish_reason,
        settlement.started_at, settlement.first_token_at, settlement.ended_at,
        settlement.receipt_head, settlement.receipt_signature, ledger.body_digest(settlement),
        *ledger.multiplied(settlement),
    )  # fmt: skip


def _recovery_row(one: _Recovered) -> tuple[object, ...]:
    """Values in the order of `insert_recoveries`."""
    claim, settlement = one.claim, one.claim.settlement
    return (
        job_day(settlement.job_id), settlement.job_id, settlement.attempt, claim.hold_id, claim.worker_id,
        settlement.customer_id, one.drawn_nano, one.posted.charge.nano - one.drawn_nano, one.drawn_id, one.lost_id,
        claim.ticket, claim.receipt_body,
    )  # fmt: skip


def _discrepancy_row(claim: Claim, kind: DiscrepancyKind, booked: Booked | None) -> tuple[object, ...]:
    """Values in the order of `insert_discrepancies`."""
    settlement, claimed = claim.settlement, claim.claimed
    worth: Amount = ceiling(settlement.price.numerator(claimed), settlement.price.asset)
    return (
        job_day(settlement.job_id), settlement.job_id, settlement.attempt, kind.value, claim.worker_id,
        settlement.customer_id, against_worker(kind, claim, booked),
        None if booked is None else booked.attempt,
        None if booked is None else booked.usage.prompt,
        None if booked is None else booked.usage.cached,
        None if booked is None else booked.usage.completion,
        None if booked is None else booked.charge_nano,
        claimed.prompt, claimed.cached, claimed.completion, worth.nano,
        settlement.receipt_head or b"", settlement.receipt_signature or b"",
    )  # fmt: skip
