"""What settles on the development network's chain: keys, a payout contract, the customer's escrow, workers' stakes.

Everything lies on a SIMULATED chain, and its coins come from a faucet. Keys are made once and kept under
`.cocoon/settlement`; each step finds what an earlier run made, so a restart sends nothing.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.postgres.account import Accounts
from billing.postgres.escrows import Escrows
from billing.postgres.pool import open_pool
from billing.settlement.deployment import deploy_escrow, deploy_payout, deploy_stake, payout_address, payout_config
from billing.ton.chain import AccountStatus, Chain
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_messages import Transfer
from cli.chain_control import ChainControl
from cli.dev.seed import CREDIT, CUSTOMER
from cli.dev.state import DevError
from cli.private_files import read_private, write_private
from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.clock import Clock
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE as ESCROW
from cocoon.contracts.escrow import EscrowConfig
from cocoon.contracts.payout import PayoutConfig
from cocoon.contracts.records import NO_HASH
from cocoon.contracts.stake import StakeConfig
from cocoon.errors import CocoonError
from cocoon.ids import new_job_id
from cocoon.money import NANO_PER_UNIT
from gateway.escrows import EscrowRules
from workers.agent.staking import stake_config_text

APPLICATION = "cocoon-dev"
KEYS = ("operator", "voucher", "customer")
FEE_BPS = 500
"""What workers are not owed of a charge (`SHARE_BPS` of the seed) is the operator's."""
PAYOUT_DELAY_S = 10
CHALLENGE_S = 600
"""Minutes, so that leaving can be tried; on a real network a day at least."""
SETTLE_MIN_TON = "0.001"
CLAIM_MIN_TON = FEE_MIN_TON = "0.000000001"
"""Far below what a claim or a withdrawal costs, so that one is seen; on a real network it is above."""
STAKE_NANO = 10 * NANO_PER_UNIT
STAKE_PER_UNIT_NANO = NANO_PER_UNIT
"""So that a worker's stake is worth more requests in flight than its engine takes."""
UNBOND_S = 600
"""Minutes, as above; on a real network longer than evidence is good for."""
BOUNTY_BPS = 1_000
OPERATOR_NANO_MIN = 10 * NANO_PER_UNIT
OPERATOR_NANO = 100 * NANO_PER_UNIT
CUSTOMER_NANO = CREDIT.nano + 10 * NANO_PER_UNIT
VALID_S = 120
CHAIN_SECONDS = 60.0
POLL_SECONDS = 0.1


