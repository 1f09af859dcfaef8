"""`cocoon slash` on the local chain (a simulated TON): whoever has evidence submits it and takes the bounty."""

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from billing.postgres.pool import connect
from billing.postgres.slashing import keep_evidence
from billing.settlement.deployment import deploy_stake
from billing.slashing import StakeEvidence
from cli.contract import Contract
from cli.main import main
from cli.slash import EvidenceFile
from cli.wallet import on_chain
from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, Bond, EvidenceKind, StakeConfig, StakeData, StakePhase, stake_init
from tests.escrow_command import TON, WALLET, keep_words
from tests.fixtures_chain import LocalChain
from tests.ledger_values import job_id
from tests.slash_evidence import NETWORK, a_head, digest, named, public, signed

BOND = 3 * TON
OWNER = Address(0, bytes([9]) * 32)


class Stake:
    """A stake of this test's own, and two heads that its worker should not have signed."""

    def __init__(self, name: str) -> None:
        self.config = StakeConfig(
            owner=OWNER, operator=OWNER, staked_key=public("staked"), operator_key=public("operator"),
            unbond_s=60, bounty_bps=2_000, salt=hashlib.sha256(name.encode()).digest(),
        )  # fmt: skip
        self.init = stake_init(code_of(CODE), self.config)
        self.address = self.init.address

    def evidence(self, signer: str = "receipt") -> EvidenceFile:
        stake = self.address.account
        heads = [signed(a_head(stake=stake, body_sha256=digest(body)), signer) for body in ("one", "two")]
        cell = named(stake=stake).equivocation(heads[0], heads[1])
        return EvidenceFile(
            global_id=NETWORK, stake=str(self.address), kind=EvidenceKind.EQUIVOCATION, evidence=write_boc(cell)
        )

    def bond(self, chain: LocalChain) -> None:
        """From the wallet whose words the tests know."""
        transfer = deploy_stake(self.config, BOND)

        async def deploy(contract: Contract[StakeData]) -> StakeData:
            return await contract.carry_out(
                WALLET, Bond(1, BOND), transfer.value_nano, lambda data: data.bond_nano == BOND
            )

        on_chain(
            chain.config, NETWORK,
            lambda lite: deploy(Contract(lite, self.address, code_of(CODE), StakeData.decode, self.init)),
        )  # fmt: skip

    def look(self, chain: LocalChain) -> StakeData:
        found = on_chain(
            chain.config, NETWORK, lambda lite: Contract(lite, self.address, code_of(CODE), StakeData.decode).read()
        )
        assert found is not None
        return found


def write(said: EvidenceFile, path: Path) -> str:
    path.write_bytes(msgspec.json.encode(said))
    return str(path)


def run(*arguments: str, **environment: str) -> Result:
    result = CliRunner().invoke(main, ["slash", *arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_anybody_with_evidence_slashes_once_and_is_told_why_nothing_else_works(
    local_chain: LocalChain, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    stake, options = Stake(request.node.name), ("--mnemonic-file", str(keep_words(tmp_path)))
    environment = {"COCOON_LITESERVERS": str(local_chain.config)}
    local_chain.faucet(WALLET.address, 20 * TON)
    file = write(stake.evidence(), tmp_path / "evidence.json")
    absent = run("submit", file, *options, **environment)
    assert (absent.exit_code, "there is no stake" in absent.stderr) == (1, True), absent.output

    stake.bond(local_chain)
    forged = run("submit", write(stake.evidence("foreign"), tmp_path / "forged.json"), *options, **environment)
    assert (forged.exit_code, "exit code 104" in forged.stderr) == (1, True), forged.output
    assert stake.look(local_chain).bond_nano == BOND

    done = run("submit", file, *options, **environment)
    assert done.exit_code == 0, done.output
    assert f"The bounty of 0.6 TON goes to {WALLET.address}" in done.stdout
    assert "SIMULATED" in done.stderr
    assert stake.look(local_chain).phase is StakePhase.SLASHED
    again = run("submit", file, *options, **environment)
    assert (again.exit_code, "exit code 102" in again.stderr) == (1, True), again.output


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"v":1,"global_id":-3,"stake":"x","kind":9,"evidence":""}'])
def test_a_file_that_is_no_evidence_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evidence.json"
    path.write_bytes(content)

    result = run("submit", str(path), "--mnemonic-file", str(keep_words(tmp_path)))
    assert (result.exit_code, "evidence_unusable" in result.stderr) == (1, True)


def test_an_operator_lists_and_hands_out_what_is_kept(database_url: str, tmp_path: Path) -> None:
    said = Stake("listed").evidence()

    async def keep() -> None:
        async with connect(database_url, application="test") as connection:
            one = StakeEvidence(
                stake=said.stake, worker_id=job_id(), kind=said.kind, slot=bytes(40), job_id=job_id(), attempt=0,
                boc=said.evidence,
            )  # fmt: skip
            await keep_evidence(connection, [one])

    environment = {"COCOON_DATABASE_URL": database_url, "COCOON_GLOBAL_ID": str(NETWORK)}
    assert "No evidence" in run("list", **environment).stdout
    asyncio.run(keep())
    path = tmp_path / "evidence.json"
    [row] = msgspec.json.decode(run("list", "--json", **environment).stdout)["evidence"]
    handed = run("export", str(row["id"]), "--out", str(path), **environment)

    assert (row["state"], row["kind"], row["stake"]) == ("pending", "equivocation", said.stake)
    assert said.stake in run("list", **environment).stdout
    assert handed.exit_code == 0, handed.output
    assert msgspec.json.decode(path.read_bytes(), type=EvidenceFile) == said
    unknown = run("export", "99", "--out", str(path), **environment)
    assert (unknown.exit_code, "evidence_unusable" in unknown.stderr) == (1, True)
