"""The `cocoon` command: a group whose subcommands are imported when they are used, and only then.

`cocoon worker` runs inside a measured image and must load no gateway code; `cocoon --help` must not load anything.
So names and summaries stand here as data, and a module is imported by the subcommand that needs it.
"""

import importlib.metadata
from collections.abc import Mapping

import click

from cli.lazy import DISTRIBUTION, LazyGroup, Subcommand

SUBCOMMANDS: Mapping[str, Subcommand] = {
    "alerts": Subcommand("cli.alerts", "Tell customers of low balances and high spending.", "gateway"),
    "biller": Subcommand("cli.biller", "Settle with the chain: deposits, vouchers, epochs, payouts.", "gateway"),
    "billing": Subcommand("cli.billing", "Check that the books balance; list discrepancies.", "gateway"),
    "chain": Subcommand("cli.chain", "The local chain of development: a simulated TON.", "dev"),
    "dev": Subcommand("cli.dev.command", "Run the whole network on this machine, until Ctrl-C.", "dev"),
    "escrow": Subcommand("cli.escrow", "Fund your use from a contract of your own, and leave it.", "gateway"),
    "gateway": Subcommand("cli.gateway", "Serve the OpenAI-compatible API.", "gateway"),
    "keys": Subcommand("cli.keys", "Create, list, limit, rotate and revoke keys.", "gateway"),
    "orgs": Subcommand("cli.orgs", "Organisations: create, credit, list; who changed what.", "gateway"),
    "projects": Subcommand("cli.projects", "Projects of an organisation and their limits.", "gateway"),
    "manifest": Subcommand("cli.manifest", "Describe the files of a model; check files against it.", "worker"),
    "migrate": Subcommand("cli.migrate", "Bring the database schema up to date.", "gateway"),
    "operator": Subcommand("cli.operator_keys", "Make the operator's key and delegate to gateways.", "gateway"),
    "policy": Subcommand("cli.policy", "Check and show what workers' evidence is judged by.", "gateway"),
    "prices": Subcommand("cli.prices", "Show and set what models cost.", "gateway"),
    "proxy": Subcommand("cli.proxy", "Serve the OpenAI API on this machine; seal and verify everything.", "client"),
    "reconcile": Subcommand("cli.reconcile", "Compare usage, receipts, transfers and the chain.", "gateway"),
    "slash": Subcommand("cli.slash", "Evidence that costs a worker's stake: list, hand out, submit.", "gateway"),
    "verify": Subcommand("cli.verify", "Verify a receipt, step by step, in words.", "client"),
    "workers": Subcommand(
        "cli.workers", "Show workers, their evidence and standing; remove and reinstate them.", "gateway"
    ),
    "worker": Subcommand("cli.worker", "Serve a model beside its engine.", "worker"),
}


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  click's form
    if value and not ctx.resilient_parsing:
        click.echo(f"cocoon {importlib.metadata.version(DISTRIBUTION)}")
        ctx.exit()


main = LazyGroup(
    name="cocoon",
    subcommands=SUBCOMMANDS,
    help="Cocoon: a confidential compute network behind one OpenAI-compatible address.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version and exit.",
        )
    ],
)

if __name__ == "__main__":
    main()
