"""The vectors were computed by RFC 6962's recursive definitions and plain concatenation, apart from this code."""

import hashlib
import json
import pathlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.entries import Entry, LeafType, entry_of
from audit.tiles import TileRange, encode_bundle, parse_tile_path
from audit.tree import consistency_ranges, grow, hashes_of, inclusion_ranges
from cocoon.checkpoints import Checkpoint, NoteSigner, NoteVerifier, open_checkpoint
from cocoon.merkle import verify_consistency, verify_inclusion

VECTOR = json.loads((pathlib.Path(__file__).parents[2] / "vectors" / "log.json").read_text(encoding="utf-8"))
ENTRIES = [
    entry_of(LeafType.RECEIPT, bytes.fromhex(VECTOR["receipt_envelope_hex"])),
    *(entry_of(LeafType(2 + number % 4), f"envelope {number}".encode()) for number in range(299)),
]
LEAVES = [entry.encode() for entry in ENTRIES]
ROOT = bytes.fromhex(VECTOR["root_hex"])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_entries_and_roots() -> None:
    assert Entry.decode(bytes.fromhex(VECTOR["receipt_entry_hex"])) == ENTRIES[0]
    assert grow(0, {}, LEAVES).root == ROOT
    assert grow(0, {}, LEAVES[:77]).root.hex() == VECTOR["old_root_hex"]


def test_proofs() -> None:
    tiles = grow(0, {}, LEAVES).tiles
    roots = {300: ROOT, 77: bytes.fromhex(VECTOR["old_root_hex"])}
    for one in VECTOR["inclusion"]:
        path = hashes_of(inclusion_ranges(one["index"], one["size"]), tiles)
        assert [part.hex() for part in path] == one["path_hex"]
        verify_inclusion(LEAVES[one["index"]], one["index"], one["size"], path, roots[one["size"]])
    path = hashes_of(consistency_ranges(77, 300), tiles)
    assert [part.hex() for part in path] == VECTOR["consistency_hex"]
    verify_consistency(77, 300, path, roots[77], ROOT)


def test_tiles_and_bundles() -> None:
    tiles = grow(0, {}, LEAVES).tiles
    shown: dict[str, str] = {}
    for name in VECTOR["tiles"]:
        level, _, path = name.partition("/")
        asked: TileRange = parse_tile_path(path)
        if level == "entries":
            first = asked.number * 256
            shown[name] = digest(encode_bundle(ENTRIES[first : first + asked.width]))
        else:
            [content] = [raw for tile, raw in tiles.items() if tile == (int(level), asked.number)]
            shown[name] = digest(content[: asked.width * 32])

    assert shown == VECTOR["tiles"]


def test_the_checkpoint() -> None:
    verifier = NoteVerifier.parse(VECTOR["verifier_key"])
    signer = NoteSigner(verifier.name, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTOR["log_secret_hex"])))
    checkpoint = Checkpoint(origin=verifier.name, size=300, root=ROOT)

    assert signer.verifier == verifier
    assert signer.sign(checkpoint.encode()) == VECTOR["checkpoint"]
    assert open_checkpoint(VECTOR["checkpoint"], verifier, origin=verifier.name) == checkpoint
