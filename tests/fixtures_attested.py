"""Workers of a simulated fleet as a gateway sees them: evidence, enrolments, and a policy that accepts them."""

import hashlib
from pathlib import Path
from typing import Any

import httpx
import msgspec

from attestation.evidence import Evidence
from attestation.simulation.tdx import Domain
from attestation.simulation.tee import SimulatedTEE
from cocoon.clock import SystemClock, system_random
from cocoon.enrolment import CHALLENGE_PATH, ENROL_PATH, Challenge, EnrolRequest, Keyset, ServedModel
from cocoon.statement import Beacon, report_data
from tests.attested import DEVELOPMENT
from tests.fixtures_gateway import MODEL
from workers.agent.keys import Identity, new_boot_id

SEED = b"\x5e" * 32
FOREIGN_SEED = b"\xf0" * 32


def machine(name: str = "worker-1", seed: bytes = SEED, gpus: int = 1) -> SimulatedTEE:
    return SimulatedTEE(seed, machine=name, deployment=DEVELOPMENT, gpus=gpus)


def policy_environment(folder: Path, *replacements: tuple[str, str], gpus: int = 1, name: str = "p") -> dict[str, str]:
    """What a gateway is told to judge this fleet; `replacements` change the policy's text."""
    text = machine(gpus=gpus).policy_toml(bind_manifest=False).decode()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return {
        "COCOON_POLICY_FILE": str(path), "COCOON_POLICY_SHA256": hashlib.sha256(text.encode()).hexdigest(),
        "COCOON_SIMULATED_SEED": SEED.hex(),
    }  # fmt: skip


def worker_environment(gpus: int = 1) -> dict[str, str]:
    """What an agent of this fleet is told."""
    return {
        "COCOON_TEE_TYPE": "simulated", "COCOON_SIMULATED_SEED": SEED.hex(), "COCOON_SIMULATED_GPUS": str(gpus),
    }  # fmt: skip


def beacon(age_s: int = 0) -> Beacon:
    now = int(SystemClock().now().timestamp())
    return Beacon(seqno=0, root_hash=bytes(32), file_hash=bytes(32), gen_utime=now - age_s)


class Enrollee:
    """A worker without an agent: its keys, its machine, and whatever it chooses to show."""

    def __init__(
        self, name: str = "worker-1", tee: SimulatedTEE | None = None, url: str = "https://127.0.0.1:9"
    ) -> None:
        self.name = name
        self.url = url
        self.tee = tee or machine(name)
        self.identity = Identity(SystemClock(), new_boot_id(system_random()))

    @property
    def keyset(self) -> Keyset:
        return self.identity.keyset

    async def challenge(self, client: httpx.AsyncClient) -> bytes:
        answer = await client.post(CHALLENGE_PATH)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=Challenge).nonce

    def evidence(self, nonce: bytes | None, age_s: int = 0) -> Evidence:
        return self.tee.evidence(self.identity.raw, beacon(age_s), nonce)

    def quoting(self, evidence: Evidence, **changes: Any) -> Evidence:
        """The same statement, quoted by a trust domain that differs."""
        domain: Domain = msgspec.structs.replace(self.tee.domain(evidence.event_log), **changes)
        quote = self.tee.platform.quote(domain, report_data(evidence.statement))
        return msgspec.structs.replace(evidence, quote=quote)

    async def send(
        self, client: httpx.AsyncClient, evidence: Evidence | bytes | None, **changes: Any
    ) -> httpx.Response:
        raw = evidence.encode() if isinstance(evidence, Evidence) else evidence or b""
        members: dict[str, Any] = {
            "keyset": self.identity.raw, "url": self.url, "name": self.name, "capacity": 4, "engine": "test",
            "models": (ServedModel(id=MODEL, context_tokens=2048),), "evidence": raw,
            "tee_type": "tdx-simulated" if raw else "none",
        }  # fmt: skip
        body = msgspec.json.encode(EnrolRequest(**{**members, **changes}))
        return await client.post(ENROL_PATH, content=body)

    async def enrol(self, client: httpx.AsyncClient) -> httpx.Response:
        """As an honest agent does."""
        return await self.send(client, self.evidence(await self.challenge(client)))
