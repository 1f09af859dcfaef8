"""Reconciliation: usage, receipts, transfers, and the contracts on the chain, to the nano.

The chain is read at one block, the books after it. What the chain has moved and the biller has not booked yet is a
difference, as is the other way round: whoever asks while money moves asks again. A liteserver that is behind what the
books have seen cannot tell, which is no difference. What can be explained is named with its amount; nothing is
corrected.
"""

from collections.abc import Sequence
from typing import ClassVar

from billing.escrows import Escrow, EscrowState
from billing.payouts import Payee
from billing.postgres.check import broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.payouts import Payouts
from billing.postgres.pool import Connection, Pool, Record, acquired
from billing.postgres.statements import load_statements
from billing.settlement.contracts import ForeignContractError, escrow_seen, payee_seen
from billing.settlement.ties import EpochLine, Report, Ties
from billing.ton.chain import TRANSACTIONS_MAX, AccountState, BlockRef, Chain, ChainUnavailableError
from cocoon.addresses import Address
from cocoon.cells import Cell
from cocoon.contracts.codes import code_of
from cocoon.contracts.messages import operation_of
from cocoon.contracts.payout import CODE as PAYOUT
from cocoon.contracts.payout import Fund, PayoutData, account_init
from cocoon.errors import MalformedError

BOOKS, CHAIN, RECEIPTS, LEAVES = "books", "chain", "receipts", "leaves"
_SQL = load_statements("reconcile.sql")


class LiteserverBehindError(ChainUnavailableError):
    """The books have seen `contract` as of block `seen_seqno`; the liteservers have no block after `seqno` yet."""

    code: ClassVar[str] = "liteserver_behind"

    def __init__(self, contract: str, seen_seqno: int, seqno: int) -> None:
        super().__init__(f"the books have seen {contract} as of block {seen_seqno}; the liteservers are at {seqno}")
        self.contract = contract
        self.seen_seqno = seen_seqno
        self.seqno = seqno


async def reconcile(pool: Pool, chain: Chain, payout: Address) -> Report:
    """Compare everything once.

    Raises:
        LedgerUnavailableError, ChainUnavailableError, ChainProofError: not everything could be read.
        LiteserverBehindError: the chain is older here than what is in the books, so that nothing was compared.
    """
    ties = Ties()
    head = await _head(pool, chain)
    async with acquired(pool) as connection:
        for row in await broken_invariants(connection):
            ties.broken("books", row.subject, row.invariant, row.expected, row.actual)
        await _receipts(connection, ties)
        epochs = await connection.fetch(_SQL["epochs_with_leaves"])
        earned = {row["wallet"]: row for row in await connection.fetch(_SQL["earned_by_payee"])}
        contract = await connection.fetchrow(_SQL["contract_in_the_books"])
    escrows = await Escrows(pool).all()
    settled, owed = 0, 0
    for escrow in escrows:
        nano = await _escrow(chain, head, escrow, ties)
        settled, owed = settled + nano[0], owed + nano[1]
    payouts = Payouts(pool, str(payout))
    state = await chain.account(payout, head)
    data = _payout_data(state, ties)
    if data is not None:
        ours = {Address.parse(one.terms.address) for one in escrows}
        _contract(state, data, contract, ties)
        await _received(chain, payout, data, settled - owed, ours, ties)
        await _payees(_Children(chain, head, payout, data), await payouts.payees(), earned, ties)
        await _epochs(payouts, epochs, data, head, ties)
    elif contract is not None:
        ties.broken("payout", str(payout), "contract is on the chain", 1, 0)
    lines = tuple(
        EpochLine(
            epoch=row["epoch"], added_nano=row["added_nano"], total_nano=row["total_nano"],
            state="active" if row["active_at"] else "posted" if row["posted_at"] else "fixed",
        )
        for row in epochs
    )  # fmt: skip
    return Report(seqno=head.seqno, utime=head.gen_utime, ties=tuple(ties.found), epochs=lines)


async def _head(pool: Pool, chain: Chain) -> BlockRef:
    """The last block, which is none before what the books had seen when it was asked for."""
    async with acquired(pool) as connection:
        seen = await connection.fetchrow(_SQL["seen_last"])
    head = await chain.head()
    if seen is not None and head.seqno < seen["seqno"]:
        raise LiteserverBehindError(seen["contract"], seen["seqno"], head.seqno)
    return head


