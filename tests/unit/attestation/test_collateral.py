"""Collateral: where it comes from, how long it is held, and that it only gets newer."""

import datetime as dt
import urllib.parse

import httpx
import msgspec
import pytest

from attestation.findings import Code, RefusedError
from attestation.simulation.tdx import Judgement
from attestation.simulation.tee import SimulatedCollateralSource, SimulationRefusedError
from attestation.tdx.collateral import Collateral, CollateralCache, CollateralSource, Family, validity_of
from attestation.tdx.dcap import family_of
from attestation.tdx.pccs import ANSWER_BYTES_MAX, CollateralUnavailableError, PCCSCollateralSource
from attestation.tdx.quote import parse_quote
from cocoon.clock import ManualClock
from cocoon.errors import MalformedError
from tests.attested import NOW, machine, scene

FAMILY = machine().platform.family


class Service:
    """A certification service that serves one collateral, or breaks on one path."""

    def __init__(self, collateral: Collateral) -> None:
        self.collateral = collateral
        self.broken: dict[str, httpx.Response] = {}
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        held, path = self.collateral, request.url.path
        self.asked.append(request.url.raw_path.decode())
        if path in self.broken:
            return self.broken[path]
        tcb = f'{{"tcbInfo":{held.tcb_info},"signature":"{held.tcb_info_signature.hex()}"}}'
        identity = f'{{"enclaveIdentity":{held.qe_identity},"signature":"{held.qe_identity_signature.hex()}"}}'
        return {
            "/tdx/certification/v4/tcb": answer(tcb, "TCB-Info-Issuer-Chain", held.tcb_info_issuer_chain),
            "/tdx/certification/v4/qe/identity": answer(
                identity, "SGX-Enclave-Identity-Issuer-Chain", held.qe_identity_issuer_chain
            ),
            "/sgx/certification/v4/pckcrl": answer(held.pck_crl, "SGX-PCK-CRL-Issuer-Chain", held.pck_crl_issuer_chain),
            "/sgx/certification/v4/rootcacrl": httpx.Response(200, content=held.root_ca_crl.hex()),
        }[path]


def answer(content: str | bytes, header: str, chain: str) -> httpx.Response:
    return httpx.Response(200, content=content, headers={header: urllib.parse.quote(chain)})


def pccs(service: Service) -> PCCSCollateralSource:
    client = httpx.AsyncClient(transport=httpx.MockTransport(service))
    return PCCSCollateralSource(client, "https://pccs.invalid/")


def test_a_quote_says_which_collateral_it_needs() -> None:
    assert family_of(parse_quote(scene().evidence.quote)) == FAMILY == Family(fmspc="00A06F510000", ca="platform")


@pytest.mark.parametrize("kind", ["simulated", "pccs"])
async def test_every_source_gives_collateral_under_which_the_quote_verifies(kind: str) -> None:
    service = Service(machine().platform.collateral(NOW))
    sources: dict[str, CollateralSource] = {
        "simulated": SimulatedCollateralSource(machine().platform, ManualClock(NOW)),
        "pccs": pccs(service),
    }

    collateral = await sources[kind].fetch(FAMILY)

    assert scene().endorsed(collateral=collateral).verdict().accepted
    assert collateral.tcb_info == service.collateral.tcb_info


async def test_the_service_is_asked_for_the_family() -> None:
    service = Service(machine().platform.collateral(NOW))

    await pccs(service).fetch(FAMILY)

    assert "/tdx/certification/v4/tcb?fmspc=00A06F510000" in service.asked
    assert "/sgx/certification/v4/pckcrl?ca=platform&encoding=der" in service.asked


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("/tdx/certification/v4/tcb", httpx.Response(404)),
        ("/tdx/certification/v4/tcb", httpx.Response(200, content=b"{}", headers={"TCB-Info-Issuer-Chain": "x"})),
        ("/tdx/certification/v4/qe/identity", httpx.Response(200, content=b"\xff" * 8)),
        ("/sgx/certification/v4/pckcrl", httpx.Response(200, content=b"not der")),
        ("/sgx/certification/v4/rootcacrl", httpx.Response(200, content=b"zz")),
        ("/sgx/certification/v4/rootcacrl", httpx.Response(200, content=b"0" * (ANSWER_BYTES_MAX + 1))),
        ("/sgx/certification/v4/rootcacrl", httpx.Response(503)),
    ],
)
async def test_a_service_that_does_not_answer_as_it_should_is_unavailable(path: str, broken: httpx.Response) -> None:
    service = Service(machine().platform.collateral(NOW))
    service.broken[path] = broken

    with pytest.raises(CollateralUnavailableError) as error:
        await pccs(service).fetch(FAMILY)

    assert error.value.transient


