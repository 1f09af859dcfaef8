"""`cocoon biller deploy` on the local chain, a simulated TON: how an operator comes to a payout contract."""

from pathlib import Path

import pytest

from billing.ton.wallet import OperatorWallet
from cli.wallet import on_chain
from cocoon.addresses import Address
from cocoon.contracts.payout import PayoutData
from tests.escrow_command import TON, Done, cocoon
from tests.fixtures_chain import LocalChain
from tests.settlement_chain import key

GLOBAL_ID = -3


class Operator:
    """An operator with a key for the wallet and one for vouchers."""

    def __init__(self, chain: LocalChain, folder: Path) -> None:
        self._chain = chain
        self._files = {name: folder / f"{name}.key" for name in ("wallet", "vouchers")}
        for name, path in self._files.items():
            path.touch(0o600)
            path.write_text(key(f"deploys {name}").private_bytes_raw().hex())
        self._wallet = OperatorWallet(key("deploys wallet"), global_id=GLOBAL_ID)
        self.wallet = self._wallet.address

    def deploy(self, *arguments: str) -> Done:
        wallet, vouchers = (str(path) for path in self._files.values())
        told = {"COCOON_BILLER_WALLET_KEY_FILE": wallet, "COCOON_VOUCHER_KEY_FILE": vouchers}
        return cocoon("biller", "deploy", *arguments, chain=self._chain, COCOON_GLOBAL_ID=str(GLOBAL_ID), **told)

    def sent(self) -> int:
        """Bodies that the wallet has taken."""
        return self._wallet.seqno_of(on_chain(self._chain.config, GLOBAL_ID, lambda lite: lite.account(self.wallet)))

    def contract(self, address: str) -> PayoutData:
        state = on_chain(self._chain.config, GLOBAL_ID, lambda lite: lite.account(Address.parse(address)))
        assert state.data is not None
        return PayoutData.decode(state.data)


@pytest.fixture
def operator(local_chain: LocalChain, tmp_path: Path) -> Operator:
    return Operator(local_chain, tmp_path)


def test_an_operator_deploys_its_payout_contract_once(operator: Operator, local_chain: LocalChain) -> None:
    poor = operator.deploy()
    assert (poor.returncode, f"the wallet {operator.wallet} has 0 TON" in poor.stderr) == (1, True), poor.stderr
    local_chain.faucet(operator.wallet, TON)

    done = operator.deploy("--fee-bps", "300", "--delay", "7200")
    told = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert told["COCOON_OPERATOR_WALLET"] == str(operator.wallet)
    assert told["COCOON_SETTLEMENT_KEY_PUBLIC"] == key("deploys vouchers").public_key().public_bytes_raw().hex()
    data = operator.contract(told["COCOON_PAYOUT_CONTRACT"])
    assert (data.config.operator, data.config.fee_to) == (operator.wallet, operator.wallet)
    assert (data.config.fee_bps, data.config.delay_s, data.received_nano) == (300, 7200, 0)

    again = operator.deploy("--fee-bps", "300", "--delay", "7200")
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert operator.sent() == 1
