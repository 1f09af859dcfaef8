"""Verification of a TDX quote against collateral, by `dcap-qvl` under a root and a policy that we name.

The library's plain `verify` accepts a platform that is out of date; it is never called. What the library says in
English only serves messages: whether a quote is accepted never depends on the wording.
"""

import datetime as dt
from collections.abc import Collection
from typing import Final

import dcap_qvl
import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.certificates import check_revocation, load_crl, pem_of, sha256_hex, verify_chain
from attestation.findings import Code, Finding, RefusedError
from attestation.policy import TDXPolicy
from attestation.tdx.collateral import Collateral, Family, validity_of
from attestation.tdx.quote import TDXQuote
from cocoon.errors import MalformedError

_UP_TO_DATE: Final = "UpToDate"
# Wording of the library, for a better code than QUOTE_INVALID. An unknown wording is refused just the same.
_WORDINGS: Final = (
    ("tcb status", Code.TCB_UNACCEPTABLE),
    ("no matching tcb level", Code.TCB_UNACCEPTABLE),
    ("is not acceptable", Code.TCB_UNACCEPTABLE),
    ("not allowed by policy", Code.TCB_UNACCEPTABLE),
    ("evaluation", Code.TCB_EVALUATION_OLD),
    ("grace", Code.TCB_UNACCEPTABLE),
    ("revoked", Code.CERTIFICATE_REVOKED),
    ("expired", Code.COLLATERAL_STALE),
    ("fmspc mismatch", Code.COLLATERAL_FOREIGN),
    ("debug", Code.DEBUG),
    ("sept", Code.ATTRIBUTES),
    ("attributes", Code.ATTRIBUTES),
    ("tcbinfo", Code.COLLATERAL_INVALID),
    ("tcb info", Code.COLLATERAL_INVALID),
    ("crl", Code.COLLATERAL_INVALID),
    ("qe identity", Code.COLLATERAL_INVALID),
)


class _TCB(msgspec.Struct):
    status: str
    advisory_ids: list[str]
    eval_data_number: int


class _PCK(msgspec.Struct):
    ppid: list[int]
    fmspc: list[int]


class _Platform(msgspec.Struct):
    pck: _PCK


class _Claims(msgspec.Struct):
    tcb: _TCB
    platform: _Platform


class TDXClaims(msgspec.Struct, frozen=True):
    """What is proven about the platform; `judged_at` is the time the collateral was held against."""

    tcb_status: str
    advisories: tuple[str, ...]
    evaluation: int
    ppid: bytes
    fmspc: str
    valid_until: dt.datetime
    notes: tuple[Finding, ...]


def family_of(quote: TDXQuote) -> Family:
    """Which collateral a quote needs, as its PCK certificate says.

    Raises:
        MalformedError: the PCK certificate does not say.
    """
    issuer = quote.pck_chain[0].issuer.rfc4514_string()
    try:
        extension = dcap_qvl.parse_pck_extension_from_pem(pem_of(quote.pck_chain[:1]))
    except ValueError as error:
        raise MalformedError("the PCK certificate does not name its platform family") from error
    return Family(fmspc=extension.fmspc.hex().upper(), ca="platform" if "Platform" in issuer else "processor")


