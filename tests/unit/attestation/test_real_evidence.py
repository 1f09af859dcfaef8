"""Evidence of real machines: what verifies has to, and no altered copy may.

The samples are other people's and are not part of this repository. COCOON_TEST_EVIDENCE names their folder, or it lies
in `shared/evidence` beside the repository; without it these tests are skipped.
"""

import base64
import datetime as dt
import json
import os
import pathlib
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.certificates import load_pem_chain, sha256_hex, verify_chain
from attestation.evidence import Endorsements, Evidence
from attestation.findings import Code, RefusedError
from attestation.judge import Question, judge
from attestation.nvidia.report import check_signature, parse_report
from attestation.nvidia.rim import verify_rim
from attestation.policy import VENDOR_ROOTS, Deployment, Policy, Release, Root, SNPPolicy, TDXPolicy
from attestation.snp.report import parse_snp_report, verify_snp_report
from attestation.tdx.collateral import Collateral, validity_of
from attestation.tdx.dcap import TDXClaims, family_of, verify_quote
from attestation.tdx.eventlog import LogEvent, check_log, runtime_events
from attestation.tdx.quote import parse_quote
from cocoon.errors import CocoonError, MalformedError
from tests.attested import BEACON, KEYSET, scene

FOLDER = pathlib.Path(
    os.environ.get("COCOON_TEST_EVIDENCE") or pathlib.Path(__file__).parents[4] / "shared" / "evidence"
)
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder of real evidence here")
INTEL, NVIDIA = VENDOR_ROOTS["intel"], VENDOR_ROOTS["nvidia"]
LENIENT = TDXPolicy(
    mrseams=(), xfams=(), td_attributes=(), tcb_evaluation_min=1,
    allow_dynamic_platform=True, allow_cached_keys=True, allow_smt=True,
)  # fmt: skip
IN_WINDOW = dt.datetime(2025, 7, 1, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def quote_of(name: str) -> bytes:
    raw = read(name)
    if name.endswith(".hex"):
        return bytes.fromhex(raw.decode().strip().removeprefix("0x"))
    return bytes.fromhex(json.loads(raw)["quote"]) if name.endswith(".json") else raw


def collateral_of(name: str) -> Collateral:
    fields = json.loads(read(name))
    binary = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}
    kept = {field.name for field in msgspec.structs.fields(Collateral)}
    known: dict[str, Any] = {
        key: bytes.fromhex(value) if key in binary else value for key, value in fields.items() if key in kept
    }  # fmt: skip
    return Collateral(**known)


def verified(quote: str, collateral: str, policy: TDXPolicy = LENIENT, at: dt.datetime | None = None) -> TDXClaims:
    raw, held = quote_of(quote), collateral_of(collateral)
    at = at or validity_of(held).end - dt.timedelta(days=1)
    return verify_quote(raw, parse_quote(raw), held, policy=policy, roots=INTEL, at=at)


def events_of(name: str) -> list[LogEvent]:
    log: list[dict[str, Any]] = json.loads(json.loads(read(name))["event_log"])
    return [
        LogEvent(
            register=event["imr"], kind=event["event_type"], digest=bytes.fromhex(event["digest"]),
            name=event["event"], payload=bytes.fromhex(event["event_payload"]),
        )
        for event in log
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_outdated", "dcap-qvl/tdx-quote.hex", "dcap-qvl/quote-from-tappd.hex",
        "go-tdx-guest/quote_v5_sample.dat", "dstack/quote-report.json", "dstack/tdx-lite-getquote.json",
    ],
)  # fmt: skip
def test_real_quotes_are_read_and_their_keys_come_from_intel(name: str) -> None:
    quote = parse_quote(quote_of(name))

    assert quote.version in (4, 5)
    assert not quote.report.debug
    assert sha256_hex(quote.pck_chain[-1]) in INTEL
    assert len(family_of(quote).fmspc) == 12
    verify_chain(quote.pck_chain, roots=INTEL, at=NOW, what="the chain")


def test_a_quote_with_text_behind_it_is_not_read() -> None:
    with pytest.raises(MalformedError, match="followed by"):
        parse_quote(quote_of("go-tdx-guest/tdx_prod_quote_SPR_E4.dat"))


def test_a_real_quote_verifies_within_the_time_of_its_collateral() -> None:
    claims = verified("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json")

    assert claims.tcb_status == "UpToDate"
    assert claims.fmspc == "b0c06f000000"
    assert len(claims.ppid) == 16
    assert claims.notes == ()


def test_it_does_not_verify_later_than_that() -> None:
    with pytest.raises(RefusedError) as refused:
        verified("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", at=NOW)

    assert refused.value.finding == Code.COLLATERAL_STALE


