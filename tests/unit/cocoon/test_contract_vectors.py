"""Our codecs against the cells that the contracts' own tests make (`contracts/tests/support/vectors.mjs`)."""

import base64
import enum
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Cell, read_boc
from cocoon.contracts import escrow, messages, payout, registry
from cocoon.contracts.codes import code_of
from cocoon.contracts.messages import StateInit
from cocoon.contracts.records import Record

FOLDER = Path(__file__).parents[2] / "vectors" / "ton"
MODULES = {"escrow": escrow, "messages": messages, "payout": payout, "registry": registry}
CASES: list[tuple[str, dict[str, Any]]] = [
    (f"{name}-{number}-{case['record']}", case)
    for name in ("escrow", "payout", "registry")
    for number, case in enumerate(json.loads((FOLDER / f"{name}.json").read_text())["cases"])
]


def kind_of(case: dict[str, Any]) -> type[Record]:
    module, name = case["record"].split(".")
    return getattr(MODULES[module], name)


def record_of(kind: type[Record], fields: dict[str, Any]) -> Record:
    """The record of a case's fields, each read as its attribute's type says."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: value_of(hints[name], text) for name, text in fields.items()})


def value_of(hint: Any, text: Any) -> Any:
    if hint is Address:
        return Address.parse(text)
    if hint is bytes:
        return bytes.fromhex(text)
    if isinstance(hint, type) and issubclass(hint, Record):
        return record_of(hint, text)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return hint(text)
    if hint is int:
        return int(text)
    return read_boc(base64.b64decode(text)) if text else None


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_a_record_is_written_and_read_as_the_contracts_do(case: dict[str, Any]) -> None:
    record = record_of(kind_of(case), case["fields"])
    cell: Cell = read_boc(base64.b64decode(case["boc"]))

    assert cell.hash.hex() == case["hash"]
    assert record.encode().hash == cell.hash
    assert kind_of(case).decode(cell).encode().hash == cell.hash


@pytest.mark.parametrize("case", [case for _, case in CASES if "address" in case], ids=lambda case: case["record"])
def test_a_contract_lives_where_its_code_and_data_say(case: dict[str, Any]) -> None:
    init = StateInit(code_of(case["code"]), record_of(kind_of(case), case["fields"]).encode())

    assert str(init.address) == case["address"]


@pytest.mark.parametrize("case", [case for _, case in CASES if "signature" in case], ids=lambda case: case["record"])
def test_a_promise_is_signed_as_the_contracts_check_it(case: dict[str, Any]) -> None:
    promise = record_of(kind_of(case), case["fields"])
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["seed"]))

    assert isinstance(promise, escrow.Voucher | escrow.CloseTerms)
    assert promise.sign(key).hex() == case["signature"]
    promise.verify(key.public_key().public_bytes_raw(), bytes.fromhex(case["signature"]))


def test_there_are_vectors_of_every_contract() -> None:
    assert {case["record"].split(".")[0] for _, case in CASES} >= {"escrow", "payout", "registry"}
    assert sum("address" in case for _, case in CASES) >= 6
    assert sum("signature" in case for _, case in CASES) >= 9
