"""The gateway as a verifier: one policy, the vendors' documents, and judgements off the event loop."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import structlog

from attestation.evidence import RIMS_MAX, Endorsements, Evidence
from attestation.judge import Question
from attestation.policy import Deployment, Policy
from attestation.tdx.collateral import Collateral, CollateralCache
from attestation.tdx.dcap import family_of
from attestation.tdx.quote import parse_quote
from cocoon.clock import Clock
from cocoon.enrolment import keyset_digest
from cocoon.errors import CocoonError, MalformedError
from cocoon.statement import Statement
from gateway.beacons import Beacons
from gateway.errors import GatewayError
from workers.errors import EvidenceJudgedError
from workers.judgement import Judged, judge_evidence

JUDGES_MAX: Final = 2
"""Judgements at a time: each is 10 ms of a processor, and the event loop wants one too."""
WAITING_MAX: Final = 256
AGAIN_MAX: Final = 16_384
"""Judgements of earlier evidence that are remembered."""
RIM_BYTES_MAX: Final = 1024 * 1024
log = structlog.get_logger()


class AttestorBusyError(GatewayError):
    """Too much evidence waits to be judged. Try again shortly."""

    code: ClassVar[str] = "attestor_busy"
    transient: ClassVar[bool] = True


class Attestor:
    """Judges evidence under `policy`; None judges nothing. `rims` and `crls` are documents at hand.

    A block that a statement names is looked up with `beacons`. What the chain does not say changes no verdict.
    """

    def __init__(
        self, policy: Policy | None, deployment: Deployment, clock: Clock, cache: CollateralCache, beacons: Beacons,
        *, rims: Sequence[bytes] = (), crls: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        self.policy = policy
        self._deployment = deployment
        self._clock = clock
        self.cache = cache
        self._beacons = beacons
        self._rims = tuple(rims)
        self._crls = tuple(crls)
        self._turns = asyncio.Semaphore(JUDGES_MAX)
        self._waiting = 0
        self._again: dict[tuple[bytes, int], Judged] = {}

    @property
    def judges(self) -> bool:
        """Whether there is a policy."""
        return self.policy is not None

    @property
    def policy_sha256(self) -> bytes | None:
        """Of the policy's exact text."""
        return None if self.policy is None else self.policy.sha256

    @property
    def workers_per_platform(self) -> int | None:
        """How many workers the policy allows on one machine."""
        return None if self.policy is None or self.policy.tdx is None else self.policy.tdx.workers_per_platform

    @staticmethod
    def read(raw: bytes) -> tuple[Evidence, bytes | None]:
        """Evidence as it was sent, and the nonce that it says it answers.

        Raises:
            EvidenceJudgedError: it cannot be read.
        """
        try:
            evidence = Evidence.decode(raw)
            return evidence, Statement.decode(evidence.statement).nonce
        except MalformedError as error:
            raise EvidenceJudgedError(f"{error} [evidence_malformed]") from error

    async def judge(self, evidence: Evidence, raw: bytes, *, keyset: bytes, nonce: bytes | None) -> Judged:
        """Judge evidence that was `read`, for a keyset, as of now. `nonce` is one that we gave.

        Raises:
            AttestorBusyError: too much waits already.
        """
        policy = self.policy
        assert policy is not None, "callers look at `judges` first"
        if self._waiting >= WAITING_MAX:
            raise AttestorBusyError
        self._waiting += 1
        try:
            beacon = await self._beacons.own(Statement.decode(evidence.statement).beacon)
            async with self._turns:
                endorsements = await self.endorsements(evidence)
                question = Question(at=self._clock.now(), deployment=self._deployment, nonce=nonce, beacon=beacon)
                return await asyncio.to_thread(
                    judge_evidence, evidence, endorsements, policy, question, keyset=keyset, raw=raw
                )
        finally:
            self._waiting -= 1

    async def again(
        self, evidence: bytes, endorsements: bytes, *, keyset: bytes, nonce: bytes | None, judged_at: int
    ) -> Judged | None:
        """Judge what was judged under another policy, as of then; None where there is nothing to judge by.

        Raises:
            MalformedError: it is not what was stored.
        """
        policy, asked = self.policy, (keyset_digest(keyset), judged_at)
        if policy is None or asked in self._again:
            return self._again.get(asked)
        at = dt.datetime.fromtimestamp(judged_at, dt.UTC)
        question = Question(at=at, deployment=self._deployment, nonce=nonce)
        judged = await asyncio.to_thread(
            judge_evidence, Evidence.decode(evidence), Endorsements.decode(endorsements), policy, question,
            keyset=keyset, raw=evidence,
        )  # fmt: skip
        if len(self._again) >= AGAIN_MAX:
            self._again.clear()
        self._again[asked] = judged
        return judged

    async def endorsements(self, evidence: Evidence) -> Endorsements:
        """What vendors say about the platform of this evidence, as far as it is at hand or can be had now."""
        collateral = await self._collateral(evidence) if evidence.tee == "tdx" else None
        return Endorsements(
            v=1, collateral=collateral, rims=self._rims if evidence.gpu else (),
            crls=self._crls if evidence.tee == "sev-snp" else (),
        )  # fmt: skip

    async def _collateral(self, evidence: Evidence) -> Collateral | None:
        try:
            family = family_of(parse_quote(evidence.quote))
        except MalformedError:
            return None  # the judge finds the same, with its reason
        try:
            return await self.cache.get(family)
        except CocoonError as error:
            log.warning("collateral_unavailable", fmspc=family.fmspc, ca=family.ca, code=error.code, reason=str(error))
            return None


def read_rims(folder: Path | None) -> tuple[bytes, ...]:
    """Every XML file of a folder, in the order of names. Nothing in them is believed before it is judged."""
    if folder is None:
        return ()
    found = sorted(folder.glob("*.xml"))[:RIMS_MAX]
    return tuple(path.read_bytes() for path in found if path.stat().st_size <= RIM_BYTES_MAX)