class _Children:
    """Where the children of a payout contract are read."""

    def __init__(self, chain: Chain, head: BlockRef, payout: Address, data: PayoutData) -> None:
        self._chain = chain
        self._head = head
        self._payout = payout
        self.data = data

    async def read(self, payee: Payee) -> tuple[int, int, int]:
        """Claimed, owed and in flight of a wallet's child; zeros before its first claim."""
        wallet = Address.parse(payee.wallet)
        account = account_init(self.data.config.account_code, self._payout, wallet).address
        state = await self._chain.account(account, self._head)
        seen = payee_seen(state, self.data.config, self._payout, wallet)
        return (0, 0, 0) if seen is None else (seen.claimed_nano, seen.owed_nano, seen.in_flight_nano)


async def _receipts(connection: Connection, ties: Ties) -> None:
    for row in await connection.fetch(_SQL["receipts_that_differ"]):
        reason = row["recorded"] or (None if row["outcome"] == "completed" else row["outcome"])
        gap = row["booked"] - row["claimed"]
        if reason is not None:
            explained = (gap, f"recorded: {reason}")
            ties.equal("usage", f"job {row['job_id']}", "tokens", ("usage", row["booked"]),
                       (RECEIPTS, row["claimed"]), explained)  # fmt: skip
        else:
            ties.broken("usage", f"job {row['job_id']}", "tokens of the receipt", row["claimed"], row["booked"])
    totals = await connection.fetchrow(_SQL["usage_totals"])
    balances = {row["kind"]: row for row in await connection.fetch(_SQL["account_totals"])}
    assert totals is not None, "an aggregate has a row"
    missing = int(totals["charged_without_receipt"])
    ties.equal(
        "usage", "all", "charged, with a receipt", ("usage", int(totals["charged"])),
        (RECEIPTS, int(totals["charged"]) - missing),
        (missing, f"{totals['without_receipt']} requests whose receipts are not here"),
    )  # fmt: skip
    for what, kind, side, column in (
        ("charges", "customer_leased", "debits", "charged"),
        ("shares", "worker_payable", "credits", "shared"),
    ):
        booked = int(balances[kind][side]) if kind in balances else 0
        ties.equal("usage", "all", what, ("usage", int(totals[column])), ("transfers", booked))


async def _escrow(chain: Chain, head: BlockRef, escrow: Escrow, ties: Ties) -> tuple[int, int]:
    """Compare one escrow; what the chain says it has settled and what it still owes of that."""
    address = escrow.terms.address
    state = await chain.account(Address.parse(address), head)
    try:
        seen = escrow_seen(state, escrow.terms)
    except ForeignContractError as error:
        ties.broken("escrow", address, str(error), 1, 0)
        return 0, 0
    deposited, settled, owed = (0, 0, 0) if seen is None else (seen.deposited_nano, seen.settled_nano, seen.owed_nano)
    closed = seen is not None and seen.state is EscrowState.CLOSED
    refunded = deposited - settled if closed else 0
    for what, booked, there in (
        ("deposited", escrow.deposited_nano, deposited),
        ("settled", escrow.settled_nano, settled),
        ("owed to the payout contract", escrow.owed_nano, owed),
    ):
        ties.equal("escrow", address, what, (BOOKS, booked), (CHAIN, there))
    waiting = escrow.refund_due_nano
    ties.equal("escrow", address, "refunded", (CHAIN, refunded), (BOOKS, escrow.refunded_nano),
               (waiting, "requests may still spend the credit"))  # fmt: skip
    pending = max(0, escrow.charged_nano - escrow.settled_nano)
    reason = "the escrow is closed: the operator's loss" if closed else "charged, to be settled"
    ties.equal("escrow", address, "charged and settled", ("charges", escrow.charged_nano), (CHAIN, settled),
               (pending, reason))  # fmt: skip
    if seen is not None:
        ties.at_least("escrow", address, "holds what it owes", ("balance", state.balance_nano),
                      ("client and operator", deposited - settled - refunded + owed))  # fmt: skip
    return settled, owed


def _payout_data(state: AccountState, ties: Ties) -> PayoutData | None:
    if state.data is None:
        return None
    if state.code_hash != code_of(PAYOUT).hash:
        ties.broken("payout", str(state.address), "code is ours", 1, 0)
        return None
    try:
        return PayoutData.decode(state.data)
    except MalformedError:
        ties.broken("payout", str(state.address), "data is readable", 1, 0)
        return None


