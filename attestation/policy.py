"""What evidence has to show, as data: a TOML text whose SHA-256 is pinned by whoever relies on it.

Nothing is implied: an absent list admits nothing, and every grace has to be written down with its length.
"""

import hashlib
import hmac
import tomllib
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from cocoon.errors import CocoonError

MAINNET_GLOBAL_ID: Final = -239
POLICY_BYTES_MAX: Final = 256 * 1024
VENDOR_ROOTS: Final = {
    "intel": frozenset({"44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"}),
    "nvidia": frozenset({
        "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",  # devices
        "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",  # reference manifests
    }),
    "amd": frozenset({
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",  # ARK-Milan
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",  # ARK-Genoa
    }),
}  # fmt: skip
"""SHA-256 of the DER of the vendors' own roots; a policy cannot call anything else by their names."""

Use = Literal["tdx", "gpu", "rim", "sev-snp"]
TEE = Literal["tdx", "sev-snp"]
Freshness = Literal["nonce", "own-liteserver", "unproven"]

_Hex8 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Hex48 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{96}\Z")]
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{2,128}\Z")]
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=366 * 86400)]
_SVN = Annotated[int, msgspec.Meta(ge=0, le=255)]
_ZERO48: Final = "00" * 48


class PolicyError(CocoonError):
    """The policy is not one, or not the pinned one."""

    code: ClassVar[str] = "policy_invalid"


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trusted root certificate, named by the SHA-256 of its DER."""

    use: Use
    kind: Literal["intel", "nvidia", "amd", "simulated"]
    sha256: _Hex32


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured image on one shape of machine. Several may be admitted side by side while fleets move over.

    `rtmr3_events` are the names of everything the image measures at run time, in order. `gpus` is how many a machine of
    this release has; all of them have to give evidence. A `draining` release still verifies, and a gateway gives its
    workers no new requests.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    tee: TEE
    gpus: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    mrtd: _Hex48 = _ZERO48
    rtmr0: _Hex48 = _ZERO48
    rtmr1: _Hex48 = _ZERO48
    rtmr2: _Hex48 = _ZERO48
    rtmr3_events: tuple[str, ...] = ()
    mrconfigid: _Hex48 = _ZERO48
    measurement: _Hex48 = _ZERO48
    draining: bool = False


class TDXPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a TDX platform has to be. `ppids` absent: any platform; empty: none.

    `workers_per_platform` bounds how many workers may be attested on one machine (PPID) at a time; absent: any number.
    """

    mrseams: tuple[_Hex48, ...]
    xfams: tuple[_Hex8, ...]
    td_attributes: tuple[_Hex8, ...]
    tcb_evaluation_min: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    ppids: tuple[_Hex, ...] | None = None
    workers_per_platform: Annotated[int, msgspec.Meta(ge=1)] | None = None
    allow_dynamic_platform: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False
    tcb_grace: tuple[
        Literal["SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
                "OutOfDateConfigurationNeeded"], ...
    ] = ()  # fmt: skip
    tcb_grace_seconds: _Seconds = 0
    collateral_grace_seconds: _Seconds = 0


class SNPPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an SEV-SNP platform has to be: the lowest security versions, and whether a CRL must be at hand."""

    bootloader_min: _SVN
    tee_min: _SVN
    snp_min: _SVN
    microcode_min: _SVN
    allow_smt: bool = False
    require_crl: bool = True
    chip_ids: tuple[_Hex, ...] | None = None


class GPUPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every GPU has to be; versions as NVIDIA writes them, `revoked` are SHA-256 of certificates."""

    architectures: tuple[str, ...]
    driver_min: Annotated[str, msgspec.Meta(pattern=r"\A\d+(?:\.\d+){0,3}\Z")]
    vbios_min: Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-F]{2}(?:\.[0-9A-F]{2}){4}\Z")]
    revoked: tuple[_Hex32, ...] = ()


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a verdict is judged by. `sha256` is of the exact text it was read from."""

    version: Literal[1]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    freshness: tuple[Freshness, ...]
    beacon_seconds_max: _Seconds
    clock_skew_seconds: Annotated[int, msgspec.Meta(ge=0, le=600)]
    verdict_seconds_max: _Seconds
    roots: tuple[Root, ...]
    releases: tuple[Release, ...]
    bind_manifest: bool = True
    tdx: TDXPolicy | None = None
    snp: SNPPolicy | None = None
    gpu: GPUPolicy | None = None
    sha256: bytes = b""

    @property
    def simulated(self) -> bool:
        """Whether it trusts roots that stand for no hardware."""
        return any(root.kind == "simulated" for root in self.roots)

    def pins(self, use: Use) -> frozenset[str]:
        """The roots that may end a chain of this use."""
        return frozenset(root.sha256 for root in self.roots if root.use == use)


class Deployment(msgspec.Struct, frozen=True):
    """Where a verdict counts. `environment` is the value of COCOON_ENV, None where it is not set."""

    environment: str | None
    global_id: int

    @property
    def production(self) -> bool:
        """Anything that is not called development, and the main network whatever it is called."""
        return self.environment != "development" or self.global_id == MAINNET_GLOBAL_ID


def load_policy(raw: bytes, *, pinned_sha256: bytes) -> Policy:
    """The policy in a TOML text with this digest.

    Raises:
        PolicyError: another digest, not a policy, or one that contradicts itself.
    """
    digest = hashlib.sha256(raw).digest()
    if len(raw) > POLICY_BYTES_MAX or not hmac.compare_digest(digest, pinned_sha256):
        raise PolicyError("the policy is not the pinned one")
    try:
        document = tomllib.loads(raw.decode())
        if "sha256" in document:
            raise PolicyError("a policy does not name its own digest")
        policy = msgspec.convert({**document, "sha256": digest}, Policy, builtin_types=(bytes,))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise PolicyError(f"not a policy: {error}") from error
    _check(policy)
    return policy


def _check(policy: Policy) -> None:
    for root in policy.roots:
        vendor = VENDOR_ROOTS.get(root.kind)
        if vendor is not None and root.sha256 not in vendor:
            raise PolicyError(f"root {root.sha256[:16]} is not one of {root.kind}")
        if vendor is None and any(root.sha256 in pins for pins in VENDOR_ROOTS.values()):
            raise PolicyError(f"root {root.sha256[:16]} belongs to a vendor and is not simulated")
    if policy.simulated and any(root.kind != "simulated" for root in policy.roots):
        raise PolicyError("a policy trusts simulated roots or real ones, never both")
    if len({release.name for release in policy.releases}) != len(policy.releases):
        raise PolicyError("two releases have one name")
    if policy.tdx is not None and bool(policy.tdx.tcb_grace) != bool(policy.tdx.tcb_grace_seconds):
        raise PolicyError("a grace names the states it is for and its length")