def test_a_platform_that_allows_what_the_policy_does_not_is_refused() -> None:
    for name in ("allow_dynamic_platform", "allow_cached_keys", "allow_smt"):
        strict = msgspec.structs.replace(LENIENT, **{name: False})
        with pytest.raises(RefusedError) as refused:
            verified("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", strict)
        assert refused.value.finding == Code.TCB_UNACCEPTABLE


def test_a_real_platform_that_is_out_of_date_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        verified("dcap-qvl/tdx_quote_outdated", "dcap-qvl/tdx_quote_outdated_collateral.json")

    assert refused.value.finding == Code.TCB_UNACCEPTABLE


def test_collateral_of_another_family_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        verified("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_outdated_collateral.json")

    assert refused.value.finding in (Code.COLLATERAL_FOREIGN, Code.CERTIFICATE_EXPIRED)


def test_no_altered_copy_of_a_real_quote_verifies() -> None:
    raw, held = quote_of("dcap-qvl/tdx_quote"), collateral_of("dcap-qvl/tdx_quote_collateral.json")
    at = validity_of(held).end - dt.timedelta(days=1)
    accepted: list[int] = []
    for offset in range(0, len(raw), 5):
        altered = raw[:offset] + bytes((raw[offset] ^ 0x10,)) + raw[offset + 1 :]
        try:
            verify_quote(altered, parse_quote(altered), held, policy=LENIENT, roots=INTEL, at=at)
        except CocoonError:
            continue
        accepted.append(offset)

    assert accepted == []


@pytest.mark.parametrize("name", ["dstack/quote-report.json", "dstack/tdx-lite-getquote.json"])
def test_real_event_logs_replay_to_all_four_registers(name: str) -> None:
    events, report = events_of(name), parse_quote(quote_of(name)).report

    check_log(events, report.rtmrs)
    assert "compose-hash" in [event.name for event in runtime_events(events)]
    for left_out in range(len(events)):
        with pytest.raises(RefusedError):
            check_log([*events[:left_out], *events[left_out + 1 :]], report.rtmrs)


def test_the_whole_judgement_takes_a_real_quote_up_to_its_statement() -> None:
    """Everything holds for this machine but that it never stated a keyset of ours."""
    raw, held = quote_of("dcap-qvl/tdx_quote"), collateral_of("dcap-qvl/tdx_quote_collateral.json")
    at = validity_of(held).end - dt.timedelta(days=1)
    report = parse_quote(raw).report
    tdx = msgspec.structs.replace(
        LENIENT, mrseams=(report.mrseam.hex(),), xfams=(report.xfam.hex(),), td_attributes=(report.td_attributes.hex(),)
    )
    policy = Policy(
        version=1, name="real", freshness=("unproven",), beacon_seconds_max=600, clock_skew_seconds=60,
        verdict_seconds_max=3600, roots=(Root(use="tdx", kind="intel", sha256=next(iter(INTEL))),),
        releases=(Release(name="any", tee="tdx"),), tdx=tdx,
    )  # fmt: skip
    unix = int(at.timestamp())
    keyset = msgspec.structs.replace(KEYSET, not_before=unix - 60, not_after=unix + 60)
    shown = scene(keyset=keyset, nonce=None, beacon=msgspec.structs.replace(BEACON, gen_utime=unix)).evidence
    evidence = Evidence(v=1, tee="tdx", keyset=shown.keyset, statement=shown.statement, quote=raw, gpu=shown.gpu)
    question = Question(at=at, deployment=Deployment(environment=None, global_id=-239))

    verdict = judge(evidence, Endorsements(v=1, collateral=held), policy, question)

    assert verdict.codes == (Code.REPORT_DATA_MISMATCH,)
    assert verdict.tee_type == "tdx"
    assert not verdict.simulated
    assert verdict.tcb_status == "UpToDate"


def hopper() -> list[tuple[bytes, bytes]]:
    evidence = json.loads(read("nvidia/hopper_evidence.json"))[0]
    return [
        (
            bytes.fromhex(read("nvidia/hopperAttestationReport.txt").decode().strip()),
            read("nvidia/hopperCertChain.txt"),
        ),
        (base64.b64decode(evidence["evidence"]), base64.b64decode(evidence["certificate"])),
    ]


def test_real_hopper_reports_verify_up_to_nvidias_root() -> None:
    versions = []
    for raw, pem in hopper():
        chain, report = load_pem_chain(pem, "the chain"), parse_report(raw)
        verify_chain(chain, roots=NVIDIA, at=NOW, what="the chain")
        check_signature(report, chain[0])
        versions.append((report.driver, report.vbios))
        assert len(report.measurements) == 64

    assert versions == [("550.90.07", "96.00.9F.00.01"), ("590.12", "96.00.A5.00.01")]
    assert parse_report(hopper()[1][0]).nonce.hex() == json.loads(read("nvidia/hopper_evidence.json"))[0]["nonce"]


