"""What a worker shows for its stake when it enrols: that its keyset speaks for a contract on the network's terms.

Everything follows from bytes, without a chain: the contract's address is the hash of known code and the configuration
that is shown, the configuration names the staked key, and that key has signed the receipt key (PROTOCOL §1, §4). What
is bonded there is read from the chain by the biller, which finds the address in the table `stakes`.
"""

import msgspec

from cocoon.addresses import Address
from cocoon.cells import read_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import BOUNTY_BPS_MAX, CODE, StakeConfig, delegation_statement, stake_init
from cocoon.delegation import verify_signature
from cocoon.enrolment import EnrolRequest, Keyset
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE, is_strong_key
from workers.errors import StakeRefusedError


class StakeTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a stake must say to count here. `operator_key` signs gateways' delegations, and with them tickets.

    `operator` is the operator's wallet; None where the gateway is told none, and then any will do. Who lied must not
    have left before it is found out, and finding out must pay: hence `unbond_s_min` and `bounty_bps_min`.
    """

    global_id: int
    operator_key: bytes
    operator: Address | None = None
    unbond_s_min: int
    bounty_bps_min: int


def stake_of(keyset: Keyset) -> bytes:
    """The account of the stake that a keyset names, zeros without one. Whether it may, `require_stake` says.

    Raises:
        StakeRefusedError: it names something else than a contract of workchain 0 in its raw form, or a delegation
            without a stake, or the other way round.
    """
    if not keyset.stake_addr and not keyset.delegation:
        return NO_STAKE
    try:
        address = Address.parse(keyset.stake_addr)
    except MalformedError as error:
        raise StakeRefusedError(f"the keyset's stake is not an address: {error}") from error
    if str(address) != keyset.stake_addr or address.workchain or address.account == NO_STAKE:
        raise StakeRefusedError("the keyset's stake is not a contract of workchain 0 in its raw form")
    if not keyset.delegation:
        raise StakeRefusedError("the keyset names a stake without the delegation of its staked key")
    return address.account


def require_stake(request: EnrolRequest, terms: StakeTerms) -> StakeConfig | None:
    """Check that the keyset's stake is ours and has delegated its receipt key; None without a stake.

    Raises:
        StakeRefusedError: naming what does not fit.
        MalformedError: the keyset is not one; `admit` comes first.
    """
    keyset = Keyset.decode(request.keyset)
    account = stake_of(keyset)
    if account == NO_STAKE:
        if request.stake:
            raise StakeRefusedError("a stake is shown that the keyset does not name")
        return None
    try:
        config = StakeConfig.decode(read_boc(request.stake))
    except MalformedError as error:
        raise StakeRefusedError(f"what is shown of the stake is not its configuration: {error}") from error
    if stake_init(code_of(CODE), config).address != Address(0, account):
        raise StakeRefusedError("the configuration that is shown is not that of the stake in the keyset")
    _require_terms(config, terms)
    statement = delegation_statement(
        global_id=terms.global_id, stake=account, receipt_key=keyset.receipt_pk, not_after=keyset.not_after
    )
    try:
        verify_signature(config.staked_key, statement, keyset.delegation)
    except MalformedError as error:
        raise StakeRefusedError("the staked key has not delegated this keyset's receipt key") from error
    return config


def _require_terms(config: StakeConfig, terms: StakeTerms) -> None:
    if not is_strong_key(config.staked_key):
        raise StakeRefusedError("the staked key proves nothing")
    if config.operator_key != terms.operator_key:
        raise StakeRefusedError("the stake is for tickets of another operator key")
    if terms.operator is not None and config.operator != terms.operator:
        raise StakeRefusedError("the stake is for another operator")
    if config.unbond_s < terms.unbond_s_min:
        raise StakeRefusedError(f"the stake returns after {config.unbond_s} s, and {terms.unbond_s_min} are asked here")
    if not terms.bounty_bps_min <= config.bounty_bps <= BOUNTY_BPS_MAX:
        raise StakeRefusedError(f"the bounty is {terms.bounty_bps_min} to {BOUNTY_BPS_MAX} basis points here")
