"""Attacks on the TDX part of evidence; each is refused for the reason that it is."""

import datetime as dt
import hashlib

import msgspec
import pytest

from attestation.certificates import sha256_hex
from attestation.findings import Code
from attestation.policy import load_policy
from attestation.simulation.tdx import Domain, Judgement
from attestation.tdx.eventlog import MANIFEST_EVENT, RUNTIME_EVENT, LogEvent
from attestation.tdx.quote import parse_quote
from cocoon.enrolment import keyset_digest
from tests.attested import BEACON, DEVELOPMENT, KEYSET, MANIFEST, NONCE, NOW, UNIX_NOW, machine, policy_of, scene

replace = msgspec.structs.replace


def test_a_machine_in_order_is_accepted_and_says_that_it_is_simulated() -> None:
    verdict = scene().verdict()

    assert verdict.accepted, verdict.in_words()
    assert verdict.tee_type == "tdx-simulated"
    assert verdict.simulated
    assert Code.SIMULATED in [note.code for note in verdict.notes]
    assert verdict.release == "simulated"
    assert verdict.freshness == "nonce"
    assert verdict.tcb_status == "UpToDate"
    assert verdict.keyset_digest == keyset_digest(KEYSET.encode())
    assert verdict.model_manifest_sha256 == MANIFEST
    assert verdict.ppid == machine().platform.ppid
    assert verdict.gpu_binding == "guest-measured"
    assert verdict.valid_until == UNIX_NOW + 3600
    assert verdict.policy_sha256 == hashlib.sha256(machine().policy_toml()).digest()


@pytest.mark.parametrize(("version", "report_15"), [(5, False), (5, True)])
def test_both_bodies_of_version_5_are_accepted(version: int, report_15: bool) -> None:
    shown = scene().quoting(lambda domain: replace(domain, version=version, report_15=report_15))

    assert shown.verdict().accepted, shown.verdict().in_words()


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("0100001000000000", Code.DEBUG),
        ("8000001000000000", Code.DEBUG),
        ("0000000000000000", Code.ATTRIBUTES),  # no SEPT_VE_DISABLE
        ("0000004000000000", Code.ATTRIBUTES),
        ("0000001000000080", Code.ATTRIBUTES),  # PERFMON
    ],
)
def test_a_debug_domain_and_other_attributes_are_refused(attributes: str, code: Code) -> None:
    shown = scene().quoting(lambda domain: replace(domain, td_attributes=bytes.fromhex(attributes)))

    assert shown.refusal() == code


def test_other_features_are_refused() -> None:
    shown = scene().quoting(lambda domain: replace(domain, xfam=bytes.fromhex("e718060000000000")))

    assert shown.refusal() == Code.ATTRIBUTES


def test_another_tdx_module_is_refused() -> None:
    assert scene().quoting(lambda domain: replace(domain, mrseam=b"\x22" * 48)).refusal() == Code.MODULE_UNKNOWN


def test_another_image_is_refused() -> None:
    assert scene().quoting(lambda domain: replace(domain, mrtd=b"\x11" * 48)).refusal() == Code.MEASUREMENT_UNKNOWN


def test_another_configuration_is_refused() -> None:
    shown = scene().quoting(lambda domain: replace(domain, mrconfigid=b"\x01" * 48))

    assert shown.refusal() == Code.MEASUREMENT_UNKNOWN


@pytest.mark.parametrize("register", range(4))
def test_another_runtime_register_is_refused(register: int) -> None:
    def change(domain: Domain) -> Domain:
        rtmrs = list(domain.rtmrs)
        rtmrs[register] = b"\x33" * 48
        return replace(domain, rtmrs=tuple(rtmrs))

    expected = Code.EVENT_LOG_MISMATCH if register == 3 else Code.MEASUREMENT_UNKNOWN

    assert scene().quoting(change).refusal() == expected


