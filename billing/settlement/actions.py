"""What the biller asks the chain for: each a message with a purpose that names what it is to bring about.

The attached values are more than any operation needs; contracts send back what is left. docs/contracts.md has what each
costs.
"""

import msgspec

from billing.escrows import Escrow, Voucher, VoucherSigner
from billing.slashing import KeptEvidence
from billing.ton.outbox import query_id_of
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.cells import Cell
from cocoon.contracts import escrow as escrow_messages
from cocoon.contracts.messages import Operation
from cocoon.contracts.payout import EpochTree, PostAnchor, PostRoot, WithdrawFee
from cocoon.contracts.stake import Slash

SETTLE_NANO = 100_000_000
FINALIZE_NANO = 50_000_000
OWED_NANO = 50_000_000
ROOT_NANO = 50_000_000
CLAIM_NANO = 100_000_000
ANCHOR_NANO = 50_000_000
FEE_NANO = 50_000_000
SLASH_NANO = 50_000_000


class Action(msgspec.Struct, frozen=True):
    """One message that is wanted now, and what it is for."""

    purpose: str
    transfer: Transfer


def settle(escrow: Escrow, voucher: Voucher, *, global_id: int) -> Action:
    """Have an escrow pay what a voucher is worth."""
    purpose = f"settle:{escrow.terms.address}:{voucher.signer}:{voucher.cumulative_nano}:{escrow.settled_nano}"
    body = escrow_messages.Settle(
        query_id=query_id_of(purpose),
        signer=_signer(voucher.signer),
        signature=voucher.signature,
        voucher=voucher_cell(escrow, voucher.cumulative_nano, voucher.usage_root, global_id=global_id).encode(),
    )
    return _action(purpose, escrow.terms.address, SETTLE_NANO, body)


def finalize(escrow: Escrow) -> Action:
    """Have a closing escrow refund its client: the window is over."""
    purpose = f"finalize:{escrow.terms.address}"
    return _action(purpose, escrow.terms.address, FINALIZE_NANO, escrow_messages.Finalize(query_id_of(purpose)))


def retry_owed(escrow: Escrow) -> Action:
    """Have an escrow send once more what came back from the payout contract."""
    purpose = f"owed:{escrow.terms.address}:{escrow.settled_nano}:{escrow.owed_nano}"
    return _action(purpose, escrow.terms.address, OWED_NANO, escrow_messages.RetryOwed(query_id_of(purpose)))


def post_root(payout: Address, epoch: int, root: bytes, total_nano: int) -> Action:
    """Name an epoch's root."""
    purpose = f"root:{payout}:{epoch}"
    return _action(purpose, str(payout), ROOT_NANO, PostRoot(query_id_of(purpose), epoch, root, total_nano))


def claim(payout: Address, tree: EpochTree, wallet: str, *, epoch: int, claimed_nano: int, owed_nano: int) -> Action:
    """Have a worker paid what it has earned and not had."""
    purpose = f"claim:{epoch}:{wallet}:{claimed_nano}:{owed_nano}"
    body = tree.claim(Address.parse(wallet), query_id=query_id_of(purpose))
    return _action(purpose, str(payout), CLAIM_NANO, body)


def anchor(payout: Address, origin_hash: bytes, size: int, root: bytes) -> Action:
    """Anchor a checkpoint of the transparency log."""
    purpose = f"anchor:{payout}:{size}"
    return _action(purpose, str(payout), ANCHOR_NANO, PostAnchor(query_id_of(purpose), origin_hash, size, root))


def withdraw_fee(payout: Address, amount_nano: int, *, withdrawn_nano: int) -> Action:
    """Take the operator's fee where `withdrawn_nano` of it were taken; of several amounts the first one counts."""
    purpose = f"fee:{payout}:{withdrawn_nano}"
    return _action(purpose, str(payout), FEE_NANO, WithdrawFee(query_id_of(purpose), amount_nano))


def slash(kept: KeptEvidence, evidence: Cell) -> Action:
    """Have a stake judge what is kept against its worker; the bounty comes to the operator's wallet."""
    purpose = f"slash:{kept.stake}:{kept.id}"
    return _action(purpose, kept.stake, SLASH_NANO, Slash(query_id_of(purpose), kept.kind, evidence))


def voucher_cell(escrow: Escrow, cumulative_nano: int, usage_root: bytes, *, global_id: int) -> escrow_messages.Voucher:
    """What is signed for an escrow."""
    return escrow_messages.Voucher(
        global_id=global_id,
        escrow=Address.parse(escrow.terms.address),
        epoch=escrow.terms.epoch,
        cumulative_nano=cumulative_nano,
        usage_root=usage_root,
    )


def close_terms(escrow: Escrow, cumulative_nano: int, *, global_id: int) -> escrow_messages.CloseTerms:
    """What the operator signs for a client that closes at once."""
    return escrow_messages.CloseTerms(
        global_id=global_id,
        escrow=Address.parse(escrow.terms.address),
        epoch=escrow.terms.epoch,
        cumulative_nano=cumulative_nano,
    )


def _signer(signer: VoucherSigner) -> escrow_messages.Signer:
    return escrow_messages.Signer.SESSION if signer is VoucherSigner.SESSION else escrow_messages.Signer.OPERATOR


def _action(purpose: str, destination: str, value_nano: int, body: Operation) -> Action:
    return Action(purpose, Transfer(Address.parse(destination), value_nano, body.encode()))
