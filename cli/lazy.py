"""Groups of commands whose members are imported when they are used, and only then."""

import importlib
from collections.abc import Mapping

import click
import msgspec

from cocoon.errors import CocoonError

DISTRIBUTION = "cocoon-network"
FIRST_PARTY = frozenset({
    "attestation", "audit", "billing", "cli", "cocoon", "cocoon_client", "gateway", "migrations", "workers",
})  # fmt: skip


class Subcommand(msgspec.Struct, frozen=True):
    """Where a subcommand lives: `module` has an attribute `command`; `extra` names what pip must have installed."""

    module: str
    summary: str
    extra: str


class LazyGroup(click.Group):
    """A click group that knows its subcommands by name and imports each at its first use."""

    def __init__(self, *, subcommands: Mapping[str, Subcommand], **attributes: object) -> None:
        super().__init__(**attributes)  # pyright: ignore[reportArgumentType]  click types its own keywords
        self._subcommands = subcommands

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Names in the order of the alphabet."""
        return sorted(self._subcommands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand; a package that pip did not install is named with the extra that brings it."""
        entry = self._subcommands.get(cmd_name)
        if entry is None:
            return None
        try:
            module = importlib.import_module(entry.module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in FIRST_PARTY:
                raise
            group = "cocoon" if ctx.parent is None else ctx.command_path
            raise click.ClickException(
                f"'{group} {cmd_name}' needs the package {missing!r}: pip install '{DISTRIBUTION}[{entry.extra}]'"
            ) from error
        command = module.command
        assert isinstance(command, click.Command), f"{entry.module}.command is a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._subcommands[name].summary) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        """Run; an operating error becomes one line on standard error and exit status 1, never a traceback."""
        try:
            return super().invoke(ctx)
        except CocoonError as error:
            raise click.ClickException(f"{error} [{error.code}]") from error
