"""What Intel says about its platforms, signed and dated: TCB levels, the quoting enclave's identity, revocation lists.

Collateral belongs to one platform family (FMSPC) and one CA. It is kept with its validity, so that a quote can be
judged offline for as long as it holds, and never replaced by one with a lower evaluation number.
"""

import datetime as dt
from typing import Annotated, Final, Protocol

import msgspec

from attestation.certificates import load_crl, load_pem_chain
from attestation.findings import Code, RefusedError
from cocoon.clock import Clock
from cocoon.errors import MalformedError

TEXT_CHARS_MAX: Final = 1024 * 1024
FAMILIES_MAX: Final = 256
"""How many platform families the cache holds; there are a few dozen."""
REFRESH_BEFORE: Final = dt.timedelta(days=7)
"""Collateral is fetched again this long before it ends (Intel signs 30 days)."""

_Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Family(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """Which collateral a quote needs: FMSPC in upper-case hex, CA `platform` or `processor`."""

    fmspc: Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-F]{12}\Z")]
    ca: Annotated[str, msgspec.Meta(pattern=r"\A(?:platform|processor)\Z")]


class Collateral(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answers of Intel's certification service (API v4), byte for byte; chains are PEM, CRLs DER."""

    pck_crl_issuer_chain: _Text
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: _Text
    tcb_info: _Text
    tcb_info_signature: _Signature
    qe_identity_issuer_chain: _Text
    qe_identity: _Text
    qe_identity_signature: _Signature


class CollateralSource(Protocol):
    """Where collateral comes from: Intel's service or a cache of it, or the simulated TEE."""

    async def fetch(self, family: Family) -> Collateral:
        """Current collateral of a family.

        Raises:
            CocoonError: it cannot be had now.
        """
        ...


class _Dated(msgspec.Struct):
    issued: str = msgspec.field(name="issueDate")
    next_update: str = msgspec.field(name="nextUpdate")
    evaluation: int = msgspec.field(name="tcbEvaluationDataNumber")
    fmspc: str = ""


class Validity(msgspec.Struct, frozen=True):
    """Between which moments collateral holds, how new its judgement is, and of which FMSPC it speaks."""

    start: dt.datetime
    end: dt.datetime
    evaluation: int
    fmspc: str


def validity_of(collateral: Collateral) -> Validity:
    """The span in which every part holds; not a verification, which checks the signatures too.

    Raises:
        MalformedError: a part cannot be read.
    """
    documents = [_dated(text) for text in (collateral.tcb_info, collateral.qe_identity)]
    starts = [_moment(document.issued) for document in documents]
    ends = [_moment(document.next_update) for document in documents]
    for crl in (load_crl(collateral.root_ca_crl), load_crl(collateral.pck_crl)):
        if crl.next_update_utc is None:
            raise MalformedError("a revocation list has no end")
        starts.append(crl.last_update_utc)
        ends.append(crl.next_update_utc)
    chains = (collateral.pck_crl_issuer_chain, collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain)
    for chain in chains:
        for certificate in load_pem_chain(chain.encode(), "a chain of the collateral"):
            starts.append(certificate.not_valid_before_utc)
            ends.append(certificate.not_valid_after_utc)
    evaluation = min(document.evaluation for document in documents)
    return Validity(start=max(starts), end=min(ends), evaluation=evaluation, fmspc=documents[0].fmspc)


class CollateralCache:
    """Collateral by family, refreshed before it ends and served on while it cannot be.

    Whether what it serves still holds is the judge's question, with the policy's grace; a source that is away must not
    turn into workers that are away.
    """

    def __init__(self, source: CollateralSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._held: dict[Family, tuple[Collateral, Validity]] = {}

    def held(self, family: Family) -> Collateral | None:
        """What is here now, without I/O, also after its end."""
        entry = self._held.get(family)
        return entry[0] if entry else None

    async def get(self, family: Family) -> Collateral:
        """What is here, or fetched the first time.

        Raises:
            CocoonError: nothing is here and the source does not answer.
            RefusedError: the cache is full, or what the source gave is not to be had in place of what is here.
        """
        if (held := self.held(family)) is not None:
            return held
        if len(self._held) >= FAMILIES_MAX:
            raise RefusedError(Code.COLLATERAL_MISSING, "there are more platform families than expected")
        return self.put(family, await self._source.fetch(family))

    async def refresh(self, family: Family) -> Collateral:
        """Fetch anew, whatever is here.

        Raises:
            CocoonError: the source does not answer; what is here stays.
            RefusedError: what it gave is older than what is here.
        """
        return self.put(family, await self._source.fetch(family))

    def due(self) -> list[Family]:
        """The families whose collateral ends soon or has ended; a background task refreshes them."""
        soon = self._clock.now() + REFRESH_BEFORE
        return sorted(family for family, (_, validity) in self._held.items() if validity.end <= soon)

    def put(self, family: Family, collateral: Collateral) -> Collateral:
        """Keep collateral from anywhere (a saved bundle, the source), if it is not older than what is here.

        Raises:
            MalformedError: it cannot be read.
            RefusedError: it speaks of another family, its evaluation number is lower, or it begins earlier: it could
                lack a revocation that is known here.
        """
        validity = validity_of(collateral)
        if validity.fmspc.upper() != family.fmspc:
            raise RefusedError(Code.COLLATERAL_FOREIGN, "the collateral speaks of another platform family")
        before = self._held.get(family)
        if before is not None and validity.evaluation < before[1].evaluation:
            raise RefusedError(Code.TCB_EVALUATION_OLD, "the collateral is of an older evaluation than what is held")
        if before is not None and validity.start < before[1].start:
            raise RefusedError(Code.COLLATERAL_STALE, "the collateral begins earlier than what is held")
        self._held[family] = (collateral, validity)
        return collateral


def _dated(text: str) -> _Dated:
    try:
        return msgspec.json.decode(text, type=_Dated)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError("a document of the collateral cannot be read") from error


def _moment(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedError("a date of the collateral cannot be read") from error
    if moment.tzinfo is None:
        raise MalformedError("a date of the collateral has no time zone")
    return moment
