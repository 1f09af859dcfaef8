"""The one way from evidence to a verdict, for real and simulated hardware alike.

Nothing is accepted for lack of a check: a step that cannot be taken refuses. The first reason ends the judgement, since
what comes after it would be said about bytes that nobody vouches for.
"""

import datetime as dt
import hmac

import msgspec

from attestation.certificates import load_pem_chain, says_simulation, verify_chain
from attestation.evidence import Endorsements, Evidence
from attestation.findings import Code, Finding, RefusedError
from attestation.nvidia.gpu import evidence_digest, verify_gpus
from attestation.policy import Deployment, Freshness, Policy, Release
from attestation.snp.report import SNPReport, parse_snp_report, verify_snp_report
from attestation.tdx.dcap import TDXClaims, verify_quote
from attestation.tdx.eventlog import MANIFEST_EVENT, check_log, runtime_events
from attestation.tdx.quote import TDReport, parse_quote
from attestation.verdict import GPUBinding, Verdict
from cocoon.enrolment import KEYSET_SECONDS_MAX, Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.receipt import is_strong_key
from cocoon.statement import Beacon, Statement, gpu_nonce, report_data


class Question(msgspec.Struct, frozen=True):
    """What the verifier knows and asks, besides the evidence.

    `at` is the aware time of judgement: now, or the time a saved bundle speaks of. `nonce` is the one it gave; `beacon`
    the block that its own liteserver has at the statement's `seqno`; `tls_spki_sha256` the key of the connection it has
    to the worker. What is None is not known, and nothing is concluded from it.
    """

    at: dt.datetime
    deployment: Deployment
    nonce: bytes | None = None
    beacon: Beacon | None = None
    tls_spki_sha256: bytes | None = None


def judge(evidence: Evidence, endorsements: Endorsements, policy: Policy, question: Question) -> Verdict:
    """The verdict about evidence. Refusals are verdicts too; nothing is raised for what a worker sent."""
    judgement = _Judgement(evidence, endorsements, policy, question)
    reasons: tuple[Finding, ...] = ()
    try:
        judgement.run()
    except RefusedError as refusal:
        reasons = (Finding(refusal.finding, str(refusal)),)
    except MalformedError as error:
        reasons = (Finding(Code.MALFORMED, str(error)),)
    return judgement.verdict(reasons)


class _Facts:
    """What has been established; defaults are what nothing was shown for."""

    def __init__(self) -> None:
        self.ends: list[dt.datetime] = []
        self.notes: list[Finding] = []
        self.release = ""
        self.freshness: Freshness = "unproven"
        self.keyset_digest = b""
        self.manifest = b""
        self.tcb_status = ""
        self.tcb_advisories: tuple[str, ...] = ()
        self.tcb_evaluation = 0
        self.fmspc = ""
        self.ppid = b""
        self.chip_id = b""
        self.gpus = 0
        self.gpu_binding: GPUBinding = "none"
        self.gpu_serials: tuple[str, ...] = ()

    def platform(self, claims: TDXClaims) -> None:
        """Take over what a verified quote says about its platform."""
        self.tcb_status, self.tcb_advisories, self.tcb_evaluation = (
            claims.tcb_status, claims.advisories, claims.evaluation,
        )  # fmt: skip
        self.fmspc, self.ppid = claims.fmspc, claims.ppid


