"""What a worker shows for its stake when it enrols: that its keyset speaks for a contract on the network's terms.

That it speaks for the contract follows from bytes (`cocoon.stakes`). What is bonded there is read from the chain by the
biller, which finds the address in the table `stakes`.
"""

import msgspec

from cocoon.addresses import Address
from cocoon.contracts.stake import BOUNTY_BPS_MAX, StakeConfig
from cocoon.enrolment import EnrolRequest, Keyset
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE
from cocoon.stakes import delegated_stake, named_stake
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
    """As `named_stake`.

    Raises:
        StakeRefusedError: the keyset does not name one as it should.
    """
    try:
        return named_stake(keyset)
    except MalformedError as error:
        raise StakeRefusedError(str(error)) from error


def require_stake(request: EnrolRequest, terms: StakeTerms) -> StakeConfig | None:
    """Check that the keyset's stake is ours and has delegated its receipt key; None without a stake.

    Raises:
        StakeRefusedError: naming what does not fit.
        MalformedError: the keyset is not one; `admit` comes first.
    """
    keyset = Keyset.decode(request.keyset)
    if stake_of(keyset) == NO_STAKE:
        if request.stake:
            raise StakeRefusedError("a stake is shown that the keyset does not name")
        return None
    try:
        config = delegated_stake(keyset, request.stake, global_id=terms.global_id)
    except MalformedError as error:
        raise StakeRefusedError(str(error)) from error
    _require_terms(config, terms)
    return config


def _require_terms(config: StakeConfig, terms: StakeTerms) -> None:
    if config.operator_key != terms.operator_key:
        raise StakeRefusedError("the stake is for tickets of another operator key")
    if terms.operator is not None and config.operator != terms.operator:
        raise StakeRefusedError("the stake is for another operator")
    if config.unbond_s < terms.unbond_s_min:
        raise StakeRefusedError(f"the stake returns after {config.unbond_s} s, and {terms.unbond_s_min} are asked here")
    if not terms.bounty_bps_min <= config.bounty_bps <= BOUNTY_BPS_MAX:
        raise StakeRefusedError(f"the bounty is {terms.bounty_bps_min} to {BOUNTY_BPS_MAX} basis points here")
