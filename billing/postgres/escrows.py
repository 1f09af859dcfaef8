"""Escrows and vouchers in Postgres: registration, what the chain showed of them, and charges given to them."""

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from billing.escrows import (
    ESCROWS_PER_CUSTOMER_MAX,
    AgreedClose,
    CloseAgreedError,
    CloseNotAgreedError,
    Escrow,
    EscrowConflictError,
    EscrowSeen,
    EscrowState,
    EscrowTerms,
    Movement,
    MovementKind,
    StaleVoucherError,
    UnknownEscrowError,
    Voucher,
    VoucherSigner,
    attribute,
    is_old,
    movements,
    state_after,
)
from billing.ledger import AccountKind
from billing.ports import UnknownCustomerError
from billing.postgres.adjustments import open_customer_accounts
from billing.postgres.entries import SQL as LEDGER_SQL
from billing.postgres.movements import Leg, Side, lock_accounts, post_movements
from billing.postgres.pool import Connection, Pool, Record, acquired, transaction
from billing.postgres.statements import load_statements

PAGE_MAX = 1000
"""Escrows of one answer."""
_SQL = load_statements("escrows.sql")
_PAYOUT = Side(AccountKind.PAYOUT_ASSET)
_LOSS = Side(AccountKind.OPERATOR_LOSS)


class Observed(NamedTuple):
    """What an observation booked, and the escrow after it. `refund_deferred`: requests may still spend the credit."""

    escrow: Escrow
    moved: tuple[Movement, ...]
    refund_deferred: bool = False


