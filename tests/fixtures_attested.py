"""Workers of a simulated fleet as a gateway sees them: evidence, enrolments, and a policy that accepts them."""

import asyncio
import contextlib
import hashlib
import urllib.parse
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from attestation.evidence import Evidence
from attestation.simulation.tdx import Domain
from attestation.simulation.tee import RELEASE, SimulatedTEE
from attestation.tdx.collateral import Collateral
from cocoon.clock import SystemClock, system_random
from cocoon.enrolment import CHALLENGE_PATH, ENROL_PATH, Challenge, EnrolRequest, Keyset, ServedModel
from cocoon.statement import Beacon, report_data
from tests.attested import DEVELOPMENT
from tests.fixtures_gateway import MODEL
from workers.agent.keys import Identity, new_boot_id

SEED = b"\x5e" * 32
FOREIGN_SEED = b"\xf0" * 32


def machine(name: str = "worker-1", seed: bytes = SEED, gpus: int = 1, image: str = RELEASE) -> SimulatedTEE:
    return SimulatedTEE(seed, machine=name, deployment=DEVELOPMENT, gpus=gpus, image=image)


def policy_environment(
    folder: Path, *replacements: tuple[str, str], gpus: int = 1, name: str = "p", images: tuple[str, ...] = (RELEASE,)
) -> dict[str, Any]:
    """What a gateway is told to judge this fleet; `replacements` change the policy's text."""
    text = machine(gpus=gpus).policy_toml(bind_manifest=False, images=images).decode()
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

    def evidence(self, nonce: bytes | None, age_s: int = 0, named: Beacon | None = None) -> Evidence:
        return self.tee.evidence(self.identity.raw, named or beacon(age_s), nonce)

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


class FakePCCS:
    """A collateral service on loopback. `collateral` is what it gives; without any it answers 503."""

    def __init__(self) -> None:
        self.collateral: Collateral | None = None
        self.asked = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            self.asked += 1
            status, headers, body = self._answer(path)
            head = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close"]
            head += [f"{name}: {urllib.parse.quote(value)}" for name, value in headers.items()]
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
        writer.close()

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        held = self.collateral
        if held is None:
            return 503, {}, b""
        if "/tdx/certification/v4/tcb" in path:
            body = b'{"tcbInfo":%s,"signature":"%s"}' % (held.tcb_info.encode(), held.tcb_info_signature.hex().encode())
            return 200, {"TCB-Info-Issuer-Chain": held.tcb_info_issuer_chain}, body
        if "/qe/identity" in path:
            signature = held.qe_identity_signature.hex().encode()
            body = b'{"enclaveIdentity":%s,"signature":"%s"}' % (held.qe_identity.encode(), signature)
            return 200, {"SGX-Enclave-Identity-Issuer-Chain": held.qe_identity_issuer_chain}, body
        if "/pckcrl" in path:
            return 200, {"SGX-PCK-CRL-Issuer-Chain": held.pck_crl_issuer_chain}, held.pck_crl
        return 200, {}, held.root_ca_crl.hex().encode()
