"""Which escrows count as credit: our code, this operator, and terms that leave it the time to settle."""

import base64
import urllib.parse
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Builder, read_boc, write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.deposits import TOP_UP_EXTRA_NANO, deposit_link
from cocoon.contracts.escrow import CODE, EscrowConfig, TopUp, escrow_init
from cocoon.contracts.messages import StateInit
from gateway.escrows import EscrowRules, EscrowTermsError, state_init_of
from gateway.settings import SettingsError, read_settings

SESSION, OPERATOR_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
CLIENT, OPERATOR, PAYOUT = (Address(0, bytes([n]) * 32) for n in (3, 4, 5))
CODE_HASH = code_of(CODE).hash
RULES = EscrowRules(
    global_id=-3, operator=OPERATOR, payout=PAYOUT, operator_key=OPERATOR_KEY.public_key().public_bytes_raw(),
    challenge_s_min=86_400,
)  # fmt: skip


def config(**changes: Any) -> EscrowConfig:
    fields: dict[str, Any] = {
        "client": CLIENT, "operator": OPERATOR, "payout": PAYOUT,
        "voucher_key": SESSION.public_key().public_bytes_raw(), "operator_key": bytes(32), "challenge_s": 86_400,
        "epoch": 1, "allow_max_nano": 0, "allow_rate_nano": 0, "salt": bytes([9]) * 32,
    }  # fmt: skip
    return EscrowConfig(**{**fields, **changes})


def test_an_accepted_escrow_has_the_address_that_its_code_and_terms_hash_to() -> None:
    asked = config(operator_key=RULES.operator_key, allow_max_nano=5, allow_rate_nano=1)
    terms = RULES.judge(CODE_HASH, write_boc(asked.encode()))
    init = escrow_init(code_of(CODE), asked)
    assert terms.address == str(init.address)
    assert state_init_of(terms).address == init.address
    assert (terms.voucher_key, terms.operator_key) == (asked.voucher_key, asked.operator_key)
    assert RULES.judge(CODE_HASH, write_boc(config().encode())).operator_key is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"operator": CLIENT}, "another operator"),
        ({"payout": CLIENT}, "another payout contract"),
        ({"operator_key": SESSION.public_key().public_bytes_raw(), "voucher_key": bytes(32)}, "operator's key"),
        ({"voucher_key": bytes(32)}, "cannot be used"),
        ({"voucher_key": bytes([1]) + bytes(31)}, "cannot be used"),  # the identity: anything verifies under it
        ({"voucher_key": RULES.operator_key, "operator_key": RULES.operator_key}, "cannot be used"),
        ({"client": OPERATOR}, "client"),
        ({"client": Address(-1, bytes([3]) * 32)}, "client"),
        ({"challenge_s": 86_399}, "challenge_s"),
        ({"allow_max_nano": 2**63}, "allowance"),
    ],
)
def test_terms_that_would_not_protect_the_operator_or_the_client_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EscrowTermsError, match=reason):
        RULES.judge(CODE_HASH, write_boc(config(**changes).encode()))


def test_foreign_code_and_unreadable_terms_are_refused() -> None:
    boc = write_boc(config().encode())
    with pytest.raises(EscrowTermsError, match="code"):
        RULES.judge(bytes(32), boc)
    for bad in (b"", boc[:-1], write_boc(Builder().uint(7, 32).end())):
        with pytest.raises(EscrowTermsError, match="cannot be used"):
            RULES.judge(CODE_HASH, bad)


def test_a_deposit_link_deploys_the_escrow_and_credits_exactly_the_amount() -> None:
    init = escrow_init(code_of(CODE), config())
    link = urllib.parse.urlsplit(deposit_link(init.address, init, 5_000_000_000, global_id=-3, query_id=8))
    query = dict(urllib.parse.parse_qsl(link.query))
    assert (link.scheme, link.netloc) == ("ton", "transfer")
    assert Address.parse_any(link.path.removeprefix("/")) == init.address
    assert int(query["amount"]) == 5_000_000_000 + TOP_UP_EXTRA_NANO
    assert TopUp.decode(read_boc(_bytes(query["bin"]))) == TopUp(8, 5_000_000_000)
    assert StateInit.decode(read_boc(_bytes(query["init"]))).address == init.address


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def environment(**changes: str) -> dict[str, str]:
    return {
        "COCOON_DATABASE_URL": "postgresql://x", "COCOON_REDIS_URL": "redis://x", "COCOON_NETWORK_SECRET": "11" * 32,
        "COCOON_ENV": "development", "COCOON_OPERATOR_WALLET": str(OPERATOR), "COCOON_PAYOUT_CONTRACT": str(PAYOUT),
        **changes,
    }  # fmt: skip


def test_a_short_challenge_is_for_the_development_chain_alone() -> None:
    short = read_settings(environment(COCOON_ESCROW_CHALLENGE_S_MIN="60")).escrows
    assert short is not None
    assert (short.operator, short.challenge_s_min, short.operator_key) == (OPERATOR, 60, bytes(32))
    with pytest.raises(SettingsError, match="development chain"):
        read_settings(environment(COCOON_ESCROW_CHALLENGE_S_MIN="60", COCOON_GLOBAL_ID="-239"))


@pytest.mark.parametrize(
    "changes",
    [{"COCOON_PAYOUT_CONTRACT": ""}, {"COCOON_OPERATOR_WALLET": "0:12"}, {"COCOON_SETTLEMENT_KEY_PUBLIC": "1"}],
)
def test_half_or_malformed_settings_stop_the_start(changes: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        read_settings(environment(**changes))
