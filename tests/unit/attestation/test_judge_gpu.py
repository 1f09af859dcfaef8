"""Attacks on the GPU part of evidence: reports, their chains, and the manifests they are held against."""

import datetime as dt

import msgspec
import pytest

from attestation.evidence import GPUDevice, GPUEvidence
from attestation.findings import Code
from attestation.nvidia import gpu
from attestation.nvidia.gpu import evidence_digest
from attestation.nvidia.report import parse_report
from attestation.simulation.gpu import Firmware
from attestation.simulation.tee import SimulatedTEE
from cocoon.statement import Statement, gpu_nonce
from tests.attested import BEACON, KEYSET, NOW, Scene, machine, scene

replace = msgspec.structs.replace


def nonce_of(shown: Scene) -> bytes:
    statement = Statement.decode(shown.evidence.statement)
    return gpu_nonce(statement.keyset_digest, statement.beacon, statement.nonce)


def with_gpus(shown: Scene, *devices: GPUDevice) -> Scene:
    """A guest that quotes whatever GPU evidence it likes: the measured code is what should not."""
    raw = GPUEvidence(v=1, devices=devices).encode()
    return shown.showing(gpu=raw).restated(gpu_evidence_sha256=evidence_digest(raw))


def device(tee: SimulatedTEE, shown: Scene, firmware: Firmware | None = None) -> GPUDevice:
    return tee.gpus.device(0, nonce_of(shown), firmware)


def test_every_gpu_of_a_machine_is_judged() -> None:
    verdict = scene(machine(gpus=2)).verdict()

    assert verdict.accepted, verdict.in_words()
    assert verdict.gpus == 2
    assert len(set(verdict.gpu_serials)) == 2
    assert Code.REVOCATION_UNCHECKED in [note.code for note in verdict.notes]


def test_a_machine_without_gpus_needs_none_and_may_show_none() -> None:
    bare = scene(machine(gpus=0))

    assert bare.verdict().accepted
    assert bare.verdict().gpu_binding == "none"
    assert with_gpus(bare, device(machine(), bare)).refusal() == Code.GPU_COUNT


def test_a_missing_gpu_is_refused() -> None:
    shown = scene(machine(gpus=2))

    assert with_gpus(shown, device(shown.tee, shown)).refusal() == Code.GPU_COUNT
    assert shown.showing(gpu=b"").restated(gpu_evidence_sha256=None).refusal() == Code.GPU_COUNT


def test_one_gpu_shown_twice_is_refused() -> None:
    shown = scene(machine(gpus=2))
    one = device(shown.tee, shown)

    assert with_gpus(shown, one, one).refusal() == Code.GPU_DUPLICATE


def test_gpu_evidence_that_the_statement_does_not_cover_is_refused() -> None:
    shown = scene()
    other = GPUEvidence(v=1, devices=(machine("worker-2").gpus.device(0, nonce_of(shown)),)).encode()

    assert shown.showing(gpu=other).refusal() == Code.GPU_EVIDENCE_MISMATCH
    assert shown.showing(gpu=b"").refusal() == Code.GPU_EVIDENCE_MISMATCH


@pytest.mark.parametrize("nonce", [bytes(32), gpu_nonce(b"k" * 32, BEACON, None)])
def test_a_report_for_another_nonce_is_refused(nonce: bytes) -> None:
    shown = scene()

    assert with_gpus(shown, shown.tee.gpus.device(0, nonce)).refusal() == Code.GPU_NONCE_MISMATCH


def test_a_report_replayed_under_a_new_keyset_is_refused() -> None:
    before = scene()
    old = GPUEvidence.decode(before.evidence.gpu).devices
    after = scene(keyset=replace(KEYSET, boot_id=b"c" * 16))

    assert with_gpus(after, *old).refusal() == Code.GPU_NONCE_MISMATCH


def test_a_report_replayed_under_a_newer_beacon_is_refused() -> None:
    old = GPUEvidence.decode(scene().evidence.gpu).devices
    after = scene(beacon=replace(BEACON, seqno=8))

    assert with_gpus(after, *old).refusal() == Code.GPU_NONCE_MISMATCH


def test_a_bad_signature_is_refused() -> None:
    shown = scene()
    good = device(shown.tee, shown)
    bad = replace(good, report=good.report[:-1] + bytes((good.report[-1] ^ 1,)))

    assert with_gpus(shown, bad).refusal() == Code.GPU_SIGNATURE


def test_a_report_signed_by_another_gpu_is_refused() -> None:
    shown = scene()
    other = machine("worker-2").gpus.device(0, nonce_of(shown))

    assert with_gpus(shown, replace(device(shown.tee, shown), chain=other.chain)).refusal() == Code.GPU_SIGNATURE


def test_a_gpu_of_another_root_is_refused() -> None:
    shown = scene()
    foreign = machine(seed=b"\x09" * 32).gpus.device(0, nonce_of(shown))

    assert with_gpus(shown, foreign).refusal() == Code.FOREIGN_ROOT


def test_a_gpu_that_the_policy_revokes_is_refused() -> None:
    shown = scene()
    revoked = f'[gpu]\nrevoked = ["{shown.tee.gpus.certificate_sha256(0)}"]'

    assert shown.under(("[gpu]", revoked)).refusal() == Code.CERTIFICATE_REVOKED


