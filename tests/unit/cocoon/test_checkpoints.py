"""Signed notes and checkpoints as C2SP writes them."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.checkpoints import Checkpoint, NoteSigner, NoteVerifier, open_checkpoint
from cocoon.errors import MalformedError

ORIGIN = "cocoon-log/-217"
SIGNER = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
CHECKPOINT = Checkpoint(origin=ORIGIN, size=20, root=bytes(range(32)))
NOTE = SIGNER.sign(CHECKPOINT.encode())
# The published example of signed notes: key, text and note (Go's golang.org/x/mod/sumdb/note).
NEUMANN_SEED = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
NEUMANN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NEUMANN_NOTE = (
    NEUMANN_TEXT + "\n— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_published_note_is_signed_and_verified_to_the_byte() -> None:
    seed = base64.b64decode(NEUMANN_SEED)[1:]
    signer = NoteSigner("PeterNeumann", Ed25519PrivateKey.from_private_bytes(seed))

    assert signer.verifier.text == NEUMANN_KEY
    assert NoteVerifier.parse(NEUMANN_KEY) == signer.verifier
    assert signer.sign(NEUMANN_TEXT) == NEUMANN_NOTE
    assert signer.verifier.open(NEUMANN_NOTE) == NEUMANN_TEXT


def test_a_checkpoint_is_three_lines() -> None:
    assert CHECKPOINT.encode() == "cocoon-log/-217\n20\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    assert open_checkpoint(NOTE, SIGNER.verifier, origin=ORIGIN) == CHECKPOINT


def test_lines_behind_the_third_are_signed_and_left_alone() -> None:
    note = SIGNER.sign(CHECKPOINT.encode() + "a later version's line\n")

    assert open_checkpoint(note, SIGNER.verifier, origin=ORIGIN) == CHECKPOINT


def test_other_signatures_are_left_to_who_knows_them() -> None:
    witness = NoteSigner("witness.example/w", Ed25519PrivateKey.generate())
    line = witness.sign(CHECKPOINT.encode()).rsplit("\n\n", 1)[1]

    assert open_checkpoint(NOTE + line, SIGNER.verifier, origin=ORIGIN) == CHECKPOINT
    assert open_checkpoint(NOTE + line, witness.verifier, origin=ORIGIN) == CHECKPOINT


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (NOTE.replace("\n20\n", "\n21\n"), "does not verify"),
        (NOTE.replace("AAECAw", "AAECBw"), "does not verify"),
        (NoteSigner(ORIGIN, Ed25519PrivateKey.generate()).sign(CHECKPOINT.encode()), "not signed by this key"),
        (NOTE.replace("— cocoon-log/-217 ", "— cocoon-log/-3 "), "not signed by this key"),
        (CHECKPOINT.encode(), "not a signed note"),
        (NOTE.removesuffix("\n"), "not a signed note"),
        (NOTE.replace("— ", "- "), "not a signature line"),
        (NOTE[:-6] + "====\n", "not base64"),
        (NOTE.replace("\n20\n", "\n\t20\n"), "control characters"),
        (SIGNER.sign(CHECKPOINT.encode().replace("\n20\n", "\n020\n")), "not a checkpoint"),
        (SIGNER.sign(CHECKPOINT.encode().replace("\n20\n", "\n-1\n")), "not a checkpoint"),
        (SIGNER.sign(f"{ORIGIN}\n20\n"), "not a checkpoint"),
        (SIGNER.sign(Checkpoint(origin="another", size=20, root=bytes(32)).encode()), "of another log"),
    ],
)
def test_what_was_not_signed_about_this_log_is_refused(note: str, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        open_checkpoint(note, SIGNER.verifier, origin=ORIGIN)


def test_a_key_whose_id_is_anothers_is_refused() -> None:
    with pytest.raises(MalformedError, match="another key"):
        NoteVerifier.parse(NEUMANN_KEY.replace("c74f20a3", "c74f20a4"))


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\nb"])
def test_a_name_that_no_line_could_carry_signs_nothing(name: str) -> None:
    with pytest.raises(MalformedError, match="no white space"):
        NoteSigner(name, Ed25519PrivateKey.generate())
