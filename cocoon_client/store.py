"""The client's folder: a proof for every answer, and the last checkpoint seen of every log; for its owner's eyes only.

The proofs hold prompts and answers in clear. `receipts/ID.json` is what `cocoon verify` reads.
"""

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Final

import structlog

from cocoon_client.errors import BundleUnavailableError
from cocoon_client.opening import Opening
from cocoon_client.verification.proof import PROOF_BYTES_MAX, Proof

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

RECEIPTS_MAX: Final = 10_000
"""Proofs kept; the oldest go."""
_PRUNE_EVERY: Final = 100
_RECEIPT_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_receipt_id(text: str) -> bool:
    """Whether `text` has the form of a receipt id."""
    return _RECEIPT_ID.fullmatch(text) is not None


class Store:
    """Files under `root`, made on first use with modes 0700 and 0600."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._receipts = root / "receipts"
        self._log = root / "log"
        self._kept = 0

    def keep(self, opening: Opening) -> None:
        """Keep what opens a receipt; the bundle comes later. A full disk costs the proof, not the answer."""
        try:
            self.save(Proof(opening=opening))
        except OSError as error:
            _log.error("proof_not_kept", receipt=opening.receipt_id, reason=error.strerror)
            return
        self._kept += 1
        if self._kept % _PRUNE_EVERY == 0:
            self._prune()

    def save(self, proof: Proof) -> None:
        """Keep a proof in place of what was kept of the same receipt."""
        self._own()
        write_private(self.path(proof.receipt_id), proof.encode())

    def load(self, receipt_id: str) -> Proof | None:
        """What was kept of a receipt.

        Raises:
            MalformedError: the file was altered.
        """
        path = self.path(receipt_id)
        try:
            return read_proof(path) if path.exists() else None
        except BundleUnavailableError:
            return None

    def path(self, receipt_id: str) -> Path:
        """Where a receipt's proof is."""
        assert is_receipt_id(receipt_id), "a receipt id is no path"
        return self._receipts / f"{receipt_id}.json"

    def seen(self, log_key: str) -> str | None:
        """The last checkpoint seen of the log with this key, a signed note."""
        try:
            return self._note(log_key).read_text()
        except OSError:
            return None

    def see(self, log_key: str, note: str) -> None:
        """Remember a checkpoint."""
        self._own()
        write_private(self._note(log_key), note.encode())

    def _own(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _note(self, log_key: str) -> Path:
        return self._log / f"{hashlib.sha256(log_key.encode()).hexdigest()[:32]}.note"

    def _prune(self) -> None:
        with contextlib.suppress(OSError):
            # Names begin with the time of the request (UUIDv7): their order is the order of age.
            names = sorted(path for path in self._receipts.iterdir() if is_receipt_id(path.stem))
            for path in names[:-RECEIPTS_MAX]:
                path.unlink(missing_ok=True)


def read_proof(path: Path) -> Proof:
    """The proof or bundle in a file.

    Raises:
        BundleUnavailableError: it cannot be read.
        MalformedError: it is neither.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(PROOF_BYTES_MAX + 1)
    except OSError as error:
        raise BundleUnavailableError(f"{path} cannot be read: {error.strerror}") from error
    return Proof.decode(raw)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    scratch.replace(path)