def test_a_measurement_that_the_manifests_do_not_expect_is_refused() -> None:
    shown = scene()
    for index in (1, 8, 39):
        changed = Firmware(changed={index: b"\x00" * 48})
        assert with_gpus(shown, device(shown.tee, shown, changed)).refusal() == Code.RIM_MISMATCH
    # What no manifest speaks of may be anything.
    assert with_gpus(shown, device(shown.tee, shown, Firmware(changed={63: b"\x00" * 48}))).verdict().accepted


@pytest.mark.parametrize("firmware", [Firmware(driver="999.02.00"), Firmware(vbios="99.00.02.00.01")])
def test_a_version_without_its_manifest_is_refused(firmware: Firmware) -> None:
    shown = scene()

    assert with_gpus(shown, device(shown.tee, shown, firmware)).refusal() == Code.RIM_MISSING
    assert shown.endorsed(rims=()).refusal() == Code.RIM_MISSING


@pytest.mark.parametrize("firmware", [Firmware(driver="999.00.99"), Firmware(vbios="99.00.00.FF.01")])
def test_a_version_below_the_floor_is_refused(firmware: Firmware) -> None:
    shown = scene()

    assert with_gpus(shown, device(shown.tee, shown, firmware)).refusal() == Code.GPU_VERSION


def test_a_driver_version_that_is_no_version_is_refused() -> None:
    shown = scene()

    for driver in ("", "999", "new", "9" * 40, "999..1"):
        refusal = with_gpus(shown, device(shown.tee, shown, Firmware(driver=driver))).refusal()
        assert refusal in (Code.MALFORMED, Code.GPU_VERSION)


def test_another_architecture_than_the_policy_lists_is_refused() -> None:
    shown = scene()
    good = device(shown.tee, shown)

    assert with_gpus(shown, replace(good, architecture="BLACKWELL")).refusal() == Code.GPU_ARCHITECTURE


def test_a_gpu_that_claims_to_be_of_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_PRODUCTS", {"HOPPER": ("GH100",), "NEXT": ("GX100",)})
    shown = scene().under(('architectures = ["HOPPER"]', 'architectures = ["HOPPER", "NEXT"]'))
    good = device(shown.tee, shown)

    assert with_gpus(shown, good).verdict().accepted
    assert with_gpus(shown, replace(good, architecture="NEXT")).refusal() == Code.GPU_ARCHITECTURE


def test_an_altered_manifest_is_refused() -> None:
    shown = scene()
    driver, vbios = shown.endorsements.rims
    report = parse_report(device(shown.tee, shown, Firmware(changed={8: b"\x00" * 48})).report)
    expected = parse_report(device(shown.tee, shown).report).measurements[9].hex().encode()
    altered = driver.replace(expected, report.measurements[9].hex().encode())

    assert altered != driver
    assert shown.endorsed(rims=(altered, vbios)).refusal() == Code.RIM_INVALID


def test_a_manifest_of_another_root_is_refused() -> None:
    assert scene().endorsed(rims=machine(seed=b"\x09" * 32).gpus.rims()).refusal() == Code.FOREIGN_ROOT


def test_a_manifest_whose_signer_has_expired_is_refused() -> None:
    expired = machine().gpus.rims(not_after=NOW - dt.timedelta(days=1))

    assert scene().endorsed(rims=expired).refusal() == Code.CERTIFICATE_EXPIRED


def test_a_manifest_shown_for_the_other_one_is_refused() -> None:
    driver, vbios = scene().endorsements.rims

    assert scene().endorsed(rims=(driver, driver)).refusal() == Code.RIM_MISSING
    assert scene().endorsed(rims=(vbios, vbios)).refusal() == Code.RIM_MISSING
    assert scene().endorsed(rims=(vbios, driver)).verdict().accepted


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<Payload>", b"<!-- a comment --><Payload>"),
        (b"<Payload>", b"<?target?><Payload>"),
        (b"<SoftwareIdentity", b'<!DOCTYPE x [<!ENTITY a "b">]><SoftwareIdentity'),
        (b"<SoftwareIdentity", b"<Wrapped><SoftwareIdentity"),
        (b'URI=""', b'URI="#x"'),
        (b"xml-c14n11", b"xml-c14n12"),
        (b"<SignatureMethod", b"<SignatureMethod/><SignatureMethod"),
        (b"</SignedInfo>", b"</SignedInfo><SignedInfo/>"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(old: bytes, new: bytes) -> None:
    driver, vbios = scene().endorsements.rims
    altered = driver.replace(old, new, 1)

    assert altered != driver
    assert scene().endorsed(rims=(altered, vbios)).refusal() in (Code.MALFORMED, Code.RIM_INVALID)


def test_a_signed_manifest_wrapped_into_another_is_refused() -> None:
    """The content that is read must be the content that was signed, not a sibling of it."""
    driver, vbios = scene().endorsements.rims
    text = driver.decode()
    payload = text[text.index("<Payload>") : text.index("</Payload>") + len("</Payload>")]
    forged = payload.replace('active="True"', 'active="False"', 20)
    for wrapped in (text.replace(payload, forged + payload), text.replace(payload, payload + forged)):
        code = scene().endorsed(rims=(wrapped.encode(), vbios)).refusal()
        assert code in (Code.RIM_INVALID, Code.MALFORMED)
