"""The published stake: its address follows from its configuration, and its delegation is for one receipt key alone."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, delegation_statement
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE
from cocoon.stakes import delegated_stake, named_stake

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/stake.json").read_text())
CONFIG = bytes.fromhex(VECTOR["config_boc"])
KEYSET = Keyset(
    v=1, stake_addr=VECTOR["stake_addr"], operator="", tls_spki_sha256=bytes(32), hpke_xwing=b"", hpke_x25519=b"",
    receipt_pk=bytes.fromhex(VECTOR["receipt_pk"]), delegation=bytes.fromhex(VECTOR["delegation"]),
    model_manifest_sha256=b"", boot_id=b"b" * 16, not_before=VECTOR["not_after"] - 3600, not_after=VECTOR["not_after"],
)  # fmt: skip


def test_the_published_stake_has_delegated_the_published_receipt_key() -> None:
    assert code_of(CODE).hash.hex() == VECTOR["code_hash"]
    account = named_stake(KEYSET)
    assert str(Address(0, account)) == VECTOR["stake_addr"]
    statement = delegation_statement(
        global_id=VECTOR["global_id"], stake=account, receipt_key=KEYSET.receipt_pk, not_after=KEYSET.not_after
    )
    assert (len(statement), statement.hex()) == (80, VECTOR["statement"])
    config = delegated_stake(KEYSET, CONFIG, global_id=VECTOR["global_id"])
    assert config.staked_key.hex() == VECTOR["staked_key"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"receipt_pk": b"\x01" * 32}, "has not delegated"),
        ({"not_after": VECTOR["not_after"] + 1}, "has not delegated"),
        ({"delegation": b"\x01" * 64}, "has not delegated"),
        ({"delegation": b""}, "without the delegation"),
        ({"stake_addr": "0:" + "ab" * 32}, "not that of the stake"),
        ({"stake_addr": "-1" + VECTOR["stake_addr"][1:]}, "workchain 0"),
        ({"stake_addr": VECTOR["stake_addr"].upper()}, "not"),
    ],
)
def test_anything_else_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        delegated_stake(msgspec.structs.replace(KEYSET, **changes), CONFIG, global_id=VECTOR["global_id"])


def test_another_network_is_refused() -> None:
    with pytest.raises(MalformedError, match="has not delegated"):
        delegated_stake(KEYSET, CONFIG, global_id=-239)


def test_a_keyset_without_a_stake_names_none() -> None:
    assert named_stake(msgspec.structs.replace(KEYSET, stake_addr="", delegation=b"")) == NO_STAKE
