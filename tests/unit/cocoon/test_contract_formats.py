"""The contracts' formats: every record is read back as it was written, and nothing else is read as one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice
from cocoon.contracts import escrow, messages, payout, registry, stake
from cocoon.contracts.records import NO_HASH, Record
from cocoon.errors import MalformedError
from tests.escrow_values import KEY, escrow_config

HASHES = st.binary(min_size=32, max_size=32)
ADDRESSES = st.builds(Address, st.sampled_from([0, -1]), HASHES)
NANO = st.integers(0, 2**120 - 1)
CELLS = st.builds(lambda value: Builder().uint(value, 64).end(), st.integers(0, 2**64 - 1))
NUMBERS_BY_NAME = {"fee_bps": 16, "query_id": 64, "in_flight_query": 64, "size": 64, "not_after": 64}


def _all_records() -> list[type[Record]]:
    found: list[type[Record]] = []
    pending: list[type[Record]] = [Record]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if kind.LAYOUT and kind.__module__.startswith("cocoon."):
            found.append(kind)
    return sorted(found, key=lambda one: one.__name__)


RECORDS = _all_records()


@st.composite
def values(draw: st.DrawFn, kind: type[Record]) -> Record:
    """A record with any values that its attributes' types and names allow."""
    drawn: dict[str, object] = {}
    for name, hint in kind.__annotations__.items():
        if name in {"TAG", "LAYOUT"}:
            continue
        drawn[name] = draw(_strategy(name, hint))
    return kind(**drawn)


def _strategy(name: str, hint: object) -> st.SearchStrategy[object]:
    if isinstance(hint, type) and issubclass(hint, Record):
        return values(hint)
    if hint is int:
        if name.startswith("allow_") and name.endswith("_nano") and name != "allow_at_nano":
            return st.integers(0, 2**80 - 1)  # both stand in one cell with two addresses and the salt
        if name.endswith("_nano"):
            return NANO
        if name == "global_id":
            return st.integers(-(2**31), 2**31 - 1)
        # `bounty_bps` and its like have 16 bits, times and epochs 32.
        return st.integers(0, 2 ** (16 if name.endswith("_bps") else 32) - 1)
    if hint is bytes:
        return st.binary(min_size=64, max_size=64) if name.endswith("signature") else HASHES
    if isinstance(hint, type) and issubclass(hint, (escrow.EscrowPhase, escrow.Signer, stake.StakePhase)):
        return st.sampled_from(list(hint))
    simple: dict[object, st.SearchStrategy[object]] = {
        Address: ADDRESSES, Cell: CELLS, Cell | None: st.none() | CELLS, bool: st.booleans(),
        stake.EvidenceKind: st.sampled_from(list(stake.EvidenceKind)),
    }  # fmt: skip
    return simple[hint]


def same(one: Record, other: Record) -> bool:
    return one.encode().hash == other.encode().hash


def test_every_operation_has_a_number_of_its_own() -> None:
    tags = [kind.TAG for kind in RECORDS if kind.TAG is not None]

    assert len(tags) == len(set(tags))
    assert len(RECORDS) > 35


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_a_record_is_read_back_as_it_was_written(kind: type[Record], data: st.DataObject) -> None:
    written = data.draw(values(kind))
    cell = written.encode()
    longer = Builder().append(cell).uint(1, 1).end() if cell.bits < 1023 else None

    assert same(kind.decode(cell), written)
    if kind.TAG is not None:
        with pytest.raises(MalformedError):
            kind.decode(Builder().uint(kind.TAG ^ 1, 32).end())
    if longer is not None and kind is not stake.Evidence:
        with pytest.raises(MalformedError):
            kind.decode(longer)
    with pytest.raises(MalformedError):
        kind.decode(Builder().uint(cell.read(0, cell.bits - 1), cell.bits - 1).end())