def test_an_event_log_that_leaves_something_out_is_refused() -> None:
    shown = scene()

    assert shown.showing(event_log=shown.evidence.event_log[:-1]).refusal() == Code.EVENT_LOG_MISMATCH
    assert shown.showing(event_log=()).refusal() == Code.EVENT_LOG_MISMATCH
    assert shown.showing(event_log=shown.evidence.event_log[::-1]).verdict().accepted  # one event for each register


def test_an_image_that_measured_something_more_is_refused() -> None:
    shown = scene()
    shell = LogEvent(register=3, kind=RUNTIME_EVENT, name="debug-shell", payload=b"on")
    shown = shown.showing(event_log=(*shown.evidence.event_log, shell)).quoting(lambda domain: domain)

    assert shown.refusal() == Code.MEASUREMENT_UNKNOWN


def test_a_manifest_that_nobody_measured_is_refused() -> None:
    """A name beside a digest of something else is only a claim."""
    digest = scene().evidence.event_log[-1].measured()
    lie = LogEvent(register=3, kind=0x80000001, digest=digest, name=MANIFEST_EVENT, payload=MANIFEST)
    shown = scene()

    assert shown.showing(event_log=(*shown.evidence.event_log[:-1], lie)).refusal() == Code.EVENT_LOG_MISMATCH


def test_a_keyset_for_other_weights_than_the_measured_ones_is_refused() -> None:
    other = replace(KEYSET, model_manifest_sha256=b"o" * 32)
    tee, shown = machine(), scene(keyset=other)
    shown = shown.showing(event_log=tee.event_log(MANIFEST)).quoting(lambda domain: domain)

    assert shown.refusal() == Code.MANIFEST_UNBOUND


def test_a_quote_for_another_statement_is_refused() -> None:
    other = scene(keyset=replace(KEYSET, operator="somebody else"))

    assert scene().showing(quote=other.evidence.quote).refusal() == Code.REPORT_DATA_MISMATCH


def test_a_statement_about_another_keyset_is_refused() -> None:
    mine = replace(KEYSET, tls_spki_sha256=b"x" * 32)

    assert scene().showing(keyset=mine.encode()).refusal() == Code.KEYSET_MISMATCH


def test_a_worker_that_swaps_its_tls_key_is_refused() -> None:
    assert scene().asked(tls_spki_sha256=b"x" * 32).refusal() == Code.TLS_KEY_MISMATCH
    assert scene().asked(tls_spki_sha256=KEYSET.tls_spki_sha256).verdict().accepted


def test_a_replayed_quote_is_refused() -> None:
    assert scene().asked(nonce=b"y" * 32).refusal() == Code.NONCE_MISMATCH
    assert scene(nonce=None).asked(nonce=NONCE).refusal() == Code.NONCE_MISMATCH


def test_an_old_or_future_beacon_is_refused() -> None:
    old = scene(beacon=replace(BEACON, gen_utime=UNIX_NOW - 601))
    future = scene(beacon=replace(BEACON, gen_utime=UNIX_NOW + 61))

    assert old.refusal() == Code.BEACON_OLD
    assert future.refusal() == Code.BEACON_OLD


def test_freshness_is_what_was_proven_and_no_more() -> None:
    shown = scene(nonce=None)
    demanding = '["nonce", "own-liteserver", "unproven"]', '["nonce", "own-liteserver"]'

    assert shown.verdict().freshness == "unproven"
    assert shown.under(demanding).refusal() == Code.FRESHNESS_UNPROVEN
    assert shown.under(demanding).asked(beacon=BEACON).verdict().freshness == "own-liteserver"
    assert shown.asked(beacon=replace(BEACON, root_hash=b"x" * 32)).refusal() == Code.BEACON_FOREIGN


