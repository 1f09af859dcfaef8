"""The named statements beside this module, read once."""

from importlib.resources import files

from cocoon.sql import named_statements

SQL = named_statements(files("audit.postgres").joinpath("log.sql").read_text(encoding="utf-8"))
