"""The named statements beside this module, read once."""

from importlib.resources import files

from cocoon.sql import named_statements


def load_statements(file_name: str) -> dict[str, str]:
    """Statements of one `.sql` file of this package, by name."""
    return named_statements(files("billing.postgres").joinpath(file_name).read_text(encoding="utf-8"))
