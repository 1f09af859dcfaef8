"""What a worker's wallet is due at a payout contract, read with proofs; nothing is believed of a gateway."""

from typing import ClassVar

import msgspec

from billing.settlement.contracts import payee_seen
from billing.ton.chain import AccountStatus, BlockRef, Chain
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.epochs import EpochLeaves
from cocoon.contracts.payout import CODE, Claim, PayoutData, account_init
from cocoon.errors import CocoonError
from cocoon.paid import VERSION, Paid


class PayeeError(CocoonError):
    """There is nothing to be claimed like this."""

    code: ClassVar[str] = "nothing_to_claim"


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet at a payout contract as of `block`: what it claimed in all, of which `owed_nano` came back."""

    payout: Address
    wallet: Address
    contract: PayoutData
    block: BlockRef
    claimed_nano: int
    owed_nano: int
    in_flight_nano: int

    @property
    def paid_nano(self) -> int:
        """What the wallet has had, in all."""
        return self.claimed_nano - self.owed_nano - self.in_flight_nano

    @property
    def active_epoch(self) -> int:
        """The epoch that claims are paid under; 0 before the first."""
        return self.contract.active_root(self.block.gen_utime)[0]

    def paid(self, global_id: int) -> Paid:
        """For the worker's agent."""
        return Paid(
            v=VERSION, global_id=global_id, payout=str(self.payout), wallet=str(self.wallet), paid_nano=self.paid_nano,
            fee_bps=self.contract.config.fee_bps, seqno=self.block.seqno, gen_utime=self.block.gen_utime,
        )  # fmt: skip

    def require_known(self, leaves: EpochLeaves) -> None:
        """Check that leaves are of this contract's active or waiting root.

        Raises:
            PayeeError: they are of neither, or of another contract.
            MalformedError: they are not the leaves of the root that they name.
        """
        leaves.tree()
        roots = self.contract.roots
        known = {(roots.epoch, roots.root.hex()), (roots.pending_epoch, roots.pending_root.hex())}
        if leaves.payout != str(self.payout) or (leaves.epoch, leaves.root) not in known:
            raise PayeeError(
                f"the contract {self.payout} does not have the root of these leaves (epoch {leaves.epoch})"
            )

    def claim(self, leaves: EpochLeaves, *, query_id: int) -> Claim:
        """The message that pays what is due.

        Raises:
            PayeeError: nothing is, or not yet, or the leaves are others than the contract's.
            MalformedError: see `require_known`.
        """
        self.require_known(leaves)
        waits_s = self.contract.roots.pending_at - self.block.gen_utime
        if leaves.epoch != self.active_epoch:
            if waits_s <= 0:
                raise PayeeError(f"epoch {leaves.epoch} is over: epoch {self.active_epoch} pays now")
            raise PayeeError(f"epoch {leaves.epoch} pays in {waits_s} s")
        try:
            claim = leaves.tree().claim(self.wallet, query_id=query_id)
        except KeyError:
            raise PayeeError(f"epoch {leaves.epoch} has nothing for {self.wallet}") from None
        if claim.cumulative_nano <= self.claimed_nano and not self.owed_nano:
            raise PayeeError(f"all {claim.cumulative_nano} nano of epoch {leaves.epoch} were claimed")
        return claim


async def read_due(chain: Chain, payout: Address, wallet: Address) -> Due:
    """What the chain says as of its last block.

    Raises:
        PayeeError: another contract is there, or none.
        ChainError, MalformedError: see `Chain` and the contract's data.
    """
    head = await chain.head()
    state = await chain.account(payout, head)
    if state.status is not AccountStatus.ACTIVE or state.data is None or state.code_hash != code_of(CODE).hash:
        raise PayeeError(f"there is no payout contract that we know at {payout}")
    contract = PayoutData.decode(state.data)
    account = account_init(contract.config.account_code, payout, wallet).address
    seen = payee_seen(await chain.account(account, head), contract.config, payout, wallet)
    return Due(
        payout=payout, wallet=wallet, contract=contract, block=head,
        claimed_nano=0 if seen is None else seen.claimed_nano,
        owed_nano=0 if seen is None else seen.owed_nano,
        in_flight_nano=0 if seen is None else seen.in_flight_nano,
    )  # fmt: skip
