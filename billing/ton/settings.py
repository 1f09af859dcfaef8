"""Which liteservers to ask: a file in the form of TON's own `global.config.json`.

Only `liteservers[]` is read here: an IPv4 address as a signed integer, a port, and the server's Ed25519 key in base64.
"""

import base64
import binascii
import ipaddress
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated

import msgspec

from billing.settings import SettingsError

LITESERVERS_VARIABLE = "COCOON_LITESERVERS"
SERVERS_MAX = 64
FILE_BYTES_MAX = 1 << 20
_KEY_BYTES = 32


class _Key(msgspec.Struct, frozen=True):
    key: str


class _Server(msgspec.Struct, frozen=True):
    ip: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)]
    port: Annotated[int, msgspec.Meta(ge=1, lt=2**16)]
    id: _Key


class _Config(msgspec.Struct, frozen=True):
    liteservers: Annotated[list[_Server], msgspec.Meta(min_length=1, max_length=SERVERS_MAX)]


class Liteserver(msgspec.Struct, frozen=True):
    """Where a liteserver listens, and the Ed25519 key that it proves itself with."""

    host: str
    port: int
    public_key: bytes

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_liteservers(text: bytes) -> tuple[Liteserver, ...]:
    """The liteservers of a configuration.

    Raises:
        SettingsError: not in the form of `global.config.json`, or without liteservers.
    """
    try:
        config = msgspec.json.decode(text, type=_Config)
        return tuple(_liteserver(one) for one in config.liteservers)
    except (msgspec.DecodeError, ValueError, binascii.Error) as error:
        raise SettingsError(f"not a configuration of liteservers: {error}") from error


def read_liteservers(path: pathlib.Path) -> tuple[Liteserver, ...]:
    """As `parse_liteservers`, of a file.

    Raises:
        SettingsError: it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise SettingsError(f"{path} is too long for a configuration of liteservers")
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    return parse_liteservers(text)


def liteservers_setting(environment: Mapping[str, str] = os.environ) -> tuple[Liteserver, ...] | None:
    """The liteservers in the file that `COCOON_LITESERVERS` names; None where it names none: there is no chain then.

    Raises:
        SettingsError: the file cannot be read, or is none.
    """
    named = environment.get(LITESERVERS_VARIABLE, "")
    return read_liteservers(pathlib.Path(named)) if named else None


def _liteserver(server: _Server) -> Liteserver:
    key = base64.b64decode(server.id.key, validate=True)
    if len(key) != _KEY_BYTES:
        raise ValueError("a liteserver's key has 32 bytes")
    return Liteserver(str(ipaddress.IPv4Address(server.ip & 0xFFFFFFFF)), server.port, key)
