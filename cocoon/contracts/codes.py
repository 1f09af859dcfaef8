"""The contracts' compiled code, as `contracts/build.mjs` commits it beside this module."""

import functools
import importlib.resources

from cocoon.cells import Cell, read_boc

_FOLDER = importlib.resources.files("cocoon.contracts") / "code"


@functools.cache
def code_of(name: str) -> Cell:
    """The code of a contract by the name of its source, `client_escrow` for one.

    Raises:
        FileNotFoundError: there is no such contract.
    """
    return read_boc((_FOLDER / f"{name}.boc").read_bytes())


def known_codes() -> dict[bytes, str]:
    """The names of all contracts by the hash of their code."""
    names = sorted(one.name.removesuffix(".boc") for one in _FOLDER.iterdir() if one.name.endswith(".boc"))
    return {code_of(name).hash: name for name in names}
