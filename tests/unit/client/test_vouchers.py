"""What a client signs for its answers: all that its receipts support when it is asked, and nothing else."""

import asyncio
import concurrent.futures
import os
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from cocoon_client import AsyncOpenAI, OpenAI
from cocoon_client.escrow_file import EscrowFileError, read_escrow_file
from cocoon_client.openai import AsyncSealingClient, SealingClient
from cocoon_client.proxy.main import Proxy, ProxySettings
from cocoon_client.vouchers import Demand, VoucherSigner
from tests.fake_network import API_KEY, BASE_URL, MODEL, trust
from tests.paying_gateway import COST, PayingGateway, escrow_file, tally_of

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
PLENTY = 10**9


def client_of(gateway: PayingGateway, signer: VoucherSigner) -> OpenAI:
    http = SealingClient(trust(), transport=gateway, vouchers=signer)
    return OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http, max_retries=0)


def asked(gateway: PayingGateway, signer: VoucherSigner, times: int = 1) -> None:
    with client_of(gateway, signer) as client:
        for _ in range(times):
            assert client.chat.completions.create(**ASKED).choices[0].message.content == "a secret answer"


def test_a_client_signs_what_it_used_whenever_it_is_asked(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=2 * COST)
    asked(gateway, VoucherSigner(escrow, tmp_path, cap_nano=PLENTY), times=6)
    assert gateway.charged == 6 * COST
    assert gateway.taken == [2 * COST, 4 * COST]


async def test_the_asynchronous_client_does_too(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=COST)
    signer = VoucherSigner(escrow, tmp_path, cap_nano=PLENTY)
    http = AsyncSealingClient(trust(), transport=gateway, vouchers=signer)
    async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http, max_retries=0) as client:
        for _ in range(3):
            await client.chat.completions.create(**ASKED)
    assert gateway.taken == [COST, 2 * COST]


def test_a_gateway_that_demands_more_than_receipts_support_gets_what_they_support(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=2 * COST)
    signer = VoucherSigner(escrow, tmp_path, cap_nano=PLENTY)
    asked(gateway, signer, times=2)
    gateway.charged += 1_000  # it says that there was more
    with pytest.raises(openai.APIStatusError) as refused:
        asked(gateway, signer)
    assert refused.value.status_code == 402
    assert gateway.taken == [2 * COST]
    assert tally_of(tmp_path)["signed"] == 2 * COST


@pytest.mark.parametrize("lies", [{"escrow": "0:" + "ab" * 32}, {"epoch": 5}, {"usage_root": "zz"}, {"cumulative": -1}])
def test_a_demand_for_another_escrow_or_epoch_signs_nothing(tmp_path: Path, lies: dict[str, Any]) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=COST)
    signer = VoucherSigner(escrow, tmp_path, cap_nano=PLENTY)
    asked(gateway, signer)
    gateway.lies = lies
    with pytest.raises(openai.APIStatusError):
        asked(gateway, signer)
    assert (gateway.taken, tally_of(tmp_path)["signed"]) == ([], 0)


def test_nothing_is_signed_past_the_cap(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=COST)
    signer = VoucherSigner(escrow, tmp_path, cap_nano=2 * COST + 3)
    with pytest.raises(openai.APIStatusError):
        asked(gateway, signer, times=9)
    assert gateway.taken[-1] == max(gateway.taken) == 2 * COST + 3


def test_a_voucher_that_did_not_arrive_is_signed_again_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=COST)
    asked(gateway, VoucherSigner(escrow, tmp_path, cap_nano=PLENTY))
    gateway.losing = 1
    with pytest.raises(openai.APIStatusError):
        asked(gateway, VoucherSigner(escrow, tmp_path, cap_nano=PLENTY))
    asked(gateway, VoucherSigner(escrow, tmp_path, cap_nano=PLENTY))
    assert gateway.taken == [COST]
    assert tally_of(tmp_path) == {
        "escrow": str(escrow.address),
        "numerator": 2 * COST * 10**6,
        "signed": COST,
        "handed": COST,
    }


def test_what_is_accepted_by_the_users_word_counts_without_receipts(tmp_path: Path) -> None:
    escrow = escrow_file()
    signer = VoucherSigner(escrow, tmp_path, cap_nano=PLENTY, accepted_nano=70)
    signed = signer.sign(Demand(str(escrow.address), 4, 500, "00" * 32))
    assert signed is not None
    assert signed.cumulative == 70


def test_threads_that_share_a_tally_lose_no_receipt(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=PLENTY)

    def use(_: int) -> None:
        asked(gateway, VoucherSigner(escrow, tmp_path, cap_nano=PLENTY), times=2)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))
    assert VoucherSigner(escrow, tmp_path, cap_nano=PLENTY).unsigned_nano == 8 * COST


async def test_the_proxy_hands_vouchers_in_before_it_is_refused(tmp_path: Path) -> None:
    escrow = escrow_file()
    gateway = PayingGateway(escrow, unsigned_max=PLENTY)
    signer = VoucherSigner(escrow, tmp_path / "vouchers", cap_nano=PLENTY)
    settings = ProxySettings(base_url=BASE_URL, port=0, state=tmp_path, api_key=API_KEY, vouchers=signer)
    async with (
        Proxy(settings, trust(), gateway=lambda: gateway).running() as proxy,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=API_KEY, max_retries=0) as client,
    ):
        await client.chat.completions.create(**ASKED)
        end = time.monotonic() + 30
        while gateway.signed < COST:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
    assert gateway.taken == [COST]


def test_an_escrows_file_is_private_and_says_nothing_else_than_it_is(tmp_path: Path) -> None:
    escrow, path = escrow_file(), tmp_path / "escrow.json"
    escrow.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_escrow_file(path) == escrow
    assert escrow.seed.hex() not in repr(escrow)
    text = path.read_text()
    os.chmod(path, 0o640)  # noqa: PTH101  as a careless user does
    with pytest.raises(EscrowFileError, match="chmod 600"):
        read_escrow_file(path)
    path.chmod(0o600)
    for bad in (text.replace(escrow.seed.hex(), "01" * 32), text.replace('"v": 1', '"v": 2'), "{}", ""):
        path.write_text(bad)
        with pytest.raises(EscrowFileError) as refused:
            read_escrow_file(path)
        assert escrow.seed.hex() not in str(refused.value)
