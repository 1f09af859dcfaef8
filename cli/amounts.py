"""Amounts as people type them: decimal TON, exact to the nano."""

import re

import click

from cocoon.money import NANO_PER_UNIT

_FORM = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?")


class NanoParameter(click.ParamType[int]):
    """A decimal number of TON, at most nine decimals; the value is an int of nano."""

    name = "TON"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse without floats: what cannot be said exactly is refused."""
        if isinstance(value, int):
            return value
        form = _FORM.fullmatch(str(value))
        if form is None:
            self.fail(f"{value!r} is not an amount in TON with at most nine decimals", param, ctx)
        return int(form[1]) * NANO_PER_UNIT + int((form[2] or "").ljust(9, "0"))


TON = NanoParameter()
