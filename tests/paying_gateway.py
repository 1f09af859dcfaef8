"""A gateway in the same process that charges for answers and asks for vouchers, as the real one does."""

import json
from pathlib import Path
from typing import Any

import httpx

from cocoon.addresses import Address
from cocoon.contracts.escrow import EscrowConfig, Voucher
from cocoon_client.escrow_file import EscrowFile
from tests.fake_network import DESCRIBED, MODEL, NETWORK, FakeGateway

NANO_A_TOKEN = {"prompt_nano_per_mtok": 10**6, "cached_prompt_nano_per_mtok": 10**6,
                "completion_nano_per_mtok": 10**6, "version": 1}  # fmt: skip
COST = 10
"""Nano of one answer: seven tokens and three."""
SEED = bytes([7]) * 32


def escrow_file(**changes: Any) -> EscrowFile:
    made = EscrowFile(network=NETWORK, config=_config(bytes(32)), seed=SEED)
    key = made.key.public_key().public_bytes_raw()
    return EscrowFile(network=NETWORK, config=_config(key, **changes), seed=SEED)


def _config(key: bytes, **changes: Any) -> EscrowConfig:
    fields: dict[str, Any] = {
        "client": Address(0, bytes([1]) * 32), "operator": Address(0, bytes([2]) * 32),
        "payout": Address(0, bytes([3]) * 32), "voucher_key": key, "operator_key": bytes(32), "challenge_s": 60,
        "epoch": 4, "allow_max_nano": 0, "allow_rate_nano": 0, "salt": bytes(32),
    }  # fmt: skip
    return EscrowConfig(**{**fields, **changes})


class PayingGateway(FakeGateway):
    """Serves while `charged + COST - signed <= unsigned_max`; `lies` changes what it demands."""

    def __init__(self, escrow: EscrowFile, *, unsigned_max: int) -> None:
        super().__init__()
        self.escrow = escrow
        self.unsigned_max = unsigned_max
        self.charged = 0
        self.signed = 0
        self.taken: list[int] = []
        self.losing = 0
        self.lies: dict[str, Any] = {}

    def demand(self) -> dict[str, Any]:
        told = {
            "escrow": str(self.escrow.address), "epoch": 4, "cumulative": max(self.charged, self.signed),
            "usage_root": "00" * 32,
        }  # fmt: skip
        return {**told, **self.lies}

    def _handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == f"/v1/models/{MODEL}":
            self.requests.append(request)
            return httpx.Response(200, json={**DESCRIBED, "pricing": NANO_A_TOKEN})
        if path == "/v1/account/escrows":
            shown = self.demand()
            return httpx.Response(200, json={"data": [{**shown, "demand_nano": shown["cumulative"]}]})
        if path == "/v1/account/vouchers":
            return self._take(json.loads(request.content))
        return super()._handle(request)

    def _take(self, body: dict[str, Any]) -> httpx.Response:
        Voucher(
            global_id=NETWORK, escrow=self.escrow.address, epoch=4, cumulative_nano=body["cumulative"],
            usage_root=bytes.fromhex(body["usage_root"]),
        ).verify(self.escrow.config.voucher_key, bytes.fromhex(body["signature"]))  # fmt: skip
        if self.losing:
            self.losing -= 1
            return httpx.Response(503, json={})
        self.taken.append(body["cumulative"])
        self.signed = max(self.signed, body["cumulative"])
        return httpx.Response(200, json={})

    def _serve(self, request: httpx.Request) -> httpx.Response:
        if self.charged + COST - self.signed > self.unsigned_max:
            error = {"message": "sign", "type": "insufficient_quota", "param": None, "code": "voucher_required"}
            return httpx.Response(402, json={"error": {**error, **self.demand()}})
        self.charged += COST
        return super()._serve(request)


def tally_of(folder: Path) -> dict[str, int]:
    [file] = folder.glob("*.json")
    return json.loads(file.read_text())
