"""The log's anchor on TON, read from the operator's payout contract with a proof."""

from pathlib import Path
from typing import ClassVar

from billing.ton.chain import AccountStatus, Chain
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cocoon.addresses import Address
from cocoon.clock import SystemClock
from cocoon.contracts.codes import code_of
from cocoon.contracts.payout import CODE, PayoutData
from cocoon.errors import CocoonError
from cocoon_client.verification.log import Anchored


class NoPayoutContractError(CocoonError):
    """There is no payout contract that we know at that address."""

    code: ClassVar[str] = "payout_contract_unknown"


async def read_anchor(liteservers: Path, payout: str, global_id: int) -> Anchored:
    """The last anchor in a payout contract of this network, as of the last block.

    Raises:
        SettingsError: the file names no liteservers.
        MalformedError: not an address.
        ChainUnavailableError: no liteserver answered.
        ChainProofError: the answers do not prove themselves.
        NoPayoutContractError: another contract, or none.
    """
    address = Address.parse_any(payout)
    async with LiteChain(read_liteservers(liteservers), SystemClock(), global_id=global_id) as chain:
        return await anchor_of(chain, address)


async def anchor_of(chain: Chain, payout: Address) -> Anchored:
    """As `read_anchor`, of an open chain."""
    state = await chain.account(payout)
    if state.status is not AccountStatus.ACTIVE or state.data is None or state.code_hash != code_of(CODE).hash:
        raise NoPayoutContractError
    found = PayoutData.decode(state.data).anchor
    return Anchored(found.count, found.origin_hash, found.size, found.root, state.block.seqno)