class Escrows:
    """Every method is one transaction and raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def register(self, escrow_id: uuid.UUID, customer_id: uuid.UUID, terms: EscrowTerms) -> Escrow:
        """Watch an escrow for a customer; the caller has checked code, terms and address.

        Registering it again changes nothing; `escrow_id` is for a new one.

        Raises:
            UnknownCustomerError: there is no such customer.
            EscrowConflictError: somebody else has registered it, or the customer has too many unfinished ones.
        """
        async with transaction(self._pool) as connection:
            if await connection.fetchrow(_SQL["lock_customer"], customer_id) is None:
                raise UnknownCustomerError
            known = await _find(connection, None, terms.address)
            if known is not None:
                return _owned(known, customer_id)
            if await connection.fetchval(_SQL["count_unfinished"], customer_id) >= ESCROWS_PER_CUSTOMER_MAX:
                raise EscrowConflictError("too many escrows are not finished")
            await open_customer_accounts(connection, customer_id)
            await connection.execute(_SQL["start_attribution"], customer_id)
            await connection.execute(
                _SQL["insert_escrow"], escrow_id, customer_id, terms.address, terms.code_hash, terms.config,
                terms.client, terms.epoch, terms.voucher_key, terms.operator_key, terms.challenge_s,
                terms.allow_max_nano, terms.allow_rate_nano,
            )  # fmt: skip
            made = await _find(connection, None, terms.address)
            assert made is not None, "it was inserted, or somebody else's was there"
            return _owned(made, customer_id)

    async def find(self, address: str) -> Escrow | None:
        """The escrow at an address in its raw form."""
        async with acquired(self._pool) as connection:
            return await _find(connection, None, address)

    async def of_customer(self, customer_id: uuid.UUID) -> tuple[Escrow, ...]:
        """A customer's escrows, the oldest first; after them the closed ones."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["find_escrows"], customer_id, None, PAGE_MAX)
        return tuple(_escrow(row) for row in rows)

    async def all(self) -> list[Escrow]:
        """Every escrow that was ever registered."""
        async with acquired(self._pool) as connection:
            return [_escrow(row) for row in await connection.fetch(_SQL["find_escrows"], None, None, None)]

    async def watched(self, after: uuid.UUID | None = None, limit: int = PAGE_MAX) -> tuple[Escrow, ...]:
        """Escrows that can change or have something unfinished, by id, behind `after`."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["watched_escrows"], after or uuid.UUID(int=0), limit)
        return tuple(_escrow(row) for row in rows)

    async def observe(self, customer_id: uuid.UUID, address: str, seen: EscrowSeen) -> Observed:
        """Book what a block showed of an escrow; an older block than the last changes nothing.

        Raises:
            UnknownEscrowError: no such escrow of this customer.
            ChainContradictionError: the chain says less than it said before; nothing was booked.
        """
        async with transaction(self._pool) as connection:
            escrow = await _locked(connection, customer_id, address)
            moved = movements(escrow, seen)
            if not is_old(escrow, seen):
                await post_movements(connection, [_leg(escrow, one) for one in moved])
                await connection.execute(
                    _SQL["update_seen"], escrow.escrow_id, state_after(escrow, seen).value, seen.deposited_nano,
                    seen.settled_nano, seen.owed_nano, seen.allow_at_nano, seen.allow_time, seen.close_requested_at,
                    seen.usage_root, seen.seqno, seen.at,
                )  # fmt: skip
            await _attribute(connection, customer_id)
            escrow = await _locked(connection, customer_id, address)
            if not escrow.refund_due_nano:
                return Observed(escrow, moved)
            refunds = await _refund(connection, escrow, seen.seqno)
            escrow = await _locked(connection, customer_id, address)
            return Observed(escrow, (*moved, *refunds), refund_deferred=not refunds)

    async def attribute(self, customer_id: uuid.UUID) -> None:
        """Give the customer's new charges to its escrows."""
        async with transaction(self._pool) as connection:
            await connection.fetch(_SQL["lock_escrows"], customer_id, None)
            await _attribute(connection, customer_id)

    async def attribute_all(self) -> None:
        """Give every customer's new charges to its escrows."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["unattributed_customers"])
        for row in rows:
            await self.attribute(row["customer_id"])

    async def unfinished(self) -> list[Escrow]:
        """All escrows that can change or have something unfinished, by id."""
        found: list[Escrow] = []
        while page := await self.watched(found[-1].escrow_id if found else None):
            found += page
        return found

    async def ask_close(self, customer_id: uuid.UUID, address: str) -> Escrow:
        """Freeze an escrow until the operator has signed what it owes; again changes nothing.

        Raises:
            UnknownEscrowError: no such escrow of this customer.
            CloseNotAgreedError: no terms can be signed for it.
        """
        async with transaction(self._pool) as connection:
            escrow = await _locked(connection, customer_id, address)
            if escrow.terms.operator_key is None or escrow.state not in {EscrowState.OPEN, EscrowState.CLOSING}:
                raise CloseNotAgreedError("the escrow has no operator's key, nothing was deposited, or it is closed")
            await connection.execute(_SQL["ask_close"], escrow.escrow_id)
            return await _locked(connection, customer_id, address)

    async def withdraw_close(self, customer_id: uuid.UUID, address: str) -> None:
        """Serve on an escrow again, as if nobody had asked.

        Raises:
            UnknownEscrowError: no such escrow of this customer.
            CloseAgreedError: the terms are signed.
        """
        async with transaction(self._pool) as connection:
            escrow = await _locked(connection, customer_id, address)
            if escrow.agreed is not None:
                raise CloseAgreedError("the operator has signed what the escrow owes, and that stays")
            await connection.execute(_SQL["withdraw_close"], escrow.escrow_id)

    async def agree_close(
        self, customer_id: uuid.UUID, address: str, sign: Callable[[Escrow], bytes | None]
    ) -> Escrow | None:
        """Fix what an escrow owes, once nothing that runs can be charged to it any more; None until then.

        `sign` is given the escrow as it will stay and signs its `charged_nano`; None where it may not. Grants of leases
        read the ceiling under the account's lock, which is held here: whoever comes later finds the escrow frozen.

        Raises:
            UnknownEscrowError: no such escrow of this customer.
        """
        async with transaction(self._pool) as connection:
            await _locked(connection, customer_id, address)
            await lock_accounts(connection, [Side(AccountKind.CUSTOMER_AVAILABLE, customer_id)])
            if await connection.fetchval(_SQL["promised"], customer_id):
                return None
            await _attribute(connection, customer_id)
            escrow = await _locked(connection, customer_id, address)
            if escrow.close_asked_at is None or escrow.agreed is not None or escrow.state is EscrowState.CLOSED:
                return None
            signature = sign(escrow)
            if signature is None:
                return None
            await connection.execute(_SQL["agree_close"], escrow.escrow_id, escrow.charged_nano, signature)
            return await _locked(connection, customer_id, address)

    async def add_voucher(self, escrow_id: uuid.UUID, voucher: Voucher) -> bool:
        """Keep a voucher whose signature the caller has checked; False when this very one was there.

        Raises:
            UnknownEscrowError: no such escrow.
            StaleVoucherError: it does not promise more than the last one of its signer.
        """
        async with transaction(self._pool) as connection:
            if await connection.fetchrow(_SQL["lock_escrow"], escrow_id) is None:
                raise UnknownEscrowError
            last = await _last_voucher(connection, escrow_id, voucher.signer)
            if last is not None and voucher.cumulative_nano <= last.cumulative_nano:
                if voucher == last:
                    return False
                raise StaleVoucherError(f"{last.cumulative_nano} nano are promised already")
            await connection.execute(
                _SQL["insert_voucher"], escrow_id, voucher.signer.value, voucher.cumulative_nano, voucher.usage_root,
                voucher.signature,
            )  # fmt: skip
            return True

    async def last_voucher(
        self, escrow_id: uuid.UUID, signer: VoucherSigner, *, at_most_nano: int | None = None
    ) -> Voucher | None:
        """The highest voucher of a signer, of those up to `at_most_nano`."""
        async with acquired(self._pool) as connection:
            return await _last_voucher(connection, escrow_id, signer, at_most_nano)


def _escrow(row: Record) -> Escrow:
    """An escrow from its row."""
    return Escrow(
        escrow_id=row["id"],
        customer_id=row["customer_id"],
        terms=EscrowTerms(
            address=row["address"],
            code_hash=row["code_hash"],
            config=row["config"],
            client=row["client"],
            epoch=row["epoch"],
            voucher_key=row["voucher_key"],
            operator_key=row["operator_key"],
            challenge_s=row["challenge_s"],
            allow_max_nano=row["allow_max_nano"],
            allow_rate_nano=row["allow_rate_nano"],
        ),
        state=EscrowState(row["state"]),
        deposited_nano=row["deposited_nano"],
        settled_nano=row["settled_nano"],
        owed_nano=row["owed_nano"],
        refunded_nano=row["refunded_nano"],
        charged_nano=row["charged_nano"],
        allow_at_nano=row["allow_at_nano"],
        allow_time=row["allow_time"],
        close_requested_at=row["close_requested_at"],
        usage_root=row["usage_root"],
        seen_seqno=row["seen_seqno"],
        seen_at=row["seen_at"],
        close_asked_at=row["close_asked_at"],
        agreed=None
        if row["agreed_nano"] is None
        else AgreedClose(cumulative_nano=row["agreed_nano"], signature=row["agreed_signature"]),
    )


def _leg(escrow: Escrow, movement: Movement) -> Leg:
    asset = Side(AccountKind.ESCROW_ASSET, escrow.escrow_id)
    if movement.kind is MovementKind.DEPOSIT:
        return Leg(movement, asset, Side(AccountKind.CUSTOMER_AVAILABLE, escrow.customer_id))
    assert movement.kind is MovementKind.SETTLE, "refunds have their own legs"
    return Leg(movement, _PAYOUT, asset)


async def _refund(connection: Connection, escrow: Escrow, seqno: int) -> tuple[Movement, ...]:
    """What the closed escrow paid back: from the customer's credit, and what it had spent of it from the operator.

    Nothing is moved while less is there than was paid back and requests may still spend or return some.
    """
    customer = Side(AccountKind.CUSTOMER_AVAILABLE, escrow.customer_id)
    asset = Side(AccountKind.ESCROW_ASSET, escrow.escrow_id)
    accounts = await lock_accounts(connection, [customer, asset, _LOSS])
    rows = await connection.fetch(LEDGER_SQL["lock_accounts"], [accounts[customer]], [], [], [])
    [available] = [int(row["available"]) for row in rows]
    due = escrow.refund_due_nano
    if available < due and await connection.fetchval(_SQL["promised"], escrow.customer_id):
        return ()
    covered = min(available, due)
    legs = [
        Leg(_movement(escrow, kind, nano, seqno), debit, asset)
        for kind, nano, debit in (
            (MovementKind.REFUND, covered, customer),
            (MovementKind.FORGONE, due - covered, _LOSS),
        )
        if nano
    ]
    await post_movements(connection, legs)
    await connection.execute(_SQL["add_refunded"], escrow.escrow_id, due)
    return tuple(leg.movement for leg in legs)


def _movement(escrow: Escrow, kind: MovementKind, nano: int, seqno: int) -> Movement:
    return Movement(
        subject=escrow.terms.address, kind=kind, cumulative_nano=nano, amount_nano=nano, seqno=seqno
    )  # an escrow closes once: all of it is the first


async def _attribute(connection: Connection, customer_id: uuid.UUID) -> None:
    cursor = await connection.fetchrow(_SQL["unattributed"], customer_id)
    if cursor is None or not cursor["unattributed"]:
        return
    rows = await connection.fetch(_SQL["find_escrows"], customer_id, None, ESCROWS_PER_CUSTOMER_MAX)
    given = attribute(cursor["unattributed"], [_escrow(row) for row in rows])
    await connection.execute(_SQL["add_charged"], list(given), list(given.values()))
    await connection.execute(_SQL["add_attributed"], customer_id, cursor["unattributed"])


async def _locked(connection: Connection, customer_id: uuid.UUID, address: str) -> Escrow:
    for row in await connection.fetch(_SQL["lock_escrows"], customer_id, address):
        if row["address"] == address:
            return _escrow(row)
    raise UnknownEscrowError


async def _find(connection: Connection, customer_id: uuid.UUID | None, address: str) -> Escrow | None:
    rows: Sequence[Record] = await connection.fetch(_SQL["find_escrows"], customer_id, address, 1)
    return _escrow(rows[0]) if rows else None


async def _last_voucher(
    connection: Connection, escrow_id: uuid.UUID, signer: VoucherSigner, at_most_nano: int | None = None
) -> Voucher | None:
    row = await connection.fetchrow(_SQL["last_voucher"], escrow_id, signer.value, at_most_nano)
    if row is None:
        return None
    return Voucher(
        signer=VoucherSigner(row["signer"]),
        cumulative_nano=row["cumulative_nano"],
        usage_root=row["usage_root"],
        signature=row["signature"],
    )


def _owned(escrow: Escrow, customer_id: uuid.UUID) -> Escrow:
    if escrow.customer_id != customer_id:
        raise EscrowConflictError("another organisation has registered this escrow")
    return escrow
