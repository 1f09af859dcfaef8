"""A settlement network on the local chain: an operator's wallet, a payout contract, clients with escrows."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.escrows import EscrowTerms
from billing.settlement.deployment import deploy_escrow, deploy_payout, payout_address, payout_config
from billing.ton.chain import Chain
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import EscrowConfig
from cocoon.contracts.payout import PayoutConfig
from tests.fixtures_chain import LocalChain

TON = 10**9
GLOBAL_ID = -3
DEADLINE_S = 60.0
POLL_S = 0.05
FEE_BPS = 500
DELAY_S = 2


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name: str) -> bytes:
    return key(name).public_key().public_bytes_raw()


async def until(holds: Callable[[], Awaitable[object]], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(POLL_S)


class Somebody:
    """Whoever has a wallet v5r1 and sends one message at a time."""

    def __init__(self, chain: Chain, local: LocalChain, name: str) -> None:
        self._chain = chain
        self._local = local
        self.wallet = OperatorWallet(key(name), global_id=GLOBAL_ID)

    @property
    def address(self) -> Address:
        return self.wallet.address

    async def fund(self, nano: int) -> None:
        self._local.faucet(self.address, nano)

        async def there() -> bool:
            return await self.balance() > 0

        await until(there, "the faucet")

    async def balance(self) -> int:
        return (await self._chain.account(self.address)).balance_nano

    async def send(self, *transfers: Transfer) -> None:
        head = await self._chain.head()
        seqno = self.wallet.seqno_of(await self._chain.account(self.address, head))
        boc = self.wallet.sign(transfers, seqno=seqno, valid_until=head.gen_utime + 600)
        await self._chain.send(boc)

        async def executed() -> bool:
            return self.wallet.seqno_of(await self._chain.account(self.address)) > seqno

        await until(executed, "a wallet's message")


class SettlementNetwork:
    """The operator's side on the chain, under names of this test's own."""

    def __init__(self, chain: Chain, local: LocalChain, name: str) -> None:
        self.chain = chain
        self.local = local
        self.name = name
        self.operator = Somebody(chain, local, f"{name} operator")
        self.voucher_key = key(f"{name} vouchers")
        self.config: PayoutConfig = payout_config(
            self.operator.address, fee_bps=FEE_BPS, delay_s=DELAY_S, salt=hashlib.sha256(name.encode()).digest()
        )
        self.payout = payout_address(self.config)

    async def deploy(self) -> None:
        await self.operator.fund(100 * TON)
        await self.operator.send(deploy_payout(self.config))

        async def deployed() -> bool:
            return (await self.chain.account(self.payout)).data is not None

        await until(deployed, "the payout contract")

    def escrow_config(self, client: Somebody, **changes: object) -> EscrowConfig:
        fields: dict[str, object] = {
            "client": client.address, "operator": self.operator.address, "payout": self.payout,
            "voucher_key": public(f"{self.name} session"), "challenge_s": 60, "epoch": 0,
            "operator_key": self.voucher_key.public_key().public_bytes_raw(), "allow_max_nano": 100 * TON,
            "allow_rate_nano": 0, "salt": hashlib.sha256(f"{self.name} escrow".encode()).digest(),
        }  # fmt: skip
        return EscrowConfig(**{**fields, **changes})  # pyright: ignore[reportArgumentType]  a test's values


def terms_of(config: EscrowConfig) -> EscrowTerms:
    return EscrowTerms(
        address=str(deploy_escrow(config, 1).destination),
        code_hash=code_of("client_escrow").hash,
        config=write_boc(config.encode()),
        client=str(config.client),
        epoch=config.epoch,
        voucher_key=config.voucher_key,
        operator_key=config.operator_key,
        challenge_s=config.challenge_s,
        allow_max_nano=config.allow_max_nano,
        allow_rate_nano=config.allow_rate_nano,
    )
