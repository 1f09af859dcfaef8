"""The client's folder: whose it is, what it remembers of logs, and what altered files do."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cocoon.errors import MalformedError
from cocoon_client import store as store_module
from cocoon_client.openai import SealingClient
from cocoon_client.opening import Opening
from cocoon_client.receipts import remember
from cocoon_client.store import Store, read_proof, write_private
from cocoon_client.verification.log import Growth
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.walk import verify
from tests.fake_network import API_KEY, BASE_URL, MODEL, FakeGateway


def asked(gateway: FakeGateway) -> Opening:
    client = SealingClient(gateway.trust(), transport=gateway)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a prompt"}]}
    client.post(BASE_URL + "/chat/completions", json=body, headers={"authorization": f"Bearer {API_KEY}"})
    assert client.kept.newest is not None
    return client.kept.newest


def test_proofs_are_for_their_owner_alone(tmp_path: Path) -> None:
    store, opening = Store(tmp_path / "state"), asked(FakeGateway())
    store.keep(opening)

    path = store.path(opening.receipt_id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    kept = store.load(opening.receipt_id)
    assert kept is not None
    assert kept.opening == opening


def test_an_altered_proof_is_malformed(tmp_path: Path) -> None:
    store, opening = Store(tmp_path), asked(FakeGateway())
    store.keep(opening)
    path = store.path(opening.receipt_id)
    path.write_bytes(path.read_bytes().replace(b'"v":1', b'"w":1'))
    with pytest.raises(MalformedError):
        read_proof(path)


def test_a_disk_that_takes_nothing_does_not_cost_the_answer(tmp_path: Path) -> None:
    (tmp_path / "receipts").write_text("not a folder")
    Store(tmp_path).keep(asked(FakeGateway()))


def test_the_oldest_proofs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RECEIPTS_MAX", 2)
    monkeypatch.setattr(store_module, "_PRUNE_EVERY", 4)
    gateway, store = FakeGateway(), Store(tmp_path)
    openings = [asked(gateway) for _ in range(4)]
    for opening in openings:
        store.keep(opening)
    assert [store.load(opening.receipt_id) is None for opening in openings] == [True, True, False, False]


def test_a_checkpoint_is_remembered_only_when_it_is_joined_to_the_one_before(tmp_path: Path) -> None:
    gateway, store = FakeGateway(), Store(tmp_path)
    trust, opening = gateway.trust(), asked(gateway)
    key = trust.log_key

    first = Proof(bundle=gateway.bundle(opening), opening=opening)
    remember(store, trust, first, verify(first, trust))
    seen = store.seen(key)
    assert seen is not None
    assert seen == first.bundle.log.checkpoint

    later = Proof(bundle=gateway.bundle(opening), opening=opening)
    remember(store, trust, later, verify(later, trust, Growth(seen, None)))
    assert store.seen(key) == seen

    proof = gateway.log.tree.consistency(first.bundle.log.size)
    remember(store, trust, later, verify(later, trust, Growth(seen, proof)))
    assert store.seen(key) == later.bundle.log.checkpoint


def test_threads_that_write_the_same_file_do_not_mix_what_they_write(tmp_path: Path) -> None:
    path = tmp_path / "note"
    notes = [letter * 200_000 for letter in (b"a", b"b")]

    def write(note: bytes) -> None:
        for _ in range(50):
            write_private(path, note)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, notes))

    assert path.read_bytes() in notes
    assert list(tmp_path.iterdir()) == [path]
