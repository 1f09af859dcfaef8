"""What the biller wants from the chain now, decided anew each time from the books.

Nothing here sends; `billing.settlement.biller` hands what is wanted to the outbox.
"""

import datetime as dt
import hashlib
from collections.abc import Sequence

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.escrows import Escrow, EscrowState, Voucher, VoucherSigner
from billing.payouts import Epoch, Payee, PayoutSeen
from billing.postgres.alarms import Alarms
from billing.postgres.escrows import Escrows
from billing.postgres.payouts import Payouts
from billing.settlement import actions
from billing.settlement.actions import Action
from cocoon.addresses import Address
from cocoon.clock import Clock
from cocoon.contracts.payout import EpochTree

SETTLE_GRACE_S = 120.0
"""How long an epoch that is due waits for the vouchers that were sent for it."""
ALARM_PART = 4
"""An alarm is raised when less than this part of the challenge window is left and something is not settled."""
NO_ROOT = bytes(32)
log = structlog.get_logger()


class SettlePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a voucher is worth its gas: from `settle_min_nano` on; at the end of an epoch and at a close always."""

    global_id: int
    settle_min_nano: int


class SettlePlan:
    """Vouchers, closes and what bounced. `outstanding` counts escrows with something to settle at the last look."""

    def __init__(
        self, escrows: Escrows, alarms: Alarms, policy: SettlePolicy, voucher_key: Ed25519PrivateKey | None
    ) -> None:
        self._escrows = escrows
        self._alarms = alarms
        self._policy = policy
        self._key = voucher_key
        self.outstanding = 0

    async def wanted(self, now: int, *, every: bool) -> list[Action]:
        """What is wanted at Unix time `now` of the chain; `every` voucher that is worth anything, or those worth it.

        Raises:
            LedgerUnavailableError: ask again.
        """
        await self._escrows.attribute_all()
        found: list[Action] = []
        deadlines: dict[str, str] = {}
        self.outstanding = 0
        for escrow in await self._escrows.unfinished():
            if escrow.owed_nano:
                found.append(actions.retry_owed(escrow))
            if escrow.state not in {EscrowState.OPEN, EscrowState.CLOSING}:
                continue
            if escrow.close_asked_at is not None and escrow.agreed is None:
                await self._agree(escrow)
            closing = escrow.state is EscrowState.CLOSING
            over = closing and now >= escrow.challenge_ends_at
            if over:
                found.append(actions.finalize(escrow))
            voucher, due = (None, 0) if over else await self._best(escrow, now)
            if voucher is not None:
                self.outstanding += 1
                if closing or every or due >= self._policy.settle_min_nano:
                    found.append(actions.settle(escrow, voucher, global_id=self._policy.global_id))
            if closing:
                deadlines |= deadline_alarm(escrow, now)
        await self._alarms.set("close_deadline", deadlines)
        return found

    async def _agree(self, escrow: Escrow) -> None:
        """Sign what an escrow owes whose client wants to close it at once."""
        address = escrow.terms.address
        agreed = await self._escrows.agree_close(escrow.customer_id, address, self._sign_close)
        if agreed is not None:
            log.info("biller_close_agreed", escrow=address, cumulative_nano=agreed.charged_nano)

    def _sign_close(self, escrow: Escrow) -> bytes | None:
        key = self._own_key(escrow)
        terms = actions.close_terms(escrow, escrow.charged_nano, global_id=self._policy.global_id)
        return None if key is None else terms.sign(key)

    def _own_key(self, escrow: Escrow) -> Ed25519PrivateKey | None:
        key = self._key
        ours = key is not None and escrow.terms.operator_key == key.public_key().public_bytes_raw()
        return key if ours else None

    async def _best(self, escrow: Escrow, now: int) -> tuple[Voucher | None, int]:
        """The voucher that pays most now, and what it pays; the operator's own is signed and kept when it does."""
        session = await self._escrows.last_voucher(
            escrow.escrow_id, VoucherSigner.SESSION, at_most_nano=escrow.charged_nano
        )
        promised = 0 if session is None else min(session.cumulative_nano, escrow.deposited_nano)
        allowed = min(escrow.charged_nano, escrow.settled_nano + escrow.allowance_nano(now))
        key = self._own_key(escrow)
        if key is not None and allowed > max(promised, escrow.settled_nano):
            return await self._sign(escrow, key), allowed - escrow.settled_nano
        return (session, promised - escrow.settled_nano) if promised > escrow.settled_nano else (None, 0)

    async def _sign(self, escrow: Escrow, key: Ed25519PrivateKey) -> Voucher:
        nano = escrow.charged_nano
        cell = actions.voucher_cell(escrow, nano, NO_ROOT, global_id=self._policy.global_id)
        voucher = Voucher(
            signer=VoucherSigner.OPERATOR, cumulative_nano=nano, usage_root=NO_ROOT, signature=cell.sign(key)
        )
        await self._escrows.add_voucher(escrow.escrow_id, voucher)
        return voucher