@pytest.mark.parametrize(
    "changes",
    [{"not_after": UNIX_NOW - 61, "not_before": UNIX_NOW - 3600}, {"not_before": UNIX_NOW + 61}],
)
def test_a_keyset_out_of_its_time_is_refused(changes: dict[str, int]) -> None:
    assert scene(keyset=replace(KEYSET, **changes)).refusal() == Code.KEYSET_EXPIRED


@pytest.mark.parametrize("changes", [{"not_after": UNIX_NOW + 7 * 3600}, {"receipt_pk": bytes(32)}])
def test_a_keyset_that_lives_too_long_or_signs_anything_is_refused(changes: dict[str, object]) -> None:
    assert scene(keyset=replace(KEYSET, **changes)).refusal() == Code.KEYSET_INVALID


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded", "Revoked"])
def test_a_platform_that_is_not_up_to_date_is_refused(status: str) -> None:
    collateral = machine().platform.collateral(NOW, Judgement(status=status, advisories=("INTEL-SA-00837",)))

    assert scene().endorsed(collateral=collateral).refusal() == Code.TCB_UNACCEPTABLE


def test_a_grace_for_the_platform_is_written_down_and_noted() -> None:
    collateral = machine().platform.collateral(NOW, Judgement(status="OutOfDate", advisories=("INTEL-SA-00837",)))
    late = scene().endorsed(collateral=collateral)
    limits = "tcb_evaluation_min = 20", 'tcb_evaluation_min = 20\ntcb_grace = ["OutOfDate"]\ntcb_grace_seconds = {}'
    year, day = ((limits[0], limits[1].format(days * 86400)) for days in (366, 1))

    verdict = late.under(year).verdict()

    assert verdict.accepted, verdict.in_words()
    assert Code.TCB_GRACE in [note.code for note in verdict.notes]
    assert verdict.tcb_status == "OutOfDate"
    assert verdict.tcb_advisories == ("INTEL-SA-00837",)
    # The platform's level is of January: a grace of a day is over.
    assert late.under(day).refusal() == Code.TCB_UNACCEPTABLE
    assert scene().under(year).verdict().tcb_status == "UpToDate"


def test_stale_collateral_is_refused_unless_the_policy_grants_a_grace() -> None:
    collateral = machine().platform.collateral(NOW - dt.timedelta(days=31))
    stale = scene().endorsed(collateral=collateral)
    grace = "tcb_evaluation_min = 20", "tcb_evaluation_min = 20\ncollateral_grace_seconds = 172800"
    short = "tcb_evaluation_min = 20", "tcb_evaluation_min = 20\ncollateral_grace_seconds = 60"

    assert stale.refusal() == Code.COLLATERAL_STALE
    assert stale.under(short).refusal() == Code.COLLATERAL_STALE
    assert stale.under(grace).verdict().accepted
    assert Code.COLLATERAL_GRACE in [note.code for note in stale.under(grace).verdict().notes]


def test_collateral_of_the_future_is_refused() -> None:
    collateral = machine().platform.collateral(NOW + dt.timedelta(days=2))

    assert scene().endorsed(collateral=collateral).refusal() == Code.COLLATERAL_STALE


def test_a_revoked_platform_key_is_refused() -> None:
    collateral = machine().platform.collateral(NOW, Judgement(revoke_pck=True))

    assert scene().endorsed(collateral=collateral).refusal() == Code.CERTIFICATE_REVOKED


def test_an_older_evaluation_is_refused() -> None:
    collateral = machine().platform.collateral(NOW, Judgement(evaluation=19))

    assert scene().endorsed(collateral=collateral).refusal() == Code.TCB_EVALUATION_OLD


def test_missing_collateral_is_refused() -> None:
    assert scene().endorsed(collateral=None).refusal() == Code.COLLATERAL_MISSING