def test_no_altered_copy_of_a_hopper_report_verifies() -> None:
    raw, pem = hopper()[0]
    leaf = load_pem_chain(pem, "the chain")[0]
    for offset in range(0, len(raw), 7):
        altered = raw[:offset] + bytes((raw[offset] ^ 0x10,)) + raw[offset + 1 :]
        with pytest.raises(CocoonError):
            check_signature(parse_report(altered), leaf)
    bad = bytes.fromhex(read("nvidia/hopperAttestationReportInvalidSignature.txt").decode().strip())
    with pytest.raises(CocoonError):
        check_signature(parse_report(bad), leaf)


def test_one_gpus_certificate_does_not_vouch_for_another() -> None:
    (first, _), (_, second) = hopper()

    with pytest.raises(RefusedError) as refused:
        check_signature(parse_report(first), load_pem_chain(second, "the chain")[0])

    assert refused.value.finding == Code.GPU_SIGNATURE


def test_a_real_driver_manifest_verifies_and_expects_what_the_devices_measure() -> None:
    at = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
    rim = verify_rim(read("nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml"), roots=NVIDIA, at=at)
    measured = parse_report(hopper()[0][0]).measurements

    assert (rim.product, rim.version) == ("GH100", "550.144.03")
    assert sorted(rim.golden) == [7, *range(21, 41)]
    # The report is of an older driver; most of its firmware is the same, at the same places.
    assert [index for index, hashes in rim.golden.items() if measured[index + 1] in hashes] == [
        21, 23, 24, 25, 26, 27, 28, 29, 30, 32, 33, 34, 35, 36, 37, 38,
    ]  # fmt: skip


def test_no_altered_copy_of_a_real_manifest_verifies() -> None:
    raw, at = read("nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml"), dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
    end = raw.index(b"<ds:KeyInfo")
    for offset in range(0, end, 401):
        altered = raw[:offset] + bytes((raw[offset] ^ 0x02,)) + raw[offset + 1 :]
        with pytest.raises(CocoonError):
            verify_rim(altered, roots=NVIDIA, at=at)
    with pytest.raises(RefusedError) as refused:
        verify_rim(raw, roots=NVIDIA, at=dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
    assert refused.value.finding == Code.CERTIFICATE_EXPIRED


def milan() -> tuple[bytes, bytes, str]:
    """The report, its chain as far as the sample has it, and the pin of where that ends."""
    raw = bytes.fromhex(json.loads(read("dstack/sev-snp-attestation.json"))["attestation"])
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    parts = [begin + part[: part.index(end)] + end + b"\n" for part in raw.split(begin)[1:]]
    ask, vcek = (load_pem_chain(part, "a certificate")[0] for part in parts[:2])
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in (vcek, ask))
    return raw[4:1188], pem, sha256_hex(ask)


def test_a_real_milan_report_verifies() -> None:
    raw, pem, anchor = milan()
    policy = SNPPolicy(bootloader_min=4, tee_min=0, snp_min=23, microcode_min=213, allow_smt=True, require_crl=False)

    claims = verify_snp_report(parse_snp_report(raw), pem, (), policy=policy, roots={anchor}, at=NOW)

    assert claims.chip_id.hex().startswith("38d17458")
    with pytest.raises(RefusedError) as refused:
        verify_snp_report(parse_snp_report(raw), pem, (), policy=policy, roots=VENDOR_ROOTS["amd"], at=NOW)
    assert refused.value.finding == Code.FOREIGN_ROOT


def test_no_altered_copy_of_a_milan_report_verifies() -> None:
    raw, pem, anchor = milan()
    policy = SNPPolicy(bootloader_min=0, tee_min=0, snp_min=0, microcode_min=0, allow_smt=True, require_crl=False)
    for offset in range(0, len(raw), 11):
        altered = raw[:offset] + bytes((raw[offset] ^ 0x10,)) + raw[offset + 1 :]
        with pytest.raises(CocoonError):
            verify_snp_report(parse_snp_report(altered), pem, (), policy=policy, roots={anchor}, at=NOW)


def test_the_pins_are_those_of_nvidias_published_roots() -> None:
    pems = [read(f"nvidia/{name}") for name in ("verifier_device_root.pem", "verifier_RIM_root.pem")]

    assert {sha256_hex(x509.load_pem_x509_certificate(pem)) for pem in pems} == NVIDIA
