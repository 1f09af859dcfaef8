"""Attacks on SEV-SNP evidence."""

from collections.abc import Callable

import msgspec
import pytest

from attestation.findings import Code
from attestation.simulation.snp import Guest
from attestation.simulation.tdx import Judgement
from cocoon.statement import report_data
from tests.attested import KEYSET, MANIFEST, NONCE, NOW, Scene, machine, scene

replace = msgspec.structs.replace
DEBUG, MIGRATION_AGENT, SMT = 1 << 19, 1 << 18, 1 << 16


def reporting(shown: Scene, change: Callable[[Guest], Guest]) -> Scene:
    report = shown.tee.chip.report(change(shown.tee.guest(MANIFEST)), report_data(shown.evidence.statement))
    return shown.showing(quote=report)


def snp() -> Scene:
    return scene(kind="sev-snp")


def test_a_chip_in_order_is_accepted() -> None:
    verdict = snp().verdict()

    assert verdict.accepted, verdict.in_words()
    assert verdict.tee_type == "sev-snp-simulated"
    assert verdict.chip_id == machine().chip.chip_id
    assert verdict.release == "simulated-snp"


def test_a_debug_guest_is_refused() -> None:
    assert reporting(snp(), lambda guest: replace(guest, policy=guest.policy | DEBUG)).refusal() == Code.DEBUG


def test_a_migration_agent_or_a_lower_level_is_refused() -> None:
    agent = reporting(snp(), lambda guest: replace(guest, policy=guest.policy | MIGRATION_AGENT))
    lower = reporting(snp(), lambda guest: replace(guest, vmpl=1))

    assert (agent.refusal(), lower.refusal()) == (Code.ATTRIBUTES, Code.ATTRIBUTES)


def test_shared_cores_are_refused_unless_the_policy_allows_them() -> None:
    shared = reporting(snp(), lambda guest: replace(guest, policy=guest.policy | SMT))

    assert shared.refusal() == Code.ATTRIBUTES
    assert shared.under(("[snp]", "[snp]\nallow_smt = true")).verdict().accepted


def test_another_image_is_refused() -> None:
    other = reporting(snp(), lambda guest: replace(guest, measurement=b"\x11" * 48))

    assert other.refusal() == Code.MEASUREMENT_UNKNOWN


def test_other_weights_are_refused() -> None:
    assert reporting(snp(), lambda guest: replace(guest, host_data=b"o" * 32)).refusal() == Code.MANIFEST_UNBOUND


def test_a_report_for_another_statement_is_refused() -> None:
    other = scene(kind="sev-snp", keyset=replace(KEYSET, boot_id=b"c" * 16))

    assert snp().showing(quote=other.evidence.quote).refusal() == Code.REPORT_DATA_MISMATCH


def test_a_replayed_report_is_refused() -> None:
    assert snp().asked(nonce=bytes(32)).refusal() == Code.NONCE_MISMATCH
    assert snp().asked(nonce=NONCE).verdict().accepted


def test_a_vcek_for_another_tcb_is_refused() -> None:
    assert reporting(snp(), lambda guest: replace(guest, tcb=bytes(8))).refusal() == Code.CHAIN_INVALID


def test_a_platform_below_the_policy_is_refused() -> None:
    assert snp().under(("microcode_min = 213", "microcode_min = 214")).refusal() == Code.TCB_UNACCEPTABLE


def test_another_chip_is_refused() -> None:
    shown = snp()

    assert shown.showing(chain=machine("worker-2").chip.chain).refusal() == Code.QUOTE_INVALID
    assert shown.under(("[snp]", "[snp]\nchip_ids = []")).refusal() == Code.PLATFORM_UNKNOWN


def test_a_foreign_root_is_refused() -> None:
    assert snp().showing(chain=machine(seed=b"\x09" * 32).chip.chain).refusal() == Code.FOREIGN_ROOT


def test_a_revoked_intermediate_is_refused() -> None:
    assert snp().endorsed(crls=(machine().chip.crl(NOW, revoke_ask=True),)).refusal() == Code.CERTIFICATE_REVOKED


def test_a_missing_revocation_list_is_refused_unless_the_policy_does_without() -> None:
    bare = snp().endorsed(crls=())
    without = bare.under(("[snp]", "[snp]\nrequire_crl = false"))

    assert bare.refusal() == Code.CRL_MISSING
    assert without.verdict().accepted
    assert Code.REVOCATION_UNCHECKED in [note.code for note in without.verdict().notes]


def test_a_revocation_list_of_somebody_else_is_refused() -> None:
    foreign = machine(seed=b"\x09" * 32).chip.crl(NOW)

    assert snp().endorsed(crls=(foreign,)).refusal() == Code.CRL_INVALID


def test_a_tdx_quote_is_no_snp_report_and_the_other_way_round() -> None:
    assert snp().showing(quote=scene().evidence.quote).refusal() == Code.MALFORMED
    assert scene().showing(quote=snp().evidence.quote).refusal() == Code.MALFORMED


@pytest.mark.parametrize("judgement", [Judgement(status="OutOfDate")])
def test_what_intel_says_does_not_matter_here(judgement: Judgement) -> None:
    assert snp().endorsed(collateral=machine().platform.collateral(NOW, judgement)).verdict().accepted
