"""`cocoon slash`: evidence that costs a worker its stake, for the operator that keeps it and for anybody who has it.

Submitting needs liteservers and a wallet, no gateway and no database: the contract pays whoever proves it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import click
import msgspec

from billing.postgres.pool import Pool
from billing.postgres.slashing import SlashEvidence
from billing.settlement.actions import SLASH_NANO
from billing.settlement.settings import read_global_id
from billing.slashing import KeptEvidence, Unproven
from billing.ton.chain import Chain
from billing.ton.wallet import OperatorWallet
from cli.contract import Contract, ContractError, new_query_id
from cli.database import run_on_pool
from cli.tables import print_table, shown
from cli.wallet import liteservers_option, mnemonic_option, on_chain, read_wallet, say_network, ton
from cocoon.addresses import Address
from cocoon.cells import read_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.judge import Accused, judge
from cocoon.contracts.messages import operation_of
from cocoon.contracts.stake import CODE, Bounty, EvidenceKind, Slash, StakeData, StakePhase
from cocoon.errors import CocoonError

LISTED_MAX = 1_000
FILE_BYTES_MAX = 64 * 1024


class EvidenceFileError(CocoonError):
    """There is no such evidence, or the file with it cannot be used."""

    code: ClassVar[str] = "evidence_unusable"


class EvidenceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Evidence as it is handed around: JSON, with its cell as a bag in base64.

    The rest says where it belongs; nothing of it is believed, since the contract judges bytes.
    """

    v: Literal[1] = 1
    global_id: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
    stake: str
    kind: EvidenceKind
    evidence: bytes


def read_evidence_file(path: Path) -> EvidenceFile:
    """The evidence in a file.

    Raises:
        EvidenceFileError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX)
        return msgspec.json.decode(raw, type=EvidenceFile)
    except OSError as error:
        raise EvidenceFileError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EvidenceFileError(f"{path} is no evidence against a stake: {error}") from error


@click.group("slash")
def command() -> None:
    """Evidence that costs a worker's stake (docs/settlement.md)."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_command(*, as_json: bool) -> None:
    """What is kept and what became of it, the newest first; told by COCOON_DATABASE_URL."""

    async def work(pool: Pool) -> tuple[list[KeptEvidence], tuple[Unproven, ...]]:
        evidence = SlashEvidence(pool)
        return await evidence.list(limit=LISTED_MAX), await evidence.unproven()

    kept, unproven = run_on_pool(work)
    if as_json:
        click.echo(msgspec.json.encode({"evidence": [_said(one) for one in kept], "unproven": _counts(unproven)}))
        return
    if kept:
        _show(kept)
    else:
        click.echo("No evidence against a stake is kept.")
    for one in unproven:
        click.echo(f"{one.count} known cases of {_name(one.kind)} have no evidence of their own.")


@command.command("export")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
def export(*, number: int, out: Path) -> None:
    """Write evidence ID of the list to a file with which anybody can submit it; there is nothing secret in it."""

    async def work(pool: Pool) -> KeptEvidence | None:
        return await SlashEvidence(pool).find(number)

    kept = run_on_pool(work)
    if kept is None:
        raise EvidenceFileError(f"there is no evidence {number}: see `cocoon slash list`")
    said = EvidenceFile(global_id=read_global_id(), stake=kept.stake, kind=kept.kind, evidence=kept.boc)
    try:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(said)) + b"\n")
    except OSError as error:
        raise EvidenceFileError(f"{out}: {error.strerror}") from error
    click.echo(f"{out}: {_name(kept.kind)} against the stake {kept.stake}.")


@command.command("submit")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@liteservers_option
@mnemonic_option
def submit_command(*, file: Path, liteservers: Path | None, mnemonic_file: Path | None) -> None:
    """Have a stake slashed with the evidence in FILE, from your wallet; whoever is first gets the bounty.

    It is judged here first: what the contract would refuse costs nothing.
    """
    said = read_evidence_file(file)
    if mnemonic_file is None:
        raise click.UsageError("submitting needs --mnemonic-file: the words of the wallet that takes the bounty")
    wallet = read_wallet(mnemonic_file, said.global_id)
    say_network(said.global_id)
    bounty_nano = on_chain(liteservers, said.global_id, lambda chain: submit(chain, said, wallet))
    click.echo(f"The stake {said.stake} is slashed.")
    if bounty_nano is None:
        click.echo("Somebody else's evidence came first: the bounty is theirs.")
    else:
        click.echo(f"The bounty of {ton(bounty_nano)} TON goes to {wallet.address}.")


async def submit(chain: Chain, said: EvidenceFile, wallet: OperatorWallet) -> int | None:
    """Slash, and wait until it is seen; the bounty in nano, None where somebody else was first.

    Raises:
        ContractError: the contract would refuse it, with its exit code, and as `Contract.carry_out`.
        MalformedError: the file names no address, or holds no cell.
    """
    address, evidence = Address.parse(said.stake), read_boc(said.evidence)
    contract = Contract(chain, address, code_of(CODE), StakeData.decode)
    before = await contract.read()
    if before is None:
        raise ContractError(f"there is no stake at {address}")
    if before.phase is StakePhase.SLASHED:
        raise ContractError("the stake is slashed already (exit code 102, docs/contracts.md)")
    refusal = judge(said.kind, evidence, Accused.of(address.account, before.config, global_id=said.global_id))
    if refusal is not None:
        raise ContractError(
            f"the contract would refuse it (exit code {refusal.value}, docs/contracts.md): {refusal.reason}"
        )
    if not before.bounty_nano:
        raise ContractError("nothing is bonded there: it would cost you gas and bring nothing")
    slash = Slash(new_query_id(), said.kind, evidence)
    await contract.carry_out(wallet, slash, SLASH_NANO, lambda data: data.phase is StakePhase.SLASHED)
    for transaction in await chain.transactions(address):
        message = transaction.incoming
        if transaction.succeeded and message is not None and operation_of(message.body) == (Slash.TAG, slash.query_id):
            paid = [one for one in transaction.outgoing if operation_of(one.body) == (Bounty.TAG, slash.query_id)]
            return sum(Bounty.decode(one.body).amount_nano for one in paid)
    return None


def _show(kept: Sequence[KeptEvidence]) -> None:
    print_table(
        ("id", "state", "kind", "worker", "stake", "staked (nano)", "kept (UTC)", "submitted (UTC)", "why"),
        [
            (
                str(one.id), one.state.value, _name(one.kind), str(one.worker_id), one.stake, shown(one.staked_nano),
                f"{one.created_at:%Y-%m-%d %H:%M}",
                "-" if one.submitted_at is None else f"{one.submitted_at:%Y-%m-%d %H:%M}", one.detail or "-",
            )
            for one in kept
        ],
    )  # fmt: skip


def _said(one: KeptEvidence) -> dict[str, object]:
    """A row as JSON has it, without the bytes that `export` hands out."""
    row: dict[str, object] = msgspec.to_builtins(one)
    return {**{name: row[name] for name in row if name not in {"boc", "slot"}}, "kind": _name(one.kind)}


def _counts(unproven: Sequence[Unproven]) -> dict[str, int]:
    return {_name(one.kind): one.count for one in unproven}


def _name(kind: EvidenceKind) -> str:
    return kind.name.lower()
