"""What a worker's stake is deployed with: the network's terms, as far as they are what its owner meant and can bear.

A gateway says its terms and proves nothing, so everything is checked before a key is made or money moves.
"""

import msgspec

from cli.contract import ContractError
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import BOUNTY_BPS_MAX, CODE
from cocoon.enrolment import StakeTermsAnswer
from cocoon.errors import MalformedError
from cocoon.receipt import is_strong_key

UNBOND_S_ASKED_MAX = 30 * 86_400
"""A wait beyond this is somebody else's mistake or malice, unless the owner names it."""


class StakeTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a new stake says beside its owner and its key; seconds, and basis points of the bond."""

    operator: Address
    operator_key: bytes
    unbond_s: int
    bounty_bps: int


class Meant(msgspec.Struct, frozen=True, kw_only=True):
    """What the stake's owner has said; None is what the network says."""

    operator: Address | None = None
    operator_key: bytes | None = None
    unbond_s: int | None = None
    bounty_bps: int | None = None
    global_id: int | None = None


def agreed_terms(network: StakeTermsAnswer, meant: Meant) -> StakeTerms:
    """Terms that count in this network and are what the owner meant.

    Raises:
        ContractError: there are none; the message says why.
    """
    if network.code_hash != code_of(CODE).hash.hex():
        raise ContractError("the gateway wants another contract than this program knows")
    if meant.global_id not in {None, network.global_id}:
        raise ContractError(f"the gateway is on the network {network.global_id}, not {meant.global_id}")
    try:
        said = None if network.operator is None else Address.parse(network.operator)
        operator_key = bytes.fromhex(network.operator_key)
    except (MalformedError, ValueError) as error:
        raise ContractError("the gateway's terms are no terms") from error
    if meant.operator_key not in {None, operator_key}:
        raise ContractError(f"the gateway's operator key is {network.operator_key}, not the one that you gave")
    if len(operator_key) != 32 or not is_strong_key(operator_key):  # noqa: PLR2004  an Ed25519 key
        raise ContractError("the operator's key proves nothing")
    operator = said or meant.operator
    if operator is None:
        raise ContractError("the gateway names no operator's wallet: give --operator")
    if meant.operator not in {None, operator}:
        raise ContractError(f"the gateway's operator is {operator}, not {meant.operator}")
    return StakeTerms(
        operator=operator, operator_key=operator_key, unbond_s=_unbond_s(network.unbond_s_min, meant.unbond_s),
        bounty_bps=_bounty_bps(network.bounty_bps_min, meant.bounty_bps),
    )  # fmt: skip


def _unbond_s(least: int, meant: int | None) -> int:
    if meant is None and not 0 <= least <= UNBOND_S_ASKED_MAX:
        raise ContractError(f"the bond would return after {least} s only: say --unbond {least} if you mean that")
    if meant is not None and meant < least:
        raise ContractError(f"this network takes no stake that returns before {least} s")
    return least if meant is None else meant


def _bounty_bps(least: int, meant: int | None) -> int:
    bounty = least if meant is None else meant
    if not least <= bounty <= BOUNTY_BPS_MAX:
        raise ContractError(f"the bounty is {least} to {BOUNTY_BPS_MAX} basis points, not {bounty}")
    return bounty
