"""`cocoon worker stake` on the local chain (a simulated TON): bond, look, leave, and be slashed; with no gateway."""

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.contract import Step, new_query_id
from cli.private_files import read_private
from cli.stake_owner import StakeOwner
from cli.wallet import on_chain
from cocoon.addresses import Address
from cocoon.cells import Cell, read_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import (
    Bond,
    Evidence,
    EvidenceKind,
    RequestUnbond,
    Slash,
    StakeConfig,
    StakeData,
    StakePhase,
    delegate_receipt_key,
    stake_init,
)
from tests.escrow_command import TON, WALLET, WORDS, Done, cocoon, keep_words
from tests.fixtures_chain import LocalChain
from tests.slash_evidence import a_head, key, public
from tests.stake_values import OPERATOR, OPERATOR_KEY
from workers.agent.staking import read_staked_key

WAIT_S = 86_400
TERMS = ("--operator", str(OPERATOR), "--operator-key", OPERATOR_KEY.hex(), "--unbond", str(WAIT_S), "--bounty", "1000")
NOT_AFTER = 2**33


class Staker:
    """A worker's operator with its files and its wallet's words."""

    def __init__(self, chain: LocalChain, folder: Path) -> None:
        self.chain = chain
        self.key_file, self.config_file = folder / "staked.key", folder / "stake.boc64"
        self.words = str(keep_words(folder))

    def run(self, name: str, *options: str, **changes: Any) -> Done:
        """`cocoon worker stake NAME`, from the wallet where it is one that pays."""
        pays = () if name == "status" else ("--mnemonic-file", self.words)
        files = ("--config-file", str(self.config_file), "--global-id", "-3")
        return cocoon("worker", "stake", name, *files, *pays, *options, chain=self.chain, **changes)

    def open(self, amount: str = "5") -> Done:
        return self.run("open", "--key-file", str(self.key_file), *TERMS, "--amount", amount)

    @property
    def config(self) -> StakeConfig:
        return StakeConfig.decode(read_boc(base64.b64decode(self.config_file.read_bytes())))

    def look(self) -> StakeData:
        data = on_chain(self.chain.config, -3, lambda lite: StakeOwner(lite, self.config).read())
        assert data is not None
        return data

    def balances(self) -> tuple[int, int]:
        data = self.look()
        return data.bond_nano, data.unbonding_nano

    def slash(self) -> StakeData:
        """As anybody can who has two heads of one number; from the wallet of the words."""
        seed = bytes.fromhex(read_private(self.key_file))
        stake = stake_init(code_of("worker_stake"), self.config).address.account
        signature = delegate_receipt_key(
            Ed25519PrivateKey.from_private_bytes(seed), global_id=-3, stake=stake, receipt_key=public("receipt"),
            not_after=NOT_AFTER,
        )  # fmt: skip
        first, second = (a_head(stake=stake, body_sha256=bytes([n]) * 32) for n in (1, 2))
        evidence = Evidence(signature, NOT_AFTER, public("receipt")).equivocation(
            (first, key("receipt").sign(first)), (second, key("receipt").sign(second))
        )
        slash = Slash(new_query_id(), EvidenceKind.EQUIVOCATION, evidence)
        step = Step[StakeData](slash, TON, lambda data: data.phase is StakePhase.SLASHED)
        return on_chain(self.chain.config, -3, lambda lite: StakeOwner(lite, self.config).take(step, WALLET))


def test_a_stake_is_bonded_topped_up_unbonded_and_withdrawn(own_chain: LocalChain, tmp_path: Path) -> None:
    staker = Staker(own_chain, tmp_path)
    own_chain.faucet(WALLET.address, 20 * TON)

    opened = staker.open()
    assert opened.returncode == 0, opened.stderr
    assert "SIMULATED" in opened.stderr
    assert f"COCOON_STAKED_KEY_FILE={staker.key_file}" in opened.stdout
    assert "returns after 86400 s (1 day" in opened.stdout
    assert staker.balances() == (5 * TON, 0)
    # What the agent is told is what was deployed.
    kept = read_staked_key(staker.key_file, staker.config_file, global_id=-3)
    assert f"Stake {kept.address}: live." in opened.stdout
    assert (staker.config.owner, staker.config.operator) == (WALLET.address, OPERATOR)

    assert staker.run("top-up", "--amount", "2").returncode == 0
    nothing = staker.run("withdraw")
    assert (nothing.returncode, "nothing waits" in nothing.stderr) == (1, True), nothing.stderr
    assert staker.run("unbond", "--amount", "3").returncode == 0
    assert staker.balances() == (4 * TON, 3 * TON)
    early = staker.run("withdraw")
    assert (early.returncode, "too early" in early.stderr) == (1, True), early.stderr

    # The wait would begin again for the three: that is asked about, and nothing is sent without an answer.
    refused = staker.run("unbond", answer="n\n")
    assert (refused.returncode, "wait begins again" in refused.stderr) == (1, True), refused.stderr
    assert staker.balances() == (4 * TON, 3 * TON)
    assert staker.run("unbond", "--yes").returncode == 0
    asked_at = staker.look().unbond_at
    again = staker.run("unbond")
    assert (again.returncode, "can be withdrawn from" in again.stdout) == (0, True), again.stderr
    assert (staker.balances(), staker.look().unbond_at) == ((0, 7 * TON), asked_at)

    own_chain.advance(WAIT_S + 1)
    assert staker.run("withdraw").returncode == 0
    assert staker.balances() == (0, 0)
    assert staker.run("withdraw").returncode == 0  # again changes nothing
    assert "Bonded 0 TON" in staker.run("status").stdout


