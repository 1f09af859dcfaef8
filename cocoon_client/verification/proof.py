"""The file that `cocoon verify` reads and saves: a receipt bundle, and what its own client kept beside it.

    {"v": 1, "bundle": {...} or null, "opening": {...} or null}

`bundle` is `GET /v1/receipts/{id}` (`cocoon.bundle`), `opening` is `cocoon_client.opening`. A bare bundle is read too:
an auditor has no opening, and finds the commitments unopened.
"""

from typing import Literal

import msgspec

from cocoon.bundle import BUNDLE_BYTES_MAX, ReceiptBundle
from cocoon.errors import MalformedError
from cocoon_client.opening import Opening

PROOF_BYTES_MAX = 512 * 1024 * 1024


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle, an opening, or both."""

    bundle: ReceiptBundle | None = None
    opening: Opening | None = None

    @property
    def receipt_id(self) -> str:
        """Which receipt it is about, as it says itself."""
        if self.bundle is not None:
            return self.bundle.receipt_id
        return "" if self.opening is None else self.opening.receipt_id

    def encode(self) -> bytes:
        """The file's bytes."""
        bundle = msgspec.Raw(b"null" if self.bundle is None else self.bundle.encode())
        opening = msgspec.Raw(b"null" if self.opening is None else self.opening.encode())
        return msgspec.json.encode(_File(v=1, bundle=bundle, opening=opening))

    @staticmethod
    def decode(raw: bytes) -> "Proof":
        """Read a proof or a bare bundle. Nothing is verified.

        Raises:
            MalformedError: neither, or too long.
        """
        if len(raw) > PROOF_BYTES_MAX:
            raise MalformedError("the proof is too long")
        try:
            file = msgspec.json.decode(raw, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Proof(bundle=ReceiptBundle.decode(raw))
        bundle = None if _absent(file.bundle) else ReceiptBundle.decode(bytes(file.bundle))
        opening = None if _absent(file.opening) else Opening.decode(bytes(file.opening))
        return Proof(bundle=bundle, opening=opening)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[1]
    bundle: msgspec.Raw
    opening: msgspec.Raw


def _absent(part: msgspec.Raw) -> bool:
    return bytes(part) == b"null"


assert BUNDLE_BYTES_MAX < PROOF_BYTES_MAX, "a proof holds a bundle"
