"""What a worker must show for its stake, and the attempts to speak for another's."""

import uuid
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Builder, write_boc
from cocoon.clock import ManualClock
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, stake_init
from cocoon.enrolment import EnrolRequest, Keyset
from cocoon.receipt import NO_STAKE
from tests.stake_values import GLOBAL_ID, OPERATOR, OPERATOR_KEY, a_stake_config, a_staked_key
from tests.unit.workers.worker_values import RECEIPT_PK, a_keyset, a_request
from workers.agent.staking import StakedKey
from workers.enrolments import admit
from workers.errors import StakeRefusedError
from workers.stakes import StakeTerms, require_stake, stake_of
from workers.targets import Worker

CLOCK = ManualClock()
TERMS = StakeTerms(
    global_id=GLOBAL_ID, operator_key=OPERATOR_KEY, operator=OPERATOR, unbond_s_min=86_400, bounty_bps_min=1_000
)


def staked_keyset(staked: StakedKey | None = None, **changes: Any) -> Keyset:
    staked = staked or a_staked_key()
    plain = a_keyset(CLOCK)
    members: dict[str, Any] = {
        "stake_addr": str(staked.address), "delegation": staked.delegate(RECEIPT_PK, plain.not_after),
    }  # fmt: skip
    return a_keyset(CLOCK, **{**members, **changes})


def asked(keyset: Keyset, config: bytes | None = None) -> EnrolRequest:
    return a_request(CLOCK, keyset, stake=a_staked_key().config if config is None else config)


def admitted(keyset: Keyset) -> Worker:
    return admit(asked(keyset), worker_id=uuid.UUID(int=7), now=CLOCK.now(), allow_private=True)


def test_a_keyset_that_its_stake_delegated_is_that_stakes() -> None:
    keyset = staked_keyset()

    assert require_stake(asked(keyset), TERMS) == a_stake_config()
    assert admitted(keyset).stake == stake_of(keyset) == a_staked_key().address.account


def test_a_worker_without_a_stake_is_as_before() -> None:
    keyset = a_keyset(CLOCK)

    assert require_stake(a_request(CLOCK, keyset), TERMS) is None
    assert admitted(keyset).stake == NO_STAKE


def test_without_a_wallet_of_the_network_any_will_do() -> None:
    staked = a_staked_key(operator=Address(0, b"\x0a" * 32))

    assert require_stake(asked(staked_keyset(staked), staked.config), msgspec.structs.replace(TERMS, operator=None))


@pytest.mark.parametrize(
    "address",
    ["", "x", "EQ", "0:" + "00" * 32, "-1:" + "11" * 32, "0:" + "AB" * 32, "0:" + "11" * 31],
    ids=["none", "nonsense", "friendly", "zeros", "masterchain", "capitals", "short"],
)
def test_an_address_in_another_form_is_refused(address: str) -> None:
    with pytest.raises(StakeRefusedError):
        admitted(staked_keyset(stake_addr=address))


def test_a_stake_without_its_delegation_is_refused() -> None:
    with pytest.raises(StakeRefusedError, match="without the delegation"):
        admitted(staked_keyset(delegation=b""))


def test_a_stake_that_the_keyset_does_not_name_is_refused() -> None:
    with pytest.raises(StakeRefusedError, match="does not name"):
        require_stake(asked(a_keyset(CLOCK)), TERMS)


def test_another_contracts_address_is_refused() -> None:
    with pytest.raises(StakeRefusedError, match="not that of the stake"):
        require_stake(asked(staked_keyset(stake_addr="0:" + "77" * 32)), TERMS)


def test_the_configuration_of_another_stake_is_refused() -> None:
    with pytest.raises(StakeRefusedError, match="not that of the stake"):
        require_stake(asked(staked_keyset(), a_staked_key(salt=b"\x56" * 32).config), TERMS)


@pytest.mark.parametrize("raw", [b"", b"\x00", write_boc(Builder().uint(1, 8).end())], ids=["none", "bytes", "cell"])
def test_what_is_no_configuration_is_refused(raw: bytes) -> None:
    with pytest.raises(StakeRefusedError, match="not its configuration"):
        require_stake(asked(staked_keyset(), raw), TERMS)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"operator_key": b"\x09" * 32}, "operator key"), ({"operator": Address(0, b"\x0a" * 32)}, "another operator")],
)
def test_a_stake_of_another_operator_does_not_count_here(changes: dict[str, Any], why: str) -> None:
    staked = a_staked_key(**changes)
    with pytest.raises(StakeRefusedError, match=why):
        require_stake(asked(staked_keyset(staked), staked.config), TERMS)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"unbond_s": 86_399}, "86400 are asked"), ({"bounty_bps": 999}, "bounty"), ({"bounty_bps": 2_001}, "bounty")],
    ids=["gone too soon", "nothing for the finder", "more than the contract pays"],
)
def test_a_stake_that_could_leave_before_it_is_slashed_or_pays_nobody_for_it_is_refused(
    changes: dict[str, Any], why: str
) -> None:
    staked = a_staked_key(**changes)
    with pytest.raises(StakeRefusedError, match=why):
        require_stake(asked(staked_keyset(staked), staked.config), TERMS)


def test_a_weak_staked_key_is_refused() -> None:
    config = a_stake_config(staked_key=b"\x01" + bytes(31))
    forged = a_staked_key()
    keyset = staked_keyset(
        stake_addr=str(stake_init(code_of(CODE), config).address), delegation=forged.delegate(RECEIPT_PK, 2**40)
    )
    with pytest.raises(StakeRefusedError, match="proves nothing"):
        require_stake(asked(keyset, write_boc(config.encode())), TERMS)


def test_a_delegation_counts_for_its_key_its_end_and_its_chain_only() -> None:
    staked, end = a_staked_key(), a_keyset(CLOCK).not_after
    thief = Ed25519PrivateKey.generate()
    for delegation in (
        staked.delegate(b"\x08" * 32, end),
        staked.delegate(RECEIPT_PK, end + 1),
        a_staked_key(global_id=-239).delegate(RECEIPT_PK, end),
        a_staked_key(salt=b"\x56" * 32).delegate(RECEIPT_PK, end),
        thief.sign(b"CDL1" + bytes(76)),
    ):
        with pytest.raises(StakeRefusedError, match="has not delegated"):
            require_stake(asked(staked_keyset(delegation=delegation)), TERMS)