def _contract(state: AccountState, data: PayoutData, row: Record | None, ties: Ties) -> None:
    address = str(state.address)
    booked = dict(row) if row is not None else {}
    for what, column, there in (
        ("received", "received_nano", data.received_nano),
        ("paid", "paid_nano", data.paid_nano),
        ("fee withdrawn", "fee_withdrawn_nano", data.fee_withdrawn_nano),
        ("anchors", "anchor_count", data.anchor.count),
        ("log size that is anchored", "anchor_size", data.anchor.size),
    ):
        ties.equal("payout", address, what, (BOOKS, int(booked.get(column, 0))), (CHAIN, there))
    ties.at_least(
        "payout", address, "holds what it owes", ("balance", state.balance_nano),
        ("workers and operator", data.received_nano - data.paid_nano - data.fee_withdrawn_nano),
    )  # fmt: skip


async def _received(
    chain: Chain, payout: Address, data: PayoutData, sent_nano: int, ours: set[Address], ties: Ties
) -> None:
    """What escrows have settled and are not owed back, against what the payout contract received."""
    explained = 0
    if data.received_nano > sent_nano:
        transactions = await chain.transactions(payout, limit=TRANSACTIONS_MAX)
        strangers = sum(
            _funded(one.incoming.body)
            for one in transactions
            if one.succeeded and one.incoming is not None and one.incoming.source not in ours
        )
        explained = -min(strangers, data.received_nano - sent_nano)
    ties.equal(
        "payout", str(payout), "settled by escrows and received", ("escrows", sent_nano),
        (CHAIN, data.received_nano), (explained, "funded by others than escrows"),
    )  # fmt: skip


def _funded(body: Cell) -> int:
    found = operation_of(body)
    if found is None or found[0] != Fund.TAG:
        return 0
    try:
        return Fund.decode(body).amount_nano
    except MalformedError:
        return 0


async def _payees(children: _Children, payees: tuple[Payee, ...], earned: dict[str, Record], ties: Ties) -> None:
    paid, in_flight = 0, 0
    for payee in payees:
        try:
            claimed, owed, flying = await children.read(payee)
        except ForeignContractError as error:
            ties.broken("worker", payee.wallet, str(error), 1, 0)
            continue
        paid, in_flight = paid + claimed - owed - flying, in_flight + flying
        net = payee.paid_nano - payee.returned_nano
        ties.equal("worker", payee.wallet, "claimed", (BOOKS, payee.claimed_nano), (CHAIN, claimed))
        ties.equal("worker", payee.wallet, "owed", (BOOKS, payee.owed_nano), (CHAIN, owed))
        ties.equal("worker", payee.wallet, "paid", (BOOKS, net), (CHAIN, claimed - owed - flying))
        open_ = payee.leaf_nano - (claimed - owed - flying)
        ties.equal("worker", payee.wallet, "may claim and paid", (LEAVES, payee.leaf_nano),
                   (CHAIN, claimed - owed - flying), (max(0, open_), "not claimed yet"))  # fmt: skip
        row = earned.get(payee.wallet)
        total, payable = (0, 0) if row is None else (int(row["earned"]), int(row["payable"]))
        ties.equal("worker", payee.wallet, "earned and may claim", ("shares", total), (LEAVES, payee.leaf_nano),
                   (payable, "for a later epoch"))  # fmt: skip
    ties.equal(
        "payout", "all workers", "paid", ("accounts of workers", paid), (CHAIN, children.data.paid_nano),
        (-min(in_flight, max(0, children.data.paid_nano - paid)), "payments under way"),
    )  # fmt: skip


async def _epochs(payouts: Payouts, rows: Sequence[Record], data: PayoutData, head: BlockRef, ties: Ties) -> None:
    roots: dict[int, bytes] = {}
    for row in rows:
        tree = await payouts.tree(row["epoch"])
        roots[row["epoch"]] = tree.root
        ties.equal("epoch", str(row["epoch"]), "total", ("epoch", row["total_nano"]), (LEAVES, tree.total_nano))
        if tree.root != row["root"]:
            ties.broken("epoch", str(row["epoch"]), "root of its leaves", 1, 0)
    active, root, total = data.active_root(head.gen_utime)
    if active:
        if roots.get(active) != root:
            ties.broken("epoch", str(active), "root on the chain", 1, 0)
        known = sum(row["total_nano"] for row in rows if row["epoch"] == active)
        ties.equal("epoch", str(active), "total on the chain", (BOOKS, known), (CHAIN, total))
    waiting = data.roots.pending_epoch
    if waiting and roots.get(waiting) != data.roots.pending_root:
        ties.broken("epoch", str(waiting), "root that waits on the chain", 1, 0)
