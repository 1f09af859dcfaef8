"""The file of an escrow's owner: its terms, and the session key that signs for what is used. For its owner's eyes only.

The wallet's words are not in it: whoever has the file can promise what was deposited to the operator, and no more.
"""

import base64
import binascii
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import read_boc, write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE, EscrowConfig, escrow_init
from cocoon.contracts.messages import StateInit
from cocoon.errors import MalformedError
from cocoon_client.errors import ClientError
from cocoon_client.store import write_private

FILE_BYTES_MAX: Final = 16 * 1024
_SHARED: Final = 0o077
_Key = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class EscrowFileError(ClientError):
    """The escrow's file cannot be used."""

    code: ClassVar[str] = "escrow_file_unusable"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    v: Literal[1] = 1
    network: int
    escrow: str
    config: str
    session_key: _Key


class EscrowFile(msgspec.Struct, frozen=True, kw_only=True):
    """An escrow of one network (`global_id`), and its session key's 32-byte seed."""

    network: int
    config: EscrowConfig
    seed: bytes

    def __repr__(self) -> str:
        return f"EscrowFile(network={self.network}, escrow={self.address})"

    @property
    def init(self) -> StateInit:
        """What deploys it."""
        return escrow_init(code_of(CODE), self.config)

    @property
    def address(self) -> Address:
        """Where it lives."""
        return self.init.address

    @property
    def key(self) -> Ed25519PrivateKey:
        """The session key."""
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    def write(self, path: Path) -> None:
        """Keep it, readable by its owner alone.

        Raises:
            EscrowFileError: it cannot be written.
        """
        content = _File(
            network=self.network, escrow=str(self.address), session_key=self.seed.hex(),
            config=base64.b64encode(write_boc(self.config.encode())).decode(),
        )  # fmt: skip
        try:
            write_private(path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        except OSError as error:
            raise EscrowFileError(f"{path} cannot be written: {error.strerror}") from error


def read_escrow_file(path: Path) -> EscrowFile:
    """The escrow in a file.

    Raises:
        EscrowFileError: it cannot be read, others may read it, or it is not what `write` wrote.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if path.stat().st_mode & _SHARED:
            raise EscrowFileError(f"{path} may be read by others than its owner: chmod 600 {path}")
        read = msgspec.json.decode(raw, type=_File)
        config = EscrowConfig.decode(read_boc(base64.b64decode(read.config, validate=True)))
    except OSError as error:
        raise EscrowFileError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, MalformedError) as error:
        # The message of a decoder could quote the key.
        raise EscrowFileError(f"{path} is not an escrow's file") from error
    found = EscrowFile(network=read.network, config=config, seed=bytes.fromhex(read.session_key))
    if str(found.address) != read.escrow or found.key.public_key().public_bytes_raw() != config.voucher_key:
        raise EscrowFileError(f"{path} is of another escrow or key than it says")
    return found