def deadline_alarm(escrow: Escrow, now: int) -> dict[str, str]:
    """The alarm of a closing escrow whose window runs out before everything that was charged is settled."""
    missing = min(escrow.charged_nano, escrow.deposited_nano) - escrow.settled_nano
    left = escrow.challenge_ends_at - now
    if missing <= 0 or left > escrow.terms.challenge_s // ALARM_PART:
        return {}
    when = f"{left} s are left" if left > 0 else "the window is over"
    return {escrow.terms.address: f"{missing} nano are not settled and {when}"}


class EpochPlan:
    """Epochs: when one is due, every voucher is settled first; then it is fixed and posted, and claimed from."""

    def __init__(self, payouts: Payouts, clock: Clock, *, payout: Address, epoch_s: float, claim_min_nano: int) -> None:
        self._payouts = payouts
        self._clock = clock
        self._payout = payout
        self._epoch_s = epoch_s
        self._claim_min_nano = claim_min_nano
        self._due_since: float | None = None
        self._not_before = float("-inf")
        self._tree: tuple[int, EpochTree] | None = None

    async def is_due(self) -> bool:
        """Whether the next epoch waits for its vouchers."""
        last = await self._payouts.last_epoch()
        now = self._clock.monotonic()
        old = last is None or self._clock.now() - last.created_at >= dt.timedelta(seconds=self._epoch_s)
        due = now >= self._not_before and old and (last is None or last.active_at is not None)
        if not due:
            self._due_since = None
        elif self._due_since is None:
            self._due_since = now
        return due

    async def prepare(self, seen: PayoutSeen, outstanding: int) -> Epoch | None:
        """Fix the epoch that is due, when its vouchers are settled or have had their time."""
        if self._due_since is None or seen.pending_epoch:
            return None
        if outstanding and self._clock.monotonic() - self._due_since < SETTLE_GRACE_S:
            return None
        self._due_since = None
        self._not_before = self._clock.monotonic() + self._epoch_s
        return await self._payouts.prepare_epoch(seen.received_nano - seen.fee_max_nano)

    async def wanted(self, seen: PayoutSeen) -> list[Action]:
        """The root that is not posted yet, or the claims of the epoch that pays."""
        last = await self._payouts.last_epoch()
        if last is None:
            return []
        if seen.active_epoch == last.epoch - 1 and not seen.pending_epoch:
            return [actions.post_root(self._payout, last.epoch, last.root, last.total_nano)]
        if seen.active_epoch != last.epoch:
            return []
        open_ = open_claims(await self._payouts.payees(), self._claim_min_nano)
        if not open_:
            return []
        tree = await self._tree_of(last.epoch)
        return [
            actions.claim(
                self._payout, tree, payee.wallet, epoch=last.epoch, claimed_nano=payee.claimed_nano,
                owed_nano=payee.owed_nano,
            )
            for payee in open_
        ]  # fmt: skip

    async def _tree_of(self, epoch: int) -> EpochTree:
        if self._tree is None or self._tree[0] != epoch:
            self._tree = epoch, await self._payouts.tree(epoch)
        return self._tree[1]


def open_claims(payees: Sequence[Payee], claim_min_nano: int) -> list[Payee]:
    """Those who are due enough to be worth the gas of a claim."""
    return [
        payee for payee in payees if payee.leaf_nano - payee.claimed_nano + payee.owed_nano >= max(1, claim_min_nano)
    ]


class AnchorPlan:
    """The log's last checkpoint, anchored once in an epoch's time."""

    def __init__(self, payouts: Payouts, clock: Clock, *, payout: Address, epoch_s: float) -> None:
        self._payouts = payouts
        self._clock = clock
        self._payout = payout
        self._epoch_s = epoch_s
        self._wanted: tuple[float, Action] | None = None

    async def wanted(self, seen: PayoutSeen) -> list[Action]:
        """The anchor that is due."""
        checkpoint = await self._payouts.last_checkpoint()
        now = self._clock.monotonic()
        if checkpoint is None or checkpoint.size <= seen.anchor_size:
            return []
        if self._wanted is None or now - self._wanted[0] >= self._epoch_s:
            origin = checkpoint.note.partition("\n")[0]
            origin_hash = hashlib.sha256(origin.encode()).digest()
            self._wanted = now, actions.anchor(self._payout, origin_hash, checkpoint.size, checkpoint.root)
        return [self._wanted[1]] if int(self._wanted[1].purpose.rpartition(":")[2]) > seen.anchor_size else []
