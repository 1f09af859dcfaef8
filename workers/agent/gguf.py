"""What a GGUF file says of itself before its tensors: as much as a manifest names.

Source: llama.cpp's GGUF specification, versions 2 and 3, little-endian. Lengths are bounded: a file may be hostile.
"""

import hashlib
import struct
from typing import BinaryIO

import msgspec

from cocoon.errors import MalformedError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ENTRIES_MAX = 4096
_KEY_BYTES_MAX = 1024
_VALUE_BYTES_MAX = 256 * 1024 * 1024
_ITEMS_MAX = 16 * 1024 * 1024
_STRING, _ARRAY = 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32 = 4
_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m",
    13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 32: "bf16",
}  # fmt: skip


class GGUFFacts(msgspec.Struct, frozen=True):
    """`tokenizer_sha256` is over the raw entries `tokenizer.ggml.*` (key, type, value) as they stand in the file."""

    quantisation: str
    tokenizer_sha256: bytes | None
    chat_template: str | None


def read_gguf(file: BinaryIO) -> GGUFFacts:
    """The facts in a file that is open at its beginning.

    Raises:
        MalformedError: not GGUF, or not of a version that is read here.
    """
    source = _Source(file)
    if source.take(4) != _MAGIC or source.integer(4) not in _VERSIONS:
        raise MalformedError("not a GGUF file of version 2 or 3")
    source.integer(8)
    entries = source.integer(8)
    if entries > _ENTRIES_MAX:
        raise MalformedError("the GGUF file has too many entries")
    tokenizer, template, file_type = hashlib.sha256(), None, None
    seen = False
    for _ in range(entries):
        key, raw, kind, value = _entry(source)
        if key.startswith("tokenizer.ggml."):
            seen = True
            tokenizer.update(raw)
        elif key == "tokenizer.chat_template" and kind == _STRING:
            template = value.decode("utf-8", "strict")
        elif key == "general.file_type" and kind == _UINT32:
            file_type = int.from_bytes(value, "little")
    named = "unknown" if file_type is None else _FILE_TYPES.get(file_type, f"gguf-{file_type}")
    return GGUFFacts(named, tokenizer.digest() if seen else None, template)


def _entry(source: "_Source") -> tuple[str, bytes, int, bytes]:
    """Key, raw bytes, type, and value of the next entry; a string's value is without its length."""
    length = source.integer(8)
    if length > _KEY_BYTES_MAX:
        raise MalformedError("a key of the GGUF file is too long")
    key = source.take(length)
    kind = source.integer(4)
    value = source.value(kind)
    raw = struct.pack("<Q", length) + key + struct.pack("<I", kind) + value
    try:
        return key.decode(), raw, kind, value[8:] if kind == _STRING else value
    except UnicodeDecodeError as error:
        raise MalformedError("a key of the GGUF file is not text") from error


class _Source:
    """Bytes of a file from its beginning, at most `_VALUE_BYTES_MAX` of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _VALUE_BYTES_MAX

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise MalformedError("the GGUF file's entries are too long")
        taken = self._file.read(count)
        if len(taken) != count:
            raise MalformedError("the GGUF file is cut short")
        self._left -= count
        return taken

    def integer(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def value(self, kind: int, *, nested: bool = False) -> bytes:
        """The raw bytes of a value, its own length and those of its items included."""
        if kind in _WIDTHS:
            return self.take(_WIDTHS[kind])
        if kind == _STRING:
            raw = self.take(8)
            return raw + self.take(int.from_bytes(raw, "little"))
        if kind != _ARRAY or nested:
            raise MalformedError("a GGUF value of an unknown type")
        inner, count = self.take(4), self.take(8)
        items, number = int.from_bytes(inner, "little"), int.from_bytes(count, "little")
        if number > _ITEMS_MAX:
            raise MalformedError("a GGUF array is too long")
        if items in _WIDTHS:
            return inner + count + self.take(number * _WIDTHS[items])
        return b"".join([inner, count, *(self.value(items, nested=True) for _ in range(number))])
