"""What an account's state says, as the books take it: only of contracts whose code and terms are known."""

import datetime as dt
from collections.abc import Callable
from typing import ClassVar, TypeVar

from billing.escrows import EscrowError, EscrowSeen, EscrowState, EscrowTerms
from billing.payouts import PayeeSeen, PayoutSeen
from billing.stakes import StakeSeen
from billing.ton.chain import AccountState, AccountStatus
from cocoon.addresses import Address
from cocoon.cells import Cell, read_boc
from cocoon.contracts.escrow import EscrowData, EscrowPhase
from cocoon.contracts.payout import PayoutAccountData, PayoutConfig, PayoutData
from cocoon.contracts.stake import StakeData, StakePhase
from cocoon.errors import MalformedError

Read = TypeVar("Read")

_STATES = {
    EscrowPhase.OPEN: EscrowState.OPEN,
    EscrowPhase.CLOSING: EscrowState.CLOSING,
    EscrowPhase.CLOSED: EscrowState.CLOSED,
}


class ForeignContractError(EscrowError):
    """The account is not the contract that it should be: other code, other terms, frozen, or unreadable data."""

    code: ClassVar[str] = "foreign_contract"


def escrow_seen(state: AccountState, terms: EscrowTerms) -> EscrowSeen | None:
    """What an escrow's account says; None before it is deployed.

    Raises:
        ForeignContractError: other code or terms than were registered.
    """
    data = _data(state, terms.code_hash)
    if data is None:
        return None
    read = _decoded(EscrowData.decode, data, state)
    if read.config.encode().hash != read_boc(terms.config).hash:
        raise ForeignContractError(f"{state.address} has other terms than were registered")
    return EscrowSeen(
        seqno=state.block.seqno,
        at=block_time(state),
        state=_STATES[read.phase],
        deposited_nano=read.deposited_nano,
        settled_nano=read.settled_nano,
        owed_nano=read.owed_nano,
        allow_at_nano=read.allow_at_nano,
        allow_time=read.allow_time,
        close_requested_at=read.close_requested_at,
        usage_root=read.usage_root,
    )


def payout_seen(state: AccountState, code_hash: bytes, operator: Address) -> tuple[PayoutSeen, PayoutConfig]:
    """What the payout contract's account says, and its configuration.

    Raises:
        ForeignContractError: it is not deployed, has other code, or obeys another operator than we send from.
    """
    data = _data(state, code_hash)
    if data is None:
        raise ForeignContractError(f"there is no contract at {state.address}")
    read = _decoded(PayoutData.decode, data, state)
    if read.config.operator != operator:
        raise ForeignContractError(f"{state.address} obeys {read.config.operator}, not {operator}")
    now = state.block.gen_utime
    epoch, root, total_nano = read.active_root(now)
    pending = read.roots.pending_epoch if read.roots.pending_epoch != epoch else 0
    seen = PayoutSeen(
        seqno=state.block.seqno,
        at=block_time(state),
        received_nano=read.received_nano,
        paid_nano=read.paid_nano,
        fee_withdrawn_nano=read.fee_withdrawn_nano,
        fee_max_nano=read.fee_max_nano,
        active_epoch=epoch,
        active_root=root,
        active_total_nano=total_nano,
        pending_epoch=pending,
        pending_root=read.roots.pending_root,
        anchor_count=read.anchor.count,
        anchor_size=read.anchor.size,
        anchor_root=read.anchor.root,
    )
    return seen, read.config


def payee_seen(state: AccountState, config: PayoutConfig, payout: Address, wallet: Address) -> PayeeSeen | None:
    """What a worker's child of the payout contract says; None before its first claim.

    Raises:
        ForeignContractError: not the child of this payout contract for this wallet.
    """
    data = _data(state, config.account_code.hash)
    if data is None:
        return None
    read = _decoded(PayoutAccountData.decode, data, state)
    if (read.payout, read.worker) != (payout, wallet):
        raise ForeignContractError(f"{state.address} belongs to {read.worker} at {read.payout}")
    return PayeeSeen(
        seqno=state.block.seqno,
        at=block_time(state),
        claimed_nano=read.claimed_nano,
        owed_nano=read.owed_nano,
        in_flight_nano=read.in_flight_nano,
    )


def stake_seen(state: AccountState, code_hash: bytes, operator_key: bytes) -> StakeSeen | None:
    """What a stake's account says; None before it is deployed.

    Raises:
        ForeignContractError: other code, or tickets under another operator's key count for it.
    """
    data = _data(state, code_hash)
    if data is None:
        return None
    read = _decoded(StakeData.decode, data, state)
    if read.config.operator_key != operator_key:
        raise ForeignContractError(f"{state.address} is a stake for another operator")
    return StakeSeen(
        seqno=state.block.seqno,
        at=block_time(state),
        slashed=read.phase is StakePhase.SLASHED,
        owner=str(read.config.owner),
        staked_key=read.config.staked_key,
        operator_key=read.config.operator_key,
        unbond_s=read.config.unbond_s,
        bond_nano=read.bond_nano,
        unbonding_nano=read.unbonding_nano,
        unbond_at=read.unbond_at,
    )


def block_time(state: AccountState) -> dt.datetime:
    """The chain's time of the block that a state was read at."""
    return dt.datetime.fromtimestamp(state.block.gen_utime, tz=dt.UTC)


def _data(state: AccountState, code_hash: bytes) -> Cell | None:
    if state.status in {AccountStatus.ABSENT, AccountStatus.UNINITIALISED}:
        return None
    if state.status is not AccountStatus.ACTIVE or state.data is None:
        raise ForeignContractError(f"{state.address} is {state.status}")
    if state.code_hash != code_hash:
        raise ForeignContractError(f"{state.address} has other code than ours")
    return state.data


def _decoded(decode: Callable[[Cell], Read], data: Cell, state: AccountState) -> Read:
    try:
        return decode(data)
    except MalformedError as error:
        raise ForeignContractError(f"{state.address} has data that we cannot read: {error}") from error