@pytest.mark.parametrize(
    "weak",
    [
        {"voucher_key": NO_HASH, "operator_key": NO_HASH},
        {"voucher_key": b"\x01" + bytes(31)},
        {"operator_key": b"\x01" + bytes(31)},
        {"operator_key": KEY.public_key().public_bytes_raw()},
    ],
)
def test_an_escrow_without_a_key_that_proves_something_is_refused(weak: dict[str, object]) -> None:
    escrow_config().require_usable()
    escrow_config(operator_key=NO_HASH).require_usable()
    with pytest.raises(MalformedError):
        escrow_config(**weak).require_usable()


def test_the_allowance_fills_up_and_stops_at_a_close() -> None:
    config = escrow_config()
    data = escrow.EscrowData(escrow.EscrowPhase.OPEN, 1_000, 40, 0, 10, 1_000, 0, NO_HASH, config)
    closing = escrow.EscrowData(escrow.EscrowPhase.CLOSING, 1_000, 40, 0, 10, 1_000, 1_005, NO_HASH, config)

    assert [data.allowance_nano(now) for now in (900, 1_000, 1_005, 9_000)] == [10, 10, 20, 100]
    assert closing.allowance_nano(9_000) == 20
    assert escrow.EscrowData.initial(config).allowance_nano(1_700_000_000) == 100


def test_what_a_voucher_pays_is_bounded_by_the_deposit_and_for_the_operator_by_the_allowance() -> None:
    data = escrow.EscrowData(escrow.EscrowPhase.OPEN, 1_000, 40, 0, 10, 1_000, 0, NO_HASH, escrow_config())

    assert data.due_nano(5_000, escrow.Signer.SESSION, 1_000) == 960
    assert data.due_nano(45, escrow.Signer.SESSION, 1_000) == 5
    assert data.due_nano(30, escrow.Signer.SESSION, 1_000) == 0
    assert data.due_nano(5_000, escrow.Signer.OPERATOR, 1_000) == 10
    assert data.due_nano(5_000, escrow.Signer.OPERATOR, 99_000) == 100


def test_a_voucher_verifies_for_its_escrow_network_and_epoch_alone() -> None:
    voucher = escrow.Voucher(-3, Address(0, b"\x09" * 32), 1, 500, NO_HASH)
    signature, key = voucher.sign(KEY), KEY.public_key().public_bytes_raw()
    voucher.verify(key, signature)
    for other in (
        escrow.Voucher(-239, voucher.escrow, 1, 500, NO_HASH),
        escrow.Voucher(-3, Address(0, b"\x08" * 32), 1, 500, NO_HASH),
        escrow.Voucher(-3, voucher.escrow, 2, 500, NO_HASH),
        escrow.Voucher(-3, voucher.escrow, 1, 501, NO_HASH),
    ):
        with pytest.raises(MalformedError, match="does not verify"):
            other.verify(key, signature)
    with pytest.raises(MalformedError, match="not a usable"):
        voucher.verify(b"\x01" + bytes(31), signature)


@given(st.lists(st.builds(payout.Earnings, ADDRESSES, st.integers(0, 2**100)), min_size=1, max_size=40,
                unique_by=lambda one: one.worker.account))  # fmt: skip
def test_every_worker_of_an_epoch_can_claim_and_nothing_else(earnings: list[payout.Earnings]) -> None:
    tree = payout.EpochTree(earnings)

    assert tree.total_nano == sum(one.cumulative_nano for one in earnings)
    for one in earnings:
        claim = tree.claim(one.worker, query_id=3)
        assert claim.cumulative_nano == one.cumulative_nano
        payout.require_claim(payout.Claim.decode(claim.encode()), tree.root)
        more = payout.Claim(3, one.worker, one.cumulative_nano + 1, claim.proof)
        with pytest.raises(MalformedError):
            payout.require_claim(more, tree.root)
    with pytest.raises(KeyError):
        tree.claim(Address(1, bytes(32)), query_id=1)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 6, 7, 31, 32])
