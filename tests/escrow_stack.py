"""A gateway that takes escrows, and an escrow whose chain is played by the test."""

import base64
import itertools
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.escrows import EscrowState
from billing.postgres.escrows import Escrows
from billing.postgres.pool import open_pool
from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE, EscrowConfig, Voucher, escrow_init
from tests.fixtures_gateway import Stack
from tests.settlement_values import seen

GLOBAL_ID = -3
OPERATOR, PAYOUT, CLIENT = (Address(0, bytes([n]) * 32) for n in (4, 5, 6))
ENVIRONMENT: dict[str, Any] = {
    "COCOON_OPERATOR_WALLET": str(OPERATOR), "COCOON_PAYOUT_CONTRACT": str(PAYOUT),
    "COCOON_ESCROW_CHALLENGE_S_MIN": "60",
}  # fmt: skip
_salts = itertools.count(1)


class PlayedEscrow:
    """An escrow of a stack's customer with a session key; `observe` says what the chain would."""

    def __init__(self, stack: Stack, **changes: Any) -> None:
        self.stack = stack
        self.key = Ed25519PrivateKey.generate()
        fields: dict[str, Any] = {
            "client": CLIENT, "operator": OPERATOR, "payout": PAYOUT,
            "voucher_key": self.key.public_key().public_bytes_raw(), "operator_key": bytes(32), "challenge_s": 60,
            "epoch": 1, "allow_max_nano": 0, "allow_rate_nano": 0, "salt": next(_salts).to_bytes(32, "big"),
        }  # fmt: skip
        self.config = EscrowConfig(**{**fields, **changes})
        self.init = escrow_init(code_of(CODE), self.config)
        self.address = str(self.init.address)
        self._seqnos = itertools.count(1)

    def registration(self, **members: Any) -> dict[str, Any]:
        boc = base64.b64encode(write_boc(self.config.encode())).decode()
        return {"code_hash": self.init.code.hash.hex(), "config": boc, **members}

    async def register(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/account/escrows", json=self.registration())
        assert answer.status_code == 200, answer.text
        assert answer.json()["escrow"] == self.address

    async def observe(
        self, deposited: int, settled: int = 0, state: EscrowState = EscrowState.OPEN, **changes: Any
    ) -> None:
        async with open_pool(self.stack.database_url, application="test") as pool:
            at = seen(next(self._seqnos), deposited, settled, state=state, allow_at_nano=0, **changes)
            await Escrows(pool).observe(self.stack.customer_id, self.address, at)

    async def allow_unsigned(self, nano: int) -> None:
        await self.stack.rows("UPDATE escrow_customers SET unsigned_max_nano = $1", nano)

    def voucher(self, cumulative: int, **changes: Any) -> dict[str, Any]:
        """A signed voucher as it is handed in; `changes` are of what is signed."""
        key = changes.pop("key", self.key)
        fields: dict[str, Any] = {
            "global_id": GLOBAL_ID, "escrow": Address.parse(self.address), "epoch": self.config.epoch,
            "cumulative_nano": cumulative, "usage_root": bytes(32),
        }  # fmt: skip
        signature = Voucher(**{**fields, **changes}).sign(key)
        return {"escrow": self.address, "cumulative": cumulative, "usage_root": "00" * 32, "signature": signature.hex()}
