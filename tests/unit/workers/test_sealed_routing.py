"""Sealed requests go to workers that can open them, and to nobody else."""

import uuid
from typing import Any

import msgspec
import pytest

from tests.unit.workers.test_worker_routing import Network
from tests.unit.workers.worker_values import MODEL, an_upstream, beat_all
from workers.errors import NoWorkerError, WorkersBusyError
from workers.routing import DispatchOutcome

KEYSETS = {number: bytes((number,)) * 32 for number in range(1, 10)}


def _network(count: int = 3) -> Network:
    network = Network(count)
    for number in range(1, count + 1):
        _renew(network, number, KEYSETS[number])
    return network


def _renew(network: Network, number: int, digest: bytes, **changes: Any) -> None:
    worker = network.registry.worker(uuid.UUID(int=number))
    assert worker is not None
    network.registry.put_enrolment(msgspec.structs.replace(worker, keyset_digest=digest, **changes))


def _chosen(network: Network, *numbers: int, **wishes: Any) -> tuple[int, bytes | None]:
    digests = frozenset(KEYSETS[number] for number in numbers)
    dispatch = network.router.choose(MODEL, keysets=digests, **wishes)
    dispatch.finish(DispatchOutcome.CLIENT_GONE)
    return dispatch.target_id.int, dispatch.keyset_digest


def test_only_recipients_are_chosen_and_never_an_upstream() -> None:
    network = _network()
    network.registry.set_upstreams([an_upstream()])
    assert {_chosen(network, 1, 3) for _ in range(40)} == {(1, KEYSETS[1]), (3, KEYSETS[3])}
    assert _chosen(network, 1, 3, exclude=frozenset({uuid.UUID(int=1)})) == (3, KEYSETS[3])
    with pytest.raises(NoWorkerError):
        _chosen(network, 9)


def test_recipients_at_capacity_are_busy_though_others_are_free() -> None:
    network = _network(2)
    _renew(network, 1, KEYSETS[1], capacity=1)
    network.router.choose(MODEL, keysets=frozenset({KEYSETS[1]}))
    with pytest.raises(WorkersBusyError):
        _chosen(network, 1)


def test_a_recipient_without_the_evidence_that_sealing_needs_gets_nothing() -> None:
    network = _network(2)
    _renew(network, 2, KEYSETS[2], evidence="tdx")
    assert {_chosen(network, 1, 2, require="tdx") for _ in range(10)} == {(2, KEYSETS[2])}
    with pytest.raises(NoWorkerError):
        _chosen(network, 1, require="tdx")


def test_what_was_sealed_for_a_keyset_still_finds_its_worker_after_the_next_until_it_expires() -> None:
    network = _network(1)
    _renew(network, 1, KEYSETS[4])
    assert _chosen(network, 1) == (1, KEYSETS[1])
    assert _chosen(network, 1, 4) == (1, KEYSETS[4])
    later = int(network.clock.now().timestamp()) + 10_000
    network.clock.advance(3601)
    _renew(network, 1, KEYSETS[4], not_after=later)
    beat_all(network.registry, network.clock, 4)
    assert _chosen(network, 4) == (1, KEYSETS[4])
    with pytest.raises(NoWorkerError):
        _chosen(network, 1)


def test_a_new_boot_of_a_worker_has_no_earlier_keys() -> None:
    network = _network(1)
    _renew(network, 1, KEYSETS[4], boot_id=b"boot-two-0123456")
    with pytest.raises(NoWorkerError):
        _chosen(network, 1)
