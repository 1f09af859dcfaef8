"""Files that only their owner may read: keys, mnemonics, state with secrets in it."""

import os
import stat
from pathlib import Path

from cocoon.errors import CocoonError

PRIVATE = 0o600
SECRET_BYTES_MAX = 64 * 1024


class PrivateFileError(CocoonError):
    """A file with a secret cannot be used as it is."""

    code = "private_file_unusable"


def write_private(path: Path, content: bytes) -> None:
    """Replace a file atomically, mode 0600 from its first byte on.

    Raises:
        PrivateFileError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}") from error


def read_private(path: Path) -> str:
    """The text of a file that only its owner may read.

    Raises:
        PrivateFileError: it is missing, too long, no text, or others may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise PrivateFileError(f"{path} is not a file")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise PrivateFileError(f"{path} may be read by others than its owner: chmod 600 {path}")
            content = file.read(SECRET_BYTES_MAX + 1)
        if len(content) > SECRET_BYTES_MAX:
            raise PrivateFileError(f"{path} is too long")
        return content.decode()
    except OSError as error:
        raise PrivateFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise PrivateFileError(f"{path} is not text") from None
