"""`cocoon escrow` on the local chain (a simulated TON): fund, look, leave; with no gateway anywhere near."""

from pathlib import Path

import msgspec
import pytest

from cli.contract import ContractError
from cli.escrow import new_escrow
from cli.escrow_gateway import Terms, require_pinned
from cli.escrow_owner import EscrowOwner
from cli.wallet import on_chain
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE, EscrowData, EscrowPhase
from cocoon_client.escrow_file import EscrowFile
from tests.escrow_command import TON, WALLET, WORDS, keep_words, refund, run
from tests.fixtures_chain import LocalChain

WINDOW_S = 3_600
TERMS = Terms(
    global_id=-3, operator="0:" + "04" * 32, payout="0:" + "05" * 32, operator_key="00" * 32,
    code_hash=code_of(CODE).hash.hex(), challenge_s_min=WINDOW_S,
)  # fmt: skip


class Kept:
    """An escrow's file and the client's words, as their owner keeps them."""

    def __init__(self, folder: Path, client: Address = WALLET.address) -> None:
        self.escrow: EscrowFile = new_escrow(
            TERMS, client, challenge_s=None, delegated=False, allow_max=0, allow_rate=0
        )
        self.path = folder / "escrow.json"
        self.escrow.write(self.path)
        self.options = ("--file", str(self.path), "--mnemonic-file", str(keep_words(folder)))


def look(chain: LocalChain, kept: Kept) -> EscrowData:
    """The contract by proofs."""
    data = on_chain(chain.config, -3, lambda lite: EscrowOwner(lite, kept.escrow).read())
    assert data is not None
    return data


async def finalize(owner: EscrowOwner) -> EscrowData:
    return await owner.take(owner.finalize(), WALLET)


def test_a_client_funds_tops_up_and_leaves_without_any_gateway(own_chain: LocalChain, tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    own_chain.faucet(WALLET.address, 20 * TON)

    empty = run("status", "--file", str(kept.path), chain=own_chain)
    assert (empty.returncode, "nothing was deposited" in empty.stdout) == (0, True), empty.stderr
    assert "SIMULATED" in empty.stderr
    for amount, total in (("5", 5 * TON), ("2.000000001", 7 * TON + 1)):
        done = run("top-up", *kept.options, "--amount", amount, chain=own_chain)
        assert done.returncode == 0, done.stderr
        data = look(own_chain, kept)
        assert (data.phase, data.deposited_nano) == (EscrowPhase.OPEN, total)

    asked = run("close", *kept.options, chain=own_chain)
    assert (asked.returncode, "requested" in asked.stdout) == (0, True), asked.stderr
    early = run("close", *kept.options, chain=own_chain)
    assert early.returncode == 0, early.stderr
    assert look(own_chain, kept).phase is EscrowPhase.CLOSING
    with pytest.raises(ContractError, match="exit code 107"):
        on_chain(own_chain.config, -3, lambda lite: finalize(EscrowOwner(lite, kept.escrow)))
    refused = run("top-up", *kept.options, "--amount", "1", chain=own_chain)
    assert (refused.returncode, "no more deposits" in refused.stderr) == (1, True)

    own_chain.advance(WINDOW_S + 1)
    left = run("close", *kept.options, chain=own_chain)
    assert (left.returncode, "7.000000001 TON were paid back" in left.stdout) == (0, True), left.stdout + left.stderr
    assert look(own_chain, kept).phase is EscrowPhase.CLOSED
    assert refund(own_chain, kept.escrow.address) == (7 * TON + 1, 7 * TON + 1)


def test_only_the_clients_words_close_and_only_with_enough_in_the_wallet(
    local_chain: LocalChain, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    foreign = Kept(tmp_path / "a", Address(0, bytes([8]) * 32))
    local_chain.faucet(WALLET.address, 2 * TON)
    poor = run("top-up", *foreign.options, "--amount", "1000", chain=local_chain)
    assert (poor.returncode, "are needed" in poor.stderr) == (1, True)
    assert run("top-up", *foreign.options, "--amount", "0.5", chain=local_chain).returncode == 0
    refused = run("close", *foreign.options, chain=local_chain)
    assert (refused.returncode, "only 0:0808" in refused.stderr) == (1, True), refused.stderr
    nothing = run("close", *Kept(tmp_path / "b").options, chain=local_chain)
    assert (nothing.returncode, "nothing to close" in nothing.stderr) == (1, True)
    for shown in (poor, refused, nothing):
        assert not set(WORDS.split()) <= set((shown.stdout + shown.stderr).split())


def test_a_link_deposits_for_any_wallet_and_closing_needs_words(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    shown = run("top-up", "--file", str(kept.path), "--amount", "3")
    assert (shown.returncode, "ton://transfer/" in shown.stdout) == (0, True)
    assert run("close", "--file", str(kept.path)).returncode == 2
    assert run("status", "--file", str(kept.path)).returncode == 2  # no liteservers


def test_a_gateway_with_another_contract_or_operator_is_not_paid() -> None:
    require_pinned(TERMS, Address.parse(TERMS.operator))
    with pytest.raises(ContractError, match="another contract"):
        require_pinned(msgspec.structs.replace(TERMS, code_hash="00" * 32), None)
    with pytest.raises(ContractError, match="operator is"):
        require_pinned(TERMS, Address(0, bytes([9]) * 32))
