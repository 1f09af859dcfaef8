"""The log's anchor on TON, read from the operator's payout contract with a proof."""

from typing import ClassVar

from billing.ton.chain import AccountStatus, Chain
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.payout import CODE, PayoutData
from cocoon.errors import CocoonError
from cocoon_client.verification.log import Anchored


class NoPayoutContractError(CocoonError):
    """There is no payout contract that we know at that address."""

    code: ClassVar[str] = "payout_contract_unknown"


async def anchor_of(chain: Chain, payout: Address) -> Anchored:
    """The last anchor in a payout contract, as of the last block.

    Raises:
        ChainError: nobody answered, or the answers do not prove themselves.
        NoPayoutContractError: another contract, or none.
    """
    state = await chain.account(payout)
    if state.status is not AccountStatus.ACTIVE or state.data is None or state.code_hash != code_of(CODE).hash:
        raise NoPayoutContractError
    found = PayoutData.decode(state.data).anchor
    return Anchored(found.count, found.origin_hash, found.size, found.root, state.block.seqno)
