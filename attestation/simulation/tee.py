"""The simulated TEE as a whole: what an agent in development has for hardware, and the policy that accepts it."""

import datetime as dt
import hashlib
from typing import ClassVar, Final

from attestation.evidence import Endorsements, Evidence, GPUEvidence
from attestation.nvidia.gpu import evidence_digest
from attestation.policy import TEE, Deployment
from attestation.simulation.certificates import derive
from attestation.simulation.gpu import ARCHITECTURE, DRIVER, VBIOS, SimulatedGPUs
from attestation.simulation.snp import Guest, SimulatedChip
from attestation.simulation.tdx import Domain, SimulatedPlatform
from attestation.tdx.collateral import Collateral, Family
from attestation.tdx.eventlog import MANIFEST_EVENT, RUNTIME_EVENT, RUNTIME_REGISTER, LogEvent, replay
from cocoon.clock import Clock
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import CocoonError
from cocoon.statement import Beacon, Statement, gpu_nonce, report_data

SEED_BYTES: Final = 32
RELEASE: Final = "simulated"
_BOOT_EVENT: Final = 0x80000001


class SimulationRefusedError(CocoonError):
    """A simulated TEE is refused in production."""

    code: ClassVar[str] = "simulated_refused"


class SimulatedTEE:
    """One machine of a simulated fleet. Machines of one seed share their vendors, so one policy accepts them all."""

    def __init__(
        self, seed: bytes, *, machine: str, deployment: Deployment, gpus: int = 0, image: str = RELEASE
    ) -> None:
        """Build the machine's certificates. `image` names the release that it runs.

        Raises:
            SimulationRefusedError: in production, or on the main network.
        """
        if deployment.production:
            raise SimulationRefusedError
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        own = derive(seed, f"machine/{machine}", SEED_BYTES)
        self._seed = seed
        self._image = image
        self._gpu_count = gpus
        self.platform = SimulatedPlatform(seed, own)
        self.gpus = SimulatedGPUs(seed, own, gpus)
        self.chip = SimulatedChip(seed, own)

    def evidence(self, keyset: bytes, beacon: Beacon, nonce: bytes | None = None, tee: TEE = "tdx") -> Evidence:
        """Evidence for the canonical bytes of a keyset, as an agent shows it."""
        digest = keyset_digest(keyset)
        gpu = self._gpu_evidence(gpu_nonce(digest, beacon, nonce))
        statement = Statement(
            v=1, keyset_digest=digest, beacon=beacon, nonce=nonce, gpu_evidence_sha256=evidence_digest(gpu)
        ).encode()
        manifest = Keyset.decode(keyset).model_manifest_sha256
        expected = report_data(statement)
        if tee == "sev-snp":
            quote = self.chip.report(self.guest(manifest), expected)
            return Evidence(
                v=1, tee=tee, keyset=keyset, statement=statement, quote=quote, chain=self.chip.chain, gpu=gpu
            )
        events = self.event_log(manifest)
        quote = self.platform.quote(self.domain(events), expected)
        return Evidence(v=1, tee=tee, keyset=keyset, statement=statement, quote=quote, event_log=events, gpu=gpu)

    def endorsements(self, now: dt.datetime) -> Endorsements:
        """Everything the simulated vendors have to say, issued now."""
        return Endorsements(
            v=1,
            collateral=self.platform.collateral(now),
            rims=self.gpus.rims() if self._gpu_count else (),
            crls=(self.chip.crl(now),),
        )

    def event_log(self, manifest: bytes) -> tuple[LogEvent, ...]:
        """Boot events of three registers, and the manifest that the image serves."""
        boot = [
            LogEvent(register=number, kind=_BOOT_EVENT, digest=hashlib.sha384(b"boot %d" % number).digest())
            for number in range(RUNTIME_REGISTER)
        ]
        own = LogEvent(register=RUNTIME_REGISTER, kind=RUNTIME_EVENT, name=MANIFEST_EVENT, payload=manifest)
        return (*boot, own)

    def domain(self, events: tuple[LogEvent, ...]) -> Domain:
        """The trust domain that these events leave behind."""
        first, second, third, fourth = replay(events)
        return Domain(mrtd=_mrtd(self._image), mrseam=self._measure("mrseam"), rtmrs=(first, second, third, fourth))

    def guest(self, manifest: bytes) -> Guest:
        """The SEV-SNP guest of the same image."""
        return Guest(measurement=self._measure("snp"), host_data=manifest.ljust(32, b"\0"))

    def policy_toml(self, *, bind_manifest: bool = True, images: tuple[str, ...] = (RELEASE,)) -> bytes:
        """A policy that accepts every machine of this seed with this many GPUs and these images, and nothing else."""
        uses = {
            "tdx": self.platform.root_sha256, "sev-snp": self.chip.root_sha256,
            "gpu": self.gpus.root_sha256, "rim": self.gpus.rim_root_sha256,
        }  # fmt: skip
        roots = "".join(
            f'[[roots]]\nuse = "{use}"\nkind = "simulated"\nsha256 = "{sha256}"\n' for use, sha256 in uses.items()
        )
        return f"""\
# Simulated hardware: nothing is protected. Refused in production.
version = 1
name = "simulated"
freshness = ["nonce", "own-liteserver", "unproven"]
beacon_seconds_max = 600
clock_skew_seconds = 60
verdict_seconds_max = 3600
bind_manifest = {"true" if bind_manifest else "false"}

{roots}
{"".join(map(self._release, images))}
[[releases]]
name = "{RELEASE}-snp"
tee = "sev-snp"
gpus = {self._gpu_count}
measurement = "{self._measure("snp").hex()}"

[tdx]
mrseams = ["{self._measure("mrseam").hex()}"]
xfams = ["e702060000000000"]
td_attributes = ["0000001000000000"]
tcb_evaluation_min = 20

[snp]
bootloader_min = 4
tee_min = 0
snp_min = 23
microcode_min = 213

[gpu]
architectures = ["{ARCHITECTURE}"]
driver_min = "{DRIVER}"
vbios_min = "{VBIOS}"
""".encode()

    def _release(self, image: str) -> str:
        rtmrs = self.domain(self.event_log(b"")).rtmrs
        return f"""
[[releases]]
name = "{image}"
tee = "tdx"
gpus = {self._gpu_count}
mrtd = "{_mrtd(image).hex()}"
rtmr0 = "{rtmrs[0].hex()}"
rtmr1 = "{rtmrs[1].hex()}"
rtmr2 = "{rtmrs[2].hex()}"
rtmr3_events = ["{MANIFEST_EVENT}"]
"""

    def _measure(self, what: str) -> bytes:
        return hashlib.sha384(f"simulated {what}".encode()).digest()

    def _gpu_evidence(self, nonce: bytes) -> bytes:
        if not self._gpu_count:
            return b""
        devices = tuple(self.gpus.device(number, nonce) for number in range(self._gpu_count))
        return GPUEvidence(v=1, devices=devices).encode()


def _mrtd(image: str) -> bytes:
    return hashlib.sha384(f"simulated mrtd of {image}".encode()).digest()


class SimulatedCollateralSource:
    """The port that fetches collateral, answered by the simulated vendor of a machine."""

    def __init__(self, platform: SimulatedPlatform, clock: Clock) -> None:
        self._platform = platform
        self._clock = clock

    async def fetch(self, family: Family) -> Collateral:
        """Collateral issued now, of the one family there is.

        Raises:
            SimulationRefusedError: another family is asked for.
        """
        if family != self._platform.family:
            raise SimulationRefusedError("the simulated vendor knows one platform family")
        return self._platform.collateral(self._clock.now())
