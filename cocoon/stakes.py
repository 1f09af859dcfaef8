"""Whether a keyset speaks for the stake that it names: everything follows from bytes, without a chain.

A contract's address is the hash of known code and of its configuration, the configuration names the staked key, and
that key has signed the receipt key: `"CDL1" ‖ global_id4 ‖ stake32 ‖ receipt_pk32 ‖ not_after8` (PROTOCOL §1). So
whoever proves that the receipt key lied can have the stake slashed. What is bonded there only a chain can say.
"""

from cocoon.addresses import Address
from cocoon.cells import read_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, StakeConfig, delegation_statement, stake_init
from cocoon.delegation import verify_signature
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE, is_strong_key


def named_stake(keyset: Keyset) -> bytes:
    """The account of the stake that a keyset names, zeros without one. Whether it may, `delegated_stake` says.

    Raises:
        MalformedError: it names something else than a contract of workchain 0 in its raw form, or a delegation without
            a stake, or the other way round.
    """
    if not keyset.stake_addr and not keyset.delegation:
        return NO_STAKE
    try:
        address = Address.parse(keyset.stake_addr)
    except MalformedError as error:
        raise MalformedError(f"the keyset's stake is not an address: {error}") from error
    if str(address) != keyset.stake_addr or address.workchain or address.account == NO_STAKE:
        raise MalformedError("the keyset's stake is not a contract of workchain 0 in its raw form")
    if not keyset.delegation:
        raise MalformedError("the keyset names a stake without the delegation of its staked key")
    return address.account


def delegated_stake(keyset: Keyset, shown: bytes, *, global_id: int) -> StakeConfig:
    """The configuration `shown` (a BoC) of the keyset's stake, whose staked key has delegated its receipt key.

    Raises:
        MalformedError: naming what does not fit.
    """
    account = named_stake(keyset)
    try:
        config = StakeConfig.decode(read_boc(shown))
    except MalformedError as error:
        raise MalformedError(f"what is shown of the stake is not its configuration: {error}") from error
    if stake_init(code_of(CODE), config).address != Address(0, account):
        raise MalformedError("the configuration that is shown is not that of the stake in the keyset")
    if not is_strong_key(config.staked_key):
        raise MalformedError("the staked key proves nothing")
    statement = delegation_statement(
        global_id=global_id, stake=account, receipt_key=keyset.receipt_pk, not_after=keyset.not_after
    )
    try:
        verify_signature(config.staked_key, statement, keyset.delegation)
    except MalformedError as error:
        raise MalformedError("the staked key has not delegated this keyset's receipt key") from error
    return config
