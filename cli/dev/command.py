"""`cocoon dev`: the whole network on one machine, until Ctrl-C."""

import asyncio
import sys

import click

from cli.dev.address import PortTakenError, is_free
from cli.dev.network import Network
from cli.dev.screen import Screen
from cli.dev.settings import read_dev_settings
from cli.dev.state import DevError, StateDirectory
from cli.dev.supervisor import Supervisor, sweep
from cocoon.clock import SystemClock, system_random


@click.command("dev")
def command() -> None:
    """Run the whole network on this machine, until Ctrl-C.

    COCOON_PORT chooses the gateway's port (8080), COCOON_STATE_DIR where state is kept (.cocoon).
    """
    try:
        run()
    except DevError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code) from error


def run() -> None:
    """Start, serve, stop; blocks.

    Raises:
        DevError: another run holds the directory, the port is taken, or a part could not be brought up.
    """
    settings = read_dev_settings()
    clock = SystemClock()
    screen = Screen(sys.stdout)
    state = StateDirectory(settings.state)
    state.open()
    state.lock(settings.base_url)
    try:
        state.remove_dev_file()
        if left := sweep(state.mark, clock):
            screen.say(f"An earlier run had crashed; ended {len(left)} of its processes.")
        if not is_free(settings.port, settings.host):
            raise PortTakenError(
                f"port {settings.port} on {settings.host} is taken by another program;"
                f" stop it, or choose another: COCOON_PORT={settings.port + 1} make dev"
            )
        rng = system_random()
        network = Network(settings, state, state.secrets(rng), clock, rng, screen)
        try:
            asyncio.run(Supervisor(state, clock, network.changed).run(network.boot))
        finally:
            state.remove_dev_file()
            sweep(state.mark, clock)
        screen.say("Cocoon has stopped.")
    finally:
        state.unlock()