async def test_the_simulated_vendor_knows_its_own_family_only() -> None:
    source = SimulatedCollateralSource(machine().platform, ManualClock(NOW))

    with pytest.raises(SimulationRefusedError):
        await source.fetch(Family(fmspc="FFFFFFFFFFFF", ca="platform"))


async def test_the_cache_serves_without_asking_and_refreshes_before_the_end() -> None:
    clock = ManualClock(NOW)
    service = Service(machine().platform.collateral(NOW))
    cache = CollateralCache(pccs(service), clock)
    first = await cache.get(FAMILY)
    asked = len(service.asked)

    assert await cache.get(FAMILY) is first
    assert len(service.asked) == asked
    assert cache.due() == []

    clock.advance(24 * 86400)
    assert cache.due() == [FAMILY]
    service.collateral = machine().platform.collateral(clock.now())
    second = await cache.refresh(FAMILY)

    assert cache.held(FAMILY) is second
    assert cache.due() == []


async def test_the_cache_serves_on_while_the_service_is_away() -> None:
    clock = ManualClock(NOW)
    service = Service(machine().platform.collateral(NOW))
    cache = CollateralCache(pccs(service), clock)
    held = await cache.get(FAMILY)
    service.broken = dict.fromkeys(("/tdx/certification/v4/tcb",), httpx.Response(503))
    clock.advance(40 * 86400)

    with pytest.raises(CollateralUnavailableError):
        await cache.refresh(FAMILY)

    assert await cache.get(FAMILY) is held
    assert cache.due() == [FAMILY]
    # Serving it is not accepting it.
    assert scene().endorsed(collateral=held).asked(at=clock.now()).verdict().accepted is False


async def test_the_cache_never_goes_back_to_an_older_evaluation() -> None:
    service = Service(machine().platform.collateral(NOW))
    cache = CollateralCache(pccs(service), ManualClock(NOW))
    held = await cache.get(FAMILY)
    service.collateral = machine().platform.collateral(NOW, Judgement(evaluation=19))

    with pytest.raises(RefusedError) as refused:
        await cache.refresh(FAMILY)

    assert refused.value.finding == Code.TCB_EVALUATION_OLD
    assert cache.held(FAMILY) is held


def test_collateral_of_another_family_is_not_kept() -> None:
    cache = CollateralCache(SimulatedCollateralSource(machine().platform, ManualClock(NOW)), ManualClock(NOW))
    other = Family(fmspc="FFFFFFFFFFFF", ca="platform")

    with pytest.raises(RefusedError) as refused:
        cache.put(other, machine().platform.collateral(NOW))

    assert refused.value.finding == Code.COLLATERAL_FOREIGN
    assert cache.held(other) is None


def test_collateral_holds_as_long_as_all_of_it() -> None:
    validity = validity_of(machine().platform.collateral(NOW))

    assert validity.start == NOW - dt.timedelta(hours=1)
    assert validity.end == NOW - dt.timedelta(hours=1) + dt.timedelta(days=30)
    assert validity.evaluation == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"tcb_info": "{}"}, {"tcb_info": "["}, {"qe_identity": "null"}, {"pck_crl": b""},
        {"root_ca_crl": b"0"}, {"tcb_info_issuer_chain": "-----BEGIN"},
    ],
)  # fmt: skip
def test_unreadable_collateral_is_malformed(changes: dict[str, object]) -> None:
    collateral = msgspec.structs.replace(machine().platform.collateral(NOW), **changes)

    with pytest.raises(MalformedError):
        validity_of(collateral)
    assert scene().endorsed(collateral=collateral).refusal() == Code.MALFORMED


def test_a_date_without_a_zone_is_malformed() -> None:
    collateral = machine().platform.collateral(NOW)
    local = collateral.tcb_info.replace('Z","nextUpdate', '","nextUpdate')

    with pytest.raises(MalformedError):
        validity_of(msgspec.structs.replace(collateral, tcb_info=local))
