"""The few DER elements that vendors' certificate extensions are made of (ITU-T X.690)."""

_SHORT_LENGTH_MAX = 127


def element(tag: int, content: bytes) -> bytes:
    """Tag, length, content."""
    length = len(content)
    if length <= _SHORT_LENGTH_MAX:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE."""
    return element(0x30, b"".join(parts))


def octets(content: bytes) -> bytes:
    """OCTET STRING."""
    return element(0x04, content)


def boolean(*, value: bool) -> bytes:
    """BOOLEAN."""
    return element(0x01, b"\xff" if value else b"\x00")


def enumerated(value: int) -> bytes:
    """ENUMERATED, below 128."""
    return element(0x0A, bytes((value,)))


def integer(value: int) -> bytes:
    """INTEGER, not negative."""
    return element(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def identifier(dotted: str) -> bytes:
    """OBJECT IDENTIFIER."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    encoded = bytearray((first * 40 + second,))
    for arc in rest:
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | (arc & 0x7F))
        encoded += bytes(reversed(septets))
    return element(0x06, bytes(encoded))