def test_a_path_fills_three_hashes_a_cell(length: int) -> None:
    proof = payout.ClaimProof(5, 9, tuple(bytes([number]) * 32 for number in range(length)))
    cell = proof.encode()

    assert payout.ClaimProof.decode(cell) == proof
    assert cell.depth == max(-(-length // 3) - 1, 0)
    assert cell.bits == 72 + 256 * min(length, 3)


def test_a_longer_path_than_any_tree_has_is_refused() -> None:
    with pytest.raises(MalformedError):
        payout.ClaimProof(0, 1, (bytes(32),) * 33).encode()
    with pytest.raises(MalformedError):
        payout.ClaimProof.decode(Builder().uint(0, 64).uint(33, 8).end())


def test_a_pending_root_pays_when_it_is_due() -> None:
    config = payout.PayoutConfig(Address(0, bytes(32)), Address(0, bytes(32)), 500, 60, NO_HASH, Builder().end())
    first = payout.PayoutData.initial(config)
    roots = payout.Roots(1, b"\x01" * 32, 10, 2, b"\x02" * 32, 20, 1_000)
    data = payout.PayoutData(1_000, 0, 0, roots, first.anchor, config)

    assert data.fee_max_nano == 50
    assert data.active_root(999) == (1, b"\x01" * 32, 10)
    assert data.active_root(1_000) == (2, b"\x02" * 32, 20)


def test_a_body_says_what_it_is_and_a_bounced_one_what_it_was() -> None:
    fund = payout.Fund(77, 10**12).encode()
    bounced = Builder().uint(messages.BOUNCED, 32).uint(fund.read(0, fund.bits), fund.bits).end()

    assert messages.operation_of(fund) == (payout.Fund.TAG, 77)
    assert messages.bounced_operation(bounced) == (payout.Fund.TAG, 77)
    assert messages.operation_of(Builder().uint(0, 32).end()) is None
    assert messages.bounced_operation(fund) is None


def test_a_state_init_is_read_back_and_names_its_address() -> None:
    init = escrow.escrow_init(Builder().uint(1, 8).end(), escrow_config())

    assert messages.StateInit.decode(init.encode()).address == init.address
    with pytest.raises(MalformedError):
        messages.StateInit.decode(Builder().uint(0b11110, 5).ref(init.code).ref(init.data).end())


def test_another_salt_is_another_escrow() -> None:
    code = Builder().uint(1, 8).end()
    salts = [bytes([number]) * 32 for number in range(5)]

    assert len({escrow.escrow_init(code, escrow_config(salt=salt)).address for salt in salts}) == 5


def test_a_delegation_names_network_stake_key_and_end() -> None:
    statement = stake.delegation_statement(global_id=-3, stake=b"\x05" * 32, receipt_key=b"\x06" * 32, not_after=9)

    assert statement == b"CDL1" + (-3).to_bytes(4, "big", signed=True) + b"\x05" * 32 + b"\x06" * 32 + (9).to_bytes(
        8, "big"
    )
    signature = stake.delegate_receipt_key(KEY, global_id=-3, stake=b"\x05" * 32, receipt_key=b"\x06" * 32, not_after=9)
    KEY.public_key().verify(signature, statement)


def test_evidence_of_equivocation_carries_both_heads() -> None:
    heads = [(bytes([number]) * 124, bytes([number]) * 64) for number in (1, 2)]
    cell = stake.Evidence(bytes(64), 5, bytes(32)).equivocation(heads[0], heads[1])
    source = Slice(cell)
    source.raw(64 + 8 + 32)

    read = [Slice(source.ref()) for _ in range(2)]

    assert [one.raw(124) for one in read] == [head for head, _ in heads]
    assert [Slice(one.ref()).raw(64) for one in read] == [signature for _, signature in heads]
    with pytest.raises(MalformedError):
        stake.signed_head(bytes(123), bytes(64))


def test_the_registry_of_these_parameters_has_one_address() -> None:
    key = KEY.public_key().public_bytes_raw()
    parameters = registry.NetworkParameters(
        Address(0, bytes(32)), NO_HASH, NO_HASH, 500, 60, key, NO_HASH, NO_HASH, NO_HASH
    )
    init = registry.registry_init(Builder().end(), delay_s=60, parameters=parameters, salt=NO_HASH)

    assert registry.RegistryData.decode(init.data).current == parameters
