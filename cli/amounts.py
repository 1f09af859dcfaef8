"""Amounts as people type them: decimal TON, exact to the nano."""

import click

from cocoon.money import parse_units


class NanoParameter(click.ParamType[int]):
    """A decimal number of TON, at most nine decimals; the value is an int of nano."""

    name = "TON"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse without floats: what cannot be said exactly is refused."""
        if isinstance(value, int):
            return value
        try:
            return parse_units(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an amount in TON with at most nine decimals", param, ctx)


TON = NanoParameter()