class _Judgement:
    """The walk and what it has established so far."""

    def __init__(self, evidence: Evidence, endorsements: Endorsements, policy: Policy, question: Question) -> None:
        self._evidence = evidence
        self._endorsements = endorsements
        self._policy = policy
        self._question = question
        self._facts = _Facts()

    def run(self) -> None:
        """Take every step, or raise the first reason against the evidence."""
        self._refuse_simulation_in_production()
        if self._evidence.chain if self._evidence.tee == "tdx" else self._evidence.event_log:
            raise MalformedError("the evidence has a part that its TEE does not use")
        keyset, statement = self._keyset_and_statement()
        expected = report_data(self._evidence.statement)
        release = self._tdx(keyset, expected) if self._evidence.tee == "tdx" else self._snp(keyset, expected)
        self._facts.release = release.name
        self._freshness(statement)
        self._gpus(release, statement)

    def verdict(self, reasons: tuple[Finding, ...]) -> Verdict:
        """What was established, for or against."""
        facts, policy, question = self._facts, self._policy, self._question
        simulated = policy.simulated or self._looks_simulated()
        tee_type = self._evidence.tee + ("-simulated" if simulated else "")
        notes = tuple(facts.notes)
        if simulated:
            message = "the TEE is simulated: no hardware protects anything"
            notes = (Finding(Code.SIMULATED, message), *notes)
        judged_at = int(question.at.timestamp())
        ends = [int(end.timestamp()) for end in facts.ends]
        return Verdict(
            accepted=not reasons, tee_type=tee_type, simulated=simulated, reasons=reasons, notes=notes,
            policy=policy.name, policy_sha256=policy.sha256, judged_at=judged_at,
            valid_until=0 if reasons else min(ends, default=0), release=facts.release, freshness=facts.freshness,
            keyset_digest=facts.keyset_digest, model_manifest_sha256=facts.manifest, tcb_status=facts.tcb_status,
            tcb_advisories=facts.tcb_advisories, tcb_evaluation=facts.tcb_evaluation, fmspc=facts.fmspc,
            ppid=facts.ppid, chip_id=facts.chip_id, gpus=facts.gpus, gpu_binding=facts.gpu_binding,
            gpu_serials=facts.gpu_serials,
        )  # fmt: skip

    def _refuse_simulation_in_production(self) -> None:
        deployment = self._question.deployment
        if self._policy.simulated and deployment.production:
            where = f"COCOON_ENV {deployment.environment or 'unset'}, network {deployment.global_id}"
            raise RefusedError(Code.SIMULATED_REFUSED, f"simulated roots are refused in production ({where})")

    def _keyset_and_statement(self) -> tuple[Keyset, Statement]:
        question, skew = self._question, self._policy.clock_skew_seconds
        keyset, statement = Keyset.decode(self._evidence.keyset), Statement.decode(self._evidence.statement)
        self._facts.keyset_digest = keyset_digest(self._evidence.keyset)
        if not hmac.compare_digest(self._facts.keyset_digest, statement.keyset_digest):
            raise RefusedError(Code.KEYSET_MISMATCH, "the statement is about another keyset")
        if not 0 < keyset.not_after - keyset.not_before <= KEYSET_SECONDS_MAX or not is_strong_key(keyset.receipt_pk):
            raise RefusedError(Code.KEYSET_INVALID, "the keyset lives too long, or its receipt key is unusable")
        if not keyset.not_before - skew <= question.at.timestamp() < keyset.not_after + skew:
            raise RefusedError(Code.KEYSET_EXPIRED, "the keyset is not valid at the time of judgement")
        peer = question.tls_spki_sha256
        if peer is not None and not hmac.compare_digest(peer, keyset.tls_spki_sha256):
            raise RefusedError(Code.TLS_KEY_MISMATCH, "the connection is to another key than the attested one")
        if statement.gpu_evidence_sha256 != evidence_digest(self._evidence.gpu):
            raise RefusedError(Code.GPU_EVIDENCE_MISMATCH, "the GPU evidence is not what the statement covers")
        self._facts.ends.append(dt.datetime.fromtimestamp(keyset.not_after, dt.UTC))
        self._facts.ends.append(question.at + dt.timedelta(seconds=self._policy.verdict_seconds_max))
        return keyset, statement

    def _tdx(self, keyset: Keyset, expected: bytes) -> Release:
        policy, collateral = self._policy.tdx, self._endorsements.collateral
        if policy is None:
            raise RefusedError(Code.TEE_REFUSED, "the policy does not accept TDX")
        quote = parse_quote(self._evidence.quote)
        report = quote.report
        # Ours first: their codes do not depend on the wording of a library.
        if report.debug:
            raise RefusedError(Code.DEBUG, "the trust domain may be debugged: the host reads its memory")
        roots, at = self._policy.pins("tdx"), self._question.at
        if collateral is None:
            verify_chain(quote.pck_chain, roots=roots, at=at, what="the PCK chain")
            raise RefusedError(Code.COLLATERAL_MISSING, "the collateral of the platform is not at hand")
        claims = verify_quote(self._evidence.quote, quote, collateral, policy=policy, roots=roots, at=at)
        self._facts.platform(claims)
        self._facts.notes.extend(claims.notes)
        self._facts.ends.append(claims.valid_until + dt.timedelta(seconds=policy.collateral_grace_seconds))
        if report.td_attributes.hex() not in policy.td_attributes or report.xfam.hex() not in policy.xfams:
            raise RefusedError(Code.ATTRIBUTES, "the trust domain's attributes or features are not in the policy")
        zeros = (report.mrsignerseam, report.mr_servicetd, report.mrowner, report.mrownerconfig)
        if any(map(any, zeros)) or any(report.seam_attributes):
            raise RefusedError(Code.ATTRIBUTES, "the trust domain has an owner, a service domain or a foreign module")
        if report.mrseam.hex() not in policy.mrseams:
            raise RefusedError(Code.MODULE_UNKNOWN, f"TDX module {report.mrseam.hex()[:16]} is not in the policy")
        if policy.ppids is not None and claims.ppid.hex() not in policy.ppids:
            raise RefusedError(Code.PLATFORM_UNKNOWN, "the policy does not list this platform")
        if not hmac.compare_digest(report.report_data, expected):
            raise RefusedError(Code.REPORT_DATA_MISMATCH, "the quote was made for another statement")
        return self._tdx_release(report, keyset)

    def _tdx_release(self, report: TDReport, keyset: Keyset) -> Release:
        measured = (report.mrtd, *report.rtmrs[:3], report.mrconfigid)
        shown = tuple(value.hex() for value in measured)
        known = [
            release
            for release in self._policy.releases
            if release.tee == "tdx"
            and shown == (release.mrtd, release.rtmr0, release.rtmr1, release.rtmr2, release.mrconfigid)
        ]
        if not known:
            raise RefusedError(Code.MEASUREMENT_UNKNOWN, f"no release of the policy measures MRTD {shown[0][:16]} so")
        check_log(self._evidence.event_log, report.rtmrs)
        events = runtime_events(self._evidence.event_log)
        names = tuple(event.name for event in events)
        fitting = [release for release in known if release.rtmr3_events == names]
        if not fitting:
            raise RefusedError(Code.MEASUREMENT_UNKNOWN, "the image measured other things at run time than its release")
        payloads = [event.payload for event in events if event.name == MANIFEST_EVENT]
        self._manifest(keyset, payloads[0] if len(payloads) == 1 else b"")
        return fitting[0]

    def _snp(self, keyset: Keyset, expected: bytes) -> Release:
        policy = self._policy.snp
        if policy is None:
            raise RefusedError(Code.TEE_REFUSED, "the policy does not accept SEV-SNP")
        report = parse_snp_report(self._evidence.quote)
        claims = verify_snp_report(
            report, self._evidence.chain, self._endorsements.crls,
            policy=policy, roots=self._policy.pins("sev-snp"), at=self._question.at,
        )  # fmt: skip
        self._facts.chip_id = claims.chip_id
        self._facts.notes.extend(claims.notes)
        self._facts.ends.append(claims.valid_until)
        if not hmac.compare_digest(report.report_data, expected):
            raise RefusedError(Code.REPORT_DATA_MISMATCH, "the report was made for another statement")
        # The host gives host_data before the guest starts; a measured image takes its manifest's digest from there.
        self._manifest(keyset, report.host_data)
        return self._snp_release(report)

    def _snp_release(self, report: SNPReport) -> Release:
        for release in self._policy.releases:
            if release.tee == "sev-snp" and release.measurement == report.measurement.hex():
                return release
        message = f"no release of the policy has measurement {report.measurement.hex()[:16]}"
        raise RefusedError(Code.MEASUREMENT_UNKNOWN, message)

    def _manifest(self, keyset: Keyset, measured: bytes) -> None:
        if self._policy.bind_manifest and (not measured or measured != keyset.model_manifest_sha256):
            raise RefusedError(Code.MANIFEST_UNBOUND, "the keyset's model manifest is not the one that was measured")
        self._facts.manifest = keyset.model_manifest_sha256

    def _freshness(self, statement: Statement) -> None:
        question, policy = self._question, self._policy
        age = question.at.timestamp() - statement.beacon.gen_utime
        if not -policy.clock_skew_seconds <= age <= policy.beacon_seconds_max:
            raise RefusedError(Code.BEACON_OLD, f"the statement's block is {age:.0f} s old")
        if question.beacon is not None and question.beacon != statement.beacon:
            raise RefusedError(Code.BEACON_FOREIGN, "our own liteserver has another block at the statement's height")
        if question.nonce is not None:
            if statement.nonce is None or not hmac.compare_digest(statement.nonce, question.nonce):
                raise RefusedError(Code.NONCE_MISMATCH, "the statement does not carry the nonce that was given")
            self._facts.freshness = "nonce"
        elif question.beacon is not None:
            self._facts.freshness = "own-liteserver"
        if self._facts.freshness not in policy.freshness:
            raise RefusedError(Code.FRESHNESS_UNPROVEN, f"the policy asks for more than {self._facts.freshness}")

    def _gpus(self, release: Release, statement: Statement) -> None:
        if release.gpus == 0:
            if self._evidence.gpu:
                raise RefusedError(Code.GPU_COUNT, f"release {release.name} has no GPU, and there is evidence of some")
            return
        if not self._evidence.gpu:
            raise RefusedError(Code.GPU_COUNT, f"release {release.name} has {release.gpus} GPUs that give no evidence")
        claims = verify_gpus(
            self._evidence.gpu, policy=self._policy, expected=release.gpus, rims=self._endorsements.rims,
            nonce=gpu_nonce(statement.keyset_digest, statement.beacon, statement.nonce), at=self._question.at,
        )  # fmt: skip
        self._facts.gpus, self._facts.gpu_serials = len(claims.serials), claims.serials
        self._facts.gpu_binding = "guest-measured"
        self._facts.ends.append(claims.valid_until)
        message = "NVIDIA's online revocation (OCSP) is not part of the evidence; the policy's own list was checked"
        self._facts.notes.append(Finding(Code.REVOCATION_UNCHECKED, message))

    def _looks_simulated(self) -> bool:
        """Whether the evidence itself says that it is simulated, whatever the policy trusts."""
        try:
            if self._evidence.tee == "tdx":
                chain = parse_quote(self._evidence.quote).pck_chain
            else:
                chain = load_pem_chain(self._evidence.chain, "the VCEK chain")
        except MalformedError:
            return False
        return any(map(says_simulation, chain))
