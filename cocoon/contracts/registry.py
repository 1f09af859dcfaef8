"""The registry (`contracts/src/registry.tolk`): the network's public parameters, changed only after a public delay."""

from typing import ClassVar

from cocoon.addresses import Address
from cocoon.cells import Cell
from cocoon.contracts.messages import QUERY, Operation, StateInit
from cocoon.contracts.records import ADDRESS, HASH, KEY, MAYBE_REF, REF, TIME, Record, record, uint

CODE = "registry"


class NetworkParameters(Record, frozen=True):
    """What the network says about itself; codes are hashes of the contracts that count."""

    LAYOUT = (ADDRESS, HASH, HASH, uint(16), uint(32), (KEY,), (HASH, HASH, HASH))

    owner: Address
    policy_digest: bytes
    manifest_root: bytes
    fee_bps: int
    delay_s: int
    operator_key: bytes
    escrow_code: bytes
    payout_code: bytes
    stake_code: bytes


class RegistryData(Record, frozen=True):
    """A registry's data cell; `pending` is the cell of parameters that wait, `pending_at` since when."""

    LAYOUT = (ADDRESS, uint(32), TIME, record(NetworkParameters), MAYBE_REF, HASH)

    owner: Address
    delay_s: int
    pending_at: int
    current: NetworkParameters
    pending: Cell | None
    salt: bytes


def registry_init(code: Cell, *, delay_s: int, parameters: NetworkParameters, salt: bytes) -> StateInit:
    """The registry of these first parameters, as it is deployed."""
    return StateInit(code, RegistryData(parameters.owner, delay_s, 0, parameters, None, salt).encode())


class Propose(Operation, frozen=True):
    """Names the next parameters; replaces what waits and starts the delay again. The owner only."""

    TAG: ClassVar[int | None] = 0x43E55001
    LAYOUT = (QUERY, REF)

    query_id: int
    parameters: Cell


class Cancel(Operation, frozen=True):
    """Drops what waits. The owner only."""

    TAG: ClassVar[int | None] = 0x43E55002
    LAYOUT = (QUERY,)

    query_id: int


class Apply(Operation, frozen=True):
    """Makes what has waited long enough current. Anyone."""

    TAG: ClassVar[int | None] = 0x43E55003
    LAYOUT = (QUERY,)

    query_id: int
