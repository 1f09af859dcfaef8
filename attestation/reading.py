"""A cursor over untrusted little-endian bytes: every read is checked, nothing is read twice."""

from cocoon.errors import MalformedError


class Reader:
    """Takes fields from the front of `raw`."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw = raw
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            MalformedError: fewer are left.
        """
        end = self._at + count
        if count < 0 or end > len(self._raw):
            raise MalformedError(f"{self._what} ends too early")
        taken = self._raw[self._at : end]
        self._at = end
        return taken

    def integer(self, width: int) -> int:
        """The next `width` bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(width), "little")

    @property
    def position(self) -> int:
        """How many bytes have been taken."""
        return self._at

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._raw) - self._at

    def end(self) -> None:
        """Nothing may be left.

        Raises:
            MalformedError: something is.
        """
        if self.left:
            raise MalformedError(f"{self._what} has {self.left} bytes too many")