def verify_quote(
    raw: bytes,
    quote: TDXQuote,
    collateral: Collateral,
    *,
    policy: TDXPolicy,
    roots: Collection[str],
    at: dt.datetime,
) -> TDXClaims:
    """Verify every signature from the root to the TD report, and the platform's status, as of `at`.

    Raises:
        MalformedError: the collateral cannot be read.
        RefusedError: anything that is not proven or that the policy does not accept.
    """
    verify_chain(quote.pck_chain, roots=roots, at=at, what="the PCK chain")
    validity = validity_of(collateral)
    if family_of(quote).fmspc != validity.fmspc.upper():
        raise RefusedError(Code.COLLATERAL_FOREIGN, "the collateral speaks of another platform family")
    notes: list[Finding] = []
    if at < validity.start:
        raise RefusedError(Code.COLLATERAL_STALE, "the collateral begins after the time of judgement")
    judged_at = at
    if at >= validity.end:
        if at - validity.end > dt.timedelta(seconds=policy.collateral_grace_seconds):
            raise RefusedError(Code.COLLATERAL_STALE, f"the collateral ended at {validity.end.isoformat()}")
        judged_at = validity.end - dt.timedelta(seconds=1)
        message = f"the collateral ended at {validity.end.isoformat()}; the policy grants it a grace"
        notes.append(Finding(Code.COLLATERAL_GRACE, message))
    lists = (load_crl(collateral.root_ca_crl), load_crl(collateral.pck_crl))
    if not check_revocation(quote.pck_chain, lists, at=judged_at):
        raise RefusedError(Code.CRL_MISSING, "the collateral lacks the revocation list of an issuer of the PCK chain")
    if validity.evaluation < policy.tcb_evaluation_min:
        message = f"the collateral is of evaluation {validity.evaluation}, below {policy.tcb_evaluation_min}"
        raise RefusedError(Code.TCB_EVALUATION_OLD, message)
    claims = _verified(raw, quote, collateral, policy, judged_at)
    if claims.tcb.status != _UP_TO_DATE:
        message = f"the platform's TCB is {claims.tcb.status} ({', '.join(claims.tcb.advisory_ids) or 'no advisory'})"
        if claims.tcb.status not in policy.tcb_grace:
            raise RefusedError(Code.TCB_UNACCEPTABLE, message)
        notes.append(Finding(Code.TCB_GRACE, f"{message}; the policy grants it a grace"))
    return TDXClaims(
        tcb_status=claims.tcb.status, advisories=tuple(claims.tcb.advisory_ids),
        evaluation=claims.tcb.eval_data_number, ppid=bytes(claims.platform.pck.ppid),
        fmspc=bytes(claims.platform.pck.fmspc).hex(), valid_until=validity.end, notes=tuple(notes),
    )  # fmt: skip


def _verified(raw: bytes, quote: TDXQuote, collateral: Collateral, policy: TDXPolicy, at: dt.datetime) -> _Claims:
    root = quote.pck_chain[-1]
    try:
        verifier = dcap_qvl.QuoteVerifier(root.public_bytes(Encoding.DER))
        claims = verifier.verify_with_policy(raw, _foreign(collateral), int(at.timestamp()), _strict(policy, at))
        return msgspec.json.decode(claims.to_json(), type=_Claims)
    except msgspec.MsgspecError as error:
        raise RefusedError(Code.QUOTE_INVALID, "the verifier's claims about the quote cannot be read") from error
    except ValueError as error:
        text = str(error)
        code = next((code for wording, code in _WORDINGS if wording in text.lower()), Code.QUOTE_INVALID)
        raise RefusedError(code, f"the quote does not verify under root {sha256_hex(root)[:16]}: {text}") from error
    except BaseException as error:
        # A panic of the Rust library is neither an Exception nor a reason to accept anything.
        if type(error).__name__ != "PanicException":
            raise
        raise RefusedError(Code.QUOTE_INVALID, "the verifier gave up on the quote") from None


def _strict(policy: TDXPolicy, at: dt.datetime) -> dcap_qvl.QuotePolicy:
    """Only `UpToDate`, except for what the policy grants by name and for a time."""
    strict = (
        dcap_qvl.QuotePolicy.strict(int(at.timestamp()))
        .allow_dynamic_platform(policy.allow_dynamic_platform)
        .allow_cached_keys(policy.allow_cached_keys)
        .allow_smt(policy.allow_smt)
        .min_tcb_eval_data_number(policy.tcb_evaluation_min)
    )
    for status in policy.tcb_grace:
        strict = strict.allow_status(status)
    if policy.tcb_grace:
        seconds = policy.tcb_grace_seconds
        strict = strict.platform_grace_period(seconds).qe_grace_period(seconds)
    return strict


def _foreign(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    return dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=collateral.pck_crl_issuer_chain, root_ca_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl, tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        tcb_info=collateral.tcb_info, tcb_info_signature=collateral.tcb_info_signature,
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain, qe_identity=collateral.qe_identity,
        qe_identity_signature=collateral.qe_identity_signature,
    )  # fmt: skip
