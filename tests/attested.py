"""One simulated machine, what it shows, and the question put to it; tests change one thing at a time."""

import datetime as dt
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.evidence import Endorsements, Evidence
from attestation.findings import Code
from attestation.judge import Question, judge
from attestation.policy import TEE, Deployment, Policy, load_policy
from attestation.simulation.tdx import Domain
from attestation.simulation.tee import SimulatedTEE
from attestation.verdict import Verdict
from cocoon.enrolment import Keyset
from cocoon.statement import Beacon, Statement, report_data

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
UNIX_NOW = int(NOW.timestamp())
DEVELOPMENT = Deployment("development", -3)
NONCE = b"n" * 32
MANIFEST = b"m" * 32
RECEIPT_KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key().public_bytes_raw()
BEACON = Beacon(seqno=7, root_hash=b"r" * 32, file_hash=b"f" * 32, gen_utime=UNIX_NOW - 5)
KEYSET = Keyset(
    v=1, stake_addr="", operator="op", tls_spki_sha256=b"t" * 32, hpke_xwing=b"", hpke_x25519=b"",
    receipt_pk=RECEIPT_KEY, delegation=b"", model_manifest_sha256=MANIFEST, boot_id=b"b" * 16,
    not_before=UNIX_NOW - 10, not_after=UNIX_NOW + 3600,
)  # fmt: skip


@functools.cache
def machine(name: str = "worker-1", seed: bytes = bytes(32), gpus: int = 1) -> SimulatedTEE:
    return SimulatedTEE(seed, machine=name, deployment=DEVELOPMENT, gpus=gpus)


def policy_of(tee: SimulatedTEE, *replacements: tuple[str, str]) -> Policy:
    text = tee.policy_toml().decode()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    raw = text.encode()
    return load_policy(raw, pinned_sha256=hashlib.sha256(raw).digest())


class Scene(msgspec.Struct, frozen=True):
    """Everything a judgement takes."""

    tee: SimulatedTEE
    evidence: Evidence
    endorsements: Endorsements
    policy: Policy
    question: Question

    def verdict(self) -> Verdict:
        return judge(self.evidence, self.endorsements, self.policy, self.question)

    def refusal(self) -> Code:
        """The one reason against it; an accepted scene fails the test."""
        verdict = self.verdict()
        assert not verdict.accepted, verdict.in_words()
        (code,) = verdict.codes
        return code

    def asked(self, **changes: Any) -> "Scene":
        return msgspec.structs.replace(self, question=msgspec.structs.replace(self.question, **changes))

    def showing(self, **changes: Any) -> "Scene":
        return msgspec.structs.replace(self, evidence=msgspec.structs.replace(self.evidence, **changes))

    def endorsed(self, **changes: Any) -> "Scene":
        return msgspec.structs.replace(self, endorsements=msgspec.structs.replace(self.endorsements, **changes))

    def under(self, *replacements: tuple[str, str]) -> "Scene":
        return msgspec.structs.replace(self, policy=policy_of(self.tee, *replacements))

    def quoting(self, change: Callable[[Domain], Domain]) -> "Scene":
        """The same statement, quoted by a platform whose trust domain differs."""
        domain = change(self.tee.domain(self.evidence.event_log))
        return self.showing(quote=self.tee.platform.quote(domain, report_data(self.evidence.statement)))

    def restated(self, **changes: Any) -> "Scene":
        """Another statement, quoted all the same."""
        statement = msgspec.structs.replace(Statement.decode(self.evidence.statement), **changes).encode()
        quote = self.tee.platform.quote(self.tee.domain(self.evidence.event_log), report_data(statement))
        return self.showing(statement=statement, quote=quote)


def scene(
    tee: SimulatedTEE | None = None,
    *,
    keyset: Keyset = KEYSET,
    kind: TEE = "tdx",
    nonce: bytes | None = NONCE,
    beacon: Beacon = BEACON,
) -> Scene:
    tee = tee or machine()
    return Scene(
        tee=tee,
        evidence=tee.evidence(keyset.encode(), beacon, nonce, kind),
        endorsements=tee.endorsements(NOW),
        policy=policy_of(tee),
        question=Question(at=NOW, deployment=DEVELOPMENT, nonce=nonce),
    )