def test_collateral_that_somebody_else_signed_is_refused() -> None:
    foreign = machine(seed=b"\x09" * 32).platform.collateral(NOW)

    assert scene().endorsed(collateral=foreign).refusal() in (
        Code.COLLATERAL_INVALID, Code.CRL_INVALID, Code.QUOTE_INVALID,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_collateral_that_was_altered_is_refused(part: str) -> None:
    collateral = scene().endorsements.collateral
    assert collateral is not None
    text = getattr(collateral, part)
    altered = replace(collateral, **{part: text.replace('"isvsvn":', '"isvsvn": ')})

    assert altered != collateral
    assert scene().endorsed(collateral=altered).refusal() in (Code.COLLATERAL_INVALID, Code.QUOTE_INVALID)


def test_another_seed_is_a_foreign_root() -> None:
    other = scene(machine(seed=b"\x09" * 32))

    assert replace(other, policy=policy_of(machine())).refusal() == Code.FOREIGN_ROOT


def test_a_policy_for_intel_refuses_a_simulated_quote_and_says_that_it_is_one() -> None:
    tee = machine()
    text = tee.policy_toml().decode()
    head, _, tail = text.partition("[[roots]]")
    _, _, tail = tail.partition("[[releases]]")
    intel = '[[roots]]\nuse = "tdx"\nkind = "intel"\n'
    intel += 'sha256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"\n'
    raw = (head + intel + "[[releases]]" + tail).encode()
    policy = load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())
    verdict = replace(scene(), policy=policy).verdict()

    assert verdict.codes == (Code.FOREIGN_ROOT,)
    assert verdict.tee_type == "tdx-simulated"
    assert verdict.simulated


def test_a_listed_platform_is_accepted_and_another_is_not() -> None:
    def listed(ppid: bytes) -> tuple[str, str]:
        return "tcb_evaluation_min = 20", f'tcb_evaluation_min = 20\nppids = ["{ppid.hex()}"]'

    assert scene().under(listed(machine().platform.ppid)).verdict().accepted
    assert scene().under(listed(machine("worker-2").platform.ppid)).refusal() == Code.PLATFORM_UNKNOWN
    assert scene().under(("[tdx]", "[tdx]\nppids = []")).refusal() == Code.PLATFORM_UNKNOWN


def test_machines_of_one_seed_share_their_roots_and_nothing_else() -> None:
    first, second = (parse_quote(scene(machine(name)).evidence.quote).pck_chain for name in ("worker-1", "worker-2"))

    assert sha256_hex(first[-1]) == sha256_hex(second[-1])
    assert sha256_hex(first[0]) != sha256_hex(second[0])
    assert scene(machine("worker-2")).verdict().accepted


def test_two_releases_are_admitted_side_by_side() -> None:
    text = machine().policy_toml().decode()
    start, end = text.index("[[releases]]"), text.index("[[releases]]", text.index("[[releases]]") + 1)
    block = text[start:end]
    old = block.replace('name = "simulated"', 'name = "old"')
    line = next(line for line in old.splitlines() if line.startswith("mrtd"))
    old = old.replace(line, f'mrtd = "{"ab" * 48}"')
    both = scene().under((block, block + old))

    assert both.verdict().release == "simulated"
    assert both.quoting(lambda domain: replace(domain, mrtd=b"\xab" * 48)).verdict().release == "old"


def test_a_policy_without_tdx_refuses_it() -> None:
    text = machine().policy_toml().decode()
    start, end = text.index("[tdx]"), text.index("[snp]")

    assert scene().under((text[start:end], "")).refusal() == Code.TEE_REFUSED


@pytest.mark.parametrize(
    ("environment", "global_id"), [(None, -3), ("production", -3), ("", -3), ("staging", -3), ("development", -239)]
)
def test_simulated_roots_are_refused_in_production(environment: str | None, global_id: int) -> None:
    deployment = replace(DEVELOPMENT, environment=environment, global_id=global_id)

    assert scene().asked(deployment=deployment).refusal() == Code.SIMULATED_REFUSED
    assert scene(kind="sev-snp").asked(deployment=deployment).refusal() == Code.SIMULATED_REFUSED
