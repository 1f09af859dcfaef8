"""TON's addresses: raw (`0:` and 64 digits) and user-friendly (48 characters with a checksum).

Source: TON's "Smart contract addresses" (docs.ton.org). A user-friendly address is base64 of `tag1 ‖ workchain1 ‖
account32 ‖ crc2` with tag 0x11 (bounceable) or 0x51 (not), 0x80 more on test networks, and CRC16/XMODEM.
"""

import base64
import binascii
import re

import msgspec

from cocoon.errors import MalformedError

ACCOUNT_BYTES = 32
_RAW = re.compile(r"(0|-1):([0-9a-fA-F]{64})")
_FRIENDLY = re.compile(r"[A-Za-z0-9+/_-]{48}", re.ASCII)
_BOUNCEABLE, _NOT_BOUNCEABLE, _TEST_NETWORK = 0x11, 0x51, 0x80


class Address(msgspec.Struct, frozen=True):
    """An account of TON."""

    workchain: int
    account: bytes

    def __str__(self) -> str:
        return f"{self.workchain}:{self.account.hex()}"

    @staticmethod
    def parse(text: str) -> "Address":
        """An address in its raw form, `0:` and 64 hexadecimal digits.

        Raises:
            MalformedError: another form, or another workchain than 0 and -1.
        """
        found = _RAW.fullmatch(text)
        if found is None:
            raise MalformedError("an address is its workchain (0 or -1), a colon and 64 hexadecimal digits")
        return Address(int(found[1]), bytes.fromhex(found[2]))

    @staticmethod
    def parse_any(text: str) -> "Address":
        """An address in its raw form or as wallet apps show it, of whichever network.

        Raises:
            MalformedError: neither, or a mistyped one (the checksum does not fit).
        """
        if not _FRIENDLY.fullmatch(text):
            return Address.parse(text)
        raw = base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_"))
        if raw[0] & ~_TEST_NETWORK not in {_BOUNCEABLE, _NOT_BOUNCEABLE} or raw[1] not in {0, 0xFF}:
            raise MalformedError("not an address of a workchain that we know")
        if binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "big") != raw[-2:]:
            raise MalformedError("the address is mistyped: its checksum does not fit")
        return Address(-1 if raw[1] else 0, raw[2:-2])

    def friendly(self, *, bounceable: bool, test_network: bool) -> str:
        """The address as wallet apps show it."""
        tag = (_BOUNCEABLE if bounceable else _NOT_BOUNCEABLE) | (_TEST_NETWORK if test_network else 0)
        raw = bytes([tag, self.workchain & 0xFF]) + self.account
        return base64.urlsafe_b64encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "big")).decode()
