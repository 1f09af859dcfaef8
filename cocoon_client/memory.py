"""Proofs of a process that keeps no files: the newest of them, while it lives."""

from typing import Final

from cocoon_client.opening import Opening
from cocoon_client.verification.proof import Proof

PROOFS_MAX: Final = 256


class ProofsInMemory:
    """By receipt id; beyond the maximum the oldest are forgotten."""

    def __init__(self, proofs_max: int = PROOFS_MAX) -> None:
        self._proofs_max = proofs_max
        self._proofs: dict[str, Proof] = {}
        self._seen: dict[str, str] = {}

    def keep(self, opening: Opening) -> None:
        """Keep what opens a receipt."""
        self.save(Proof(opening=opening))

    def load(self, receipt_id: str) -> Proof | None:
        """What was kept of a receipt."""
        return self._proofs.get(receipt_id)

    def save(self, proof: Proof) -> None:
        """Keep a proof in place of what was kept of the same receipt."""
        self._proofs[proof.receipt_id] = proof
        while len(self._proofs) > self._proofs_max:
            del self._proofs[next(iter(self._proofs))]

    def seen(self, log_key: str) -> str | None:
        """The last checkpoint seen, a signed note."""
        return self._seen.get(log_key)

    def see(self, log_key: str, note: str) -> None:
        """Remember a checkpoint."""
        self._seen[log_key] = note

    @property
    def newest(self) -> Opening | None:
        """What was kept of the last answer."""
        proof = next(reversed(self._proofs.values()), None)
        return None if proof is None else proof.opening
