"""Amounts as people type them: decimal TON, exact to the nano."""

import click

from cocoon.money import parse_units


class NanoParameter(click.ParamType[int]):
    """A decimal number of TON, at most nine decimals and not below `nano_min`; the value is an int of nano."""

    name = "TON"

    def __init__(self, nano_min: int = 0) -> None:
        self._nano_min = nano_min

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse without floats: what cannot be said exactly is refused."""
        if isinstance(value, int):
            return value
        try:
            nano = parse_units(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an amount in TON with at most nine decimals", param, ctx)
        if nano < self._nano_min:
            self.fail("must be above zero", param, ctx)
        return nano


TON = NanoParameter()
SOME_TON = NanoParameter(1)
"""What is moved: nothing at all is a mistake, and a message that moves it costs gas."""
