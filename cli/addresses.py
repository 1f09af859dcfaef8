"""TON addresses as people type them, in either form."""

import click

from cocoon.addresses import Address
from cocoon.errors import MalformedError


class AddressParameter(click.ParamType[Address]):
    """A raw or a friendly address."""

    name = "ADDRESS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Parse it; what is neither is a mistake in how the command was called."""
        if isinstance(value, Address):
            return value
        try:
            return Address.parse_any(str(value))
        except MalformedError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


ADDRESS = AddressParameter()