def test_a_slashed_stake_says_so_and_takes_nothing_more(local_chain: LocalChain, tmp_path: Path) -> None:
    staker = Staker(local_chain, tmp_path)
    local_chain.faucet(WALLET.address, 20 * TON)
    assert staker.open().returncode == 0
    assert staker.run("unbond", "--amount", "1").returncode == 0

    assert staker.slash().phase is StakePhase.SLASHED
    assert "slashed" in staker.run("status").stdout
    for refused in (staker.run("top-up", "--amount", "1"), staker.run("unbond"), staker.run("withdraw")):
        assert (refused.returncode, "was slashed" in refused.stderr) == (1, True), refused.stdout


def test_only_the_owner_unbonds_and_nothing_happens_with_too_little(local_chain: LocalChain, tmp_path: Path) -> None:
    staker = Staker(local_chain, tmp_path)
    empty = staker.run("status")  # no configuration yet
    assert (empty.returncode, "stake_unusable" in empty.stderr) == (1, True)
    local_chain.faucet(WALLET.address, 3 * TON)
    poor = staker.open("1000000")
    assert (poor.returncode, "are needed" in poor.stderr) == (1, True), poor.stderr
    assert "Nothing was bonded yet" in staker.run("status").stdout
    assert "nothing was bonded" in staker.run("unbond").stderr
    # What was made stays, and is gone on with: never made anew.
    key_before = staker.key_file.read_bytes()
    assert staker.open().returncode == 2
    assert staker.run("top-up", "--amount", "0.5").returncode == 0
    assert staker.key_file.read_bytes() == key_before
    assert staker.key_file.stat().st_mode & 0o077 == 0
    much = staker.run("unbond", "--amount", "0.6")
    assert (much.returncode, "only 0.5 TON are bonded" in much.stderr) == (1, True)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    other = Staker(local_chain, foreign)
    files = ("--key-file", str(other.key_file), "--config-file", str(other.config_file), "--global-id", "-3")
    owner = Address(0, b"\x08" * 32)
    linked = cocoon("worker", "stake", "open", *files, *TERMS, "--owner", str(owner), "--amount", "1")
    assert (linked.returncode, "ton://transfer/" in linked.stdout) == (0, True), linked.stderr
    assert other.run("top-up", "--amount", "1").returncode == 0  # anybody's wallet bonds
    refused = other.run("unbond")
    assert (refused.returncode, f"only {owner}" in refused.stderr) == (1, True), refused.stderr
    for shown in (poor, much, refused):
        assert not set(WORDS.split()) <= set((shown.stdout + shown.stderr).split())


def test_links_carry_what_the_commands_would_send(local_chain: LocalChain, tmp_path: Path) -> None:
    staker = Staker(local_chain, tmp_path)
    local_chain.faucet(WALLET.address, 3 * TON)
    assert staker.open("1").returncode == 0
    files = ("--config-file", str(staker.config_file), "--global-id", "-3")

    def body(*arguments: str) -> Cell:
        done = cocoon("worker", "stake", *arguments, *files, chain=local_chain)
        assert done.returncode == 0, done.stderr
        link = done.stdout.split("ton://transfer/")[1].split()[0]
        assert "init=" not in link  # it is there already, and a short link makes a QR code that can be read
        raw = link.split("bin=")[1].split("&")[0]
        return read_boc(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))

    assert Bond.decode(body("top-up", "--amount", "2")).amount_nano == 2 * TON
    assert RequestUnbond.decode(body("unbond")).amount_nano == TON
    assert staker.balances() == (TON, 0)


@pytest.mark.parametrize("missing", ["--operator", "--operator-key", "--unbond", "--bounty"])
def test_without_a_gateway_every_term_is_the_owners_to_say(tmp_path: Path, missing: str) -> None:
    at = TERMS.index(missing)
    given = TERMS[:at] + TERMS[at + 2 :]
    files = ("--key-file", str(tmp_path / "key"), "--config-file", str(tmp_path / "config"), "--global-id", "-3")
    done = cocoon("worker", "stake", "open", *files, *given, "--owner", "0:" + "08" * 32, "--amount", "1")
    assert (done.returncode, "--gateway-url" in done.stderr) == (2, True)
    assert not (tmp_path / "key").exists()