class SettlementSetup:
    """The network's own side of the chain, with its keys in `folder`."""

    def __init__(self, folder: Path, global_id: int, rng: random.Random) -> None:
        self._folder = folder
        self._global_id = global_id
        self._rng = rng
        folder.mkdir(mode=0o700, exist_ok=True)
        self._keys = {name: _kept_key(self.key_file(name), rng) for name in KEYS}
        self._operator = self._wallet("operator")
        self._customer = self._wallet("customer")

    def key_file(self, name: str) -> Path:
        """Where a key is, as `cocoon operator new` writes one."""
        return self._folder / f"{name}.key"

    @property
    def operator(self) -> Address:
        """The operator's wallet."""
        return self._operator.address

    @property
    def payout(self) -> Address:
        """The payout contract; known before it is deployed."""
        return payout_address(self._payout_config)

    @property
    def voucher_key(self) -> bytes:
        """The public key by which the operator settles within an allowance."""
        return self._keys["voucher"].public_key().public_bytes_raw()

    @property
    def escrow(self) -> Address:
        """The development customer's escrow; known before it is deployed."""
        return deploy_escrow(self._escrow_config, 0).destination

    async def establish(self, liteservers: Path, control: ChainControl, clock: Clock) -> None:
        """Fund wallets, deploy what is missing, the escrow with its deposit.

        Raises:
            DevError: not in time, or the chain refuses.
        """
        try:
            await self._establish(liteservers, control, clock)
        except CocoonError as error:
            raise DevError(f"the contracts are not on the chain: {error}") from error

    async def _establish(self, liteservers: Path, control: ChainControl, clock: Clock) -> None:
        async with LiteChain(read_liteservers(liteservers), clock, global_id=self._global_id) as chain:
            await self._fund(chain, control, self.operator, OPERATOR_NANO_MIN, OPERATOR_NANO)
            wanted = (deploy_payout(self._payout_config), deploy_escrow(self._escrow_config, CREDIT.nano))
            await self._deploy(chain, control, clock, wanted, CUSTOMER_NANO)

    async def stake(
        self, owners: Mapping[str, Address], operator_key: bytes, liteservers: Path, control: ChainControl, clock: Clock
    ) -> None:
        """Bond a stake for each worker, whose wallet owns it; its agent finds key and configuration in files.

        `operator_key` is the one under which the network's tickets count.

        Raises:
            DevError: not in time, or the chain refuses.
        """
        wanted: list[Transfer] = []
        for worker, owner in owners.items():
            key = _kept_key(self._staked_key_file(worker), self._rng)
            config = StakeConfig(
                owner=owner, operator=self.operator, staked_key=key.public_key().public_bytes_raw(),
                operator_key=operator_key, unbond_s=UNBOND_S, bounty_bps=BOUNTY_BPS, salt=_salt(f"stake {worker}"),
            )  # fmt: skip
            write_private(self._stake_config_file(worker), stake_config_text(config))
            wanted.append(deploy_stake(config, STAKE_NANO))
        try:
            async with LiteChain(read_liteservers(liteservers), clock, global_id=self._global_id) as chain:
                await self._deploy(chain, control, clock, wanted, (STAKE_NANO + NANO_PER_UNIT) * len(wanted))
        except CocoonError as error:
            raise DevError(f"the workers' stakes are not on the chain: {error}") from error

    async def _deploy(
        self, chain: Chain, control: ChainControl, clock: Clock, wanted: Sequence[Transfer], nano: int
    ) -> None:
        """Deploy what is not there yet, from a wallet that has `nano` for it."""
        missing = [one for one in wanted if not await _is_active(chain, one.destination)]
        if not missing:
            return
        await self._fund(chain, control, self._customer.address, nano, nano)
        await self._send(chain, missing)
        for one in missing:
            await _until(lambda to=one.destination: _is_active(chain, to), clock, f"a contract at {one.destination}")

    async def register(self, dsn: str, clock: Clock, rng: random.Random) -> None:
        """Name the escrow as the development customer's, so that its deposit becomes credit."""
        rules = EscrowRules(
            global_id=self._global_id, operator=self.operator, payout=self.payout, operator_key=self.voucher_key,
            challenge_s_min=CHALLENGE_S,
        )  # fmt: skip
        terms = rules.judge(code_of(ESCROW).hash, write_boc(self._escrow_config.encode()))
        async with open_pool(dsn, application=APPLICATION) as pool:
            customer = await Accounts(pool).open_customer(new_job_id(clock, rng), CUSTOMER)
            await Escrows(pool).register(new_job_id(clock, rng), customer, terms)

    async def credited(self, dsn: str, clock: Clock) -> None:
        """Wait until the biller has booked the deposit.

        Raises:
            DevError: not in time.
        """
        async with open_pool(dsn, application=APPLICATION) as pool:
            escrows = Escrows(pool)

            async def booked() -> bool:
                found = await escrows.find(str(self.escrow))
                return found is not None and found.deposited_nano > 0

            await _until(booked, clock, "the development customer's credit")

    def biller_environment(self, epoch_s: float) -> dict[str, str]:
        """What `cocoon biller` is told."""
        return {
            "COCOON_PAYOUT_CONTRACT": str(self.payout),
            "COCOON_BILLER_WALLET_KEY_FILE": str(self.key_file("operator")),
            "COCOON_VOUCHER_KEY_FILE": str(self.key_file("voucher")),
            "COCOON_EPOCH_S": str(epoch_s),
            "COCOON_SETTLE_MIN": SETTLE_MIN_TON,
            "COCOON_CLAIM_MIN": CLAIM_MIN_TON,
            "COCOON_FEE_MIN": FEE_MIN_TON,
        }

    def worker_environment(self, worker: str) -> dict[str, str]:
        """What an agent is told of its stake."""
        return {
            "COCOON_GLOBAL_ID": str(self._global_id),
            "COCOON_STAKED_KEY_FILE": str(self._staked_key_file(worker)),
            "COCOON_STAKE_CONFIG_FILE": str(self._stake_config_file(worker)),
        }

    def gateway_environment(self) -> dict[str, str]:
        """What the gateway is told, so that customers may register escrows."""
        return {
            "COCOON_OPERATOR_WALLET": str(self.operator),
            "COCOON_PAYOUT_CONTRACT": str(self.payout),
            "COCOON_SETTLEMENT_KEY_PUBLIC": self.voucher_key.hex(),
            "COCOON_ESCROW_CHALLENGE_S_MIN": str(CHALLENGE_S),
            "COCOON_STAKE_UNBOND_S_MIN": str(UNBOND_S),
        }

    @staticmethod
    def stake_environment() -> dict[str, str]:
        """What a gateway is told of stakes, and who lists them."""
        return {"COCOON_STAKE_PER_UNIT_NANO": str(STAKE_PER_UNIT_NANO), "COCOON_AUDIT_WINDOW_S": str(UNBOND_S)}

    @property
    def _payout_config(self) -> PayoutConfig:
        return payout_config(self.operator, fee_bps=FEE_BPS, delay_s=PAYOUT_DELAY_S, salt=_salt("payout"))

    @property
    def _escrow_config(self) -> EscrowConfig:
        return EscrowConfig(
            client=self._customer.address,
            operator=self.operator,
            payout=self.payout,
            voucher_key=NO_HASH,
            operator_key=self.voucher_key,
            challenge_s=CHALLENGE_S,
            epoch=0,
            allow_max_nano=CREDIT.nano,
            allow_rate_nano=CREDIT.nano // 86_400,
            salt=_salt("escrow"),
        )

    def _staked_key_file(self, worker: str) -> Path:
        return self.key_file(f"{worker}-staked")

    def _stake_config_file(self, worker: str) -> Path:
        return self._folder / f"{worker}-stake.boc64"

    def _wallet(self, name: str) -> OperatorWallet:
        return OperatorWallet(self._keys[name], global_id=self._global_id)

    async def _fund(self, chain: Chain, control: ChainControl, wallet: Address, least: int, nano: int) -> None:
        if (await chain.account(wallet)).balance_nano < least:
            await asyncio.to_thread(control.faucet, str(wallet), nano)

    async def _send(self, chain: Chain, transfers: Sequence[Transfer]) -> None:
        head = await chain.head()
        seqno = self._customer.seqno_of(await chain.account(self._customer.address, head))
        await chain.send(self._customer.sign(transfers, seqno=seqno, valid_until=head.gen_utime + VALID_S))


async def _is_active(chain: Chain, address: Address) -> bool:
    return (await chain.account(address)).status is AccountStatus.ACTIVE


async def _until(holds: Callable[[], Awaitable[bool]], clock: Clock, what: str) -> None:
    deadline = clock.monotonic() + CHAIN_SECONDS
    while not await holds():
        if clock.monotonic() > deadline:
            raise DevError(f"not on the chain after {CHAIN_SECONDS:g} s: {what}")
        await asyncio.sleep(POLL_SECONDS)


def _kept_key(path: Path, rng: random.Random) -> Ed25519PrivateKey:
    if not path.exists():
        write_private(path, rng.randbytes(32).hex().encode() + b"\n")
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(read_private(path).strip()))


def _salt(name: str) -> bytes:
    return hashlib.sha256(f"cocoon development {name}".encode()).digest()
