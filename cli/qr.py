"""A QR code in a terminal: two modules in a character, dark on light whatever the terminal's own colours are."""

from itertools import zip_longest

import segno

QUIET_MODULES = 4
"""Light margin on each side, as ISO/IEC 18004 wants it."""
_DARK_ON_LIGHT, _RESET = "\x1b[30;107m", "\x1b[0m"
_GLYPHS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


class QRTooLargeError(ValueError):
    """The code is wider than the terminal, or the text longer than any code holds (2,953 bytes)."""


def qr_lines(text: str, columns: int) -> list[str]:
    """The code of a text as lines of at most `columns` characters, the lowest error correction for the largest modules.

    Raises:
        QRTooLargeError: the message says why.
    """
    try:
        code = segno.make_qr(text, error="l", boost_error=False)
    except segno.DataOverflowError:
        raise QRTooLargeError(f"{len(text)} characters are more than a QR code holds") from None
    width = len(code.matrix) + 2 * QUIET_MODULES
    if width > columns:
        raise QRTooLargeError(f"its QR code needs a terminal of {width} columns")
    rows = [bytes(width)] * QUIET_MODULES
    rows += [bytes(QUIET_MODULES) + bytes(row) + bytes(QUIET_MODULES) for row in code.matrix]
    rows += [bytes(width)] * QUIET_MODULES
    return [
        _DARK_ON_LIGHT + "".join(_GLYPHS[bool(a), bool(b)] for a, b in zip(upper, lower, strict=True)) + _RESET
        for upper, lower in zip_longest(rows[::2], rows[1::2], fillvalue=bytes(width))
    ]
