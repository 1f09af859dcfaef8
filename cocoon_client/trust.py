"""What a client trusts, as data: a policy pinned by its bytes, and the keys of operator and log.

Nothing of it comes from the gateway that is being judged. A trust file is TOML:

    version = 1
    network = -3                    # global_id of the TON network
    policy = "policy.toml"          # beside this file, or absolute
    policy_sha256 = "..."           # hex
    operator_key = "..."            # Ed25519, hex; who may delegate to gateways
    log_key = "..."                 # verifier key of the transparency log, as a signed note names it
    [manifests]                     # models whose weights are pinned
    "some/model" = "..."            # SHA-256 of the manifest, hex

Whether simulated evidence counts is never in a file: whoever runs the client says so each time.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from attestation.policy import POLICY_BYTES_MAX, Deployment, Policy, PolicyError, load_policy
from cocoon_client.errors import TrustError

TRUST_BYTES_MAX: Final = 64 * 1024
DEVELOPMENT: Final = "development"

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What answers are judged by.

    `network` is the `global_id` that tickets, receipts and delegations have to name. An empty `operator_key` or
    `log_key` pins nothing: what only these could show is then reported as not shown. `manifests` are pinned digests by
    model. `allow_simulated` accepts evidence that protects nothing.
    """

    policy: Policy
    network: int
    allow_simulated: bool = False
    operator_key: bytes = b""
    log_key: str = ""
    manifests: dict[str, bytes] = {}

    @property
    def deployment(self) -> Deployment:
        """Where verdicts count: production, unless the user allowed simulated evidence."""
        return Deployment(DEVELOPMENT if self.allow_simulated else None, self.network)


class _TrustFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    network: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
    policy: Annotated[str, msgspec.Meta(min_length=1)]
    policy_sha256: _Hex32
    operator_key: _Hex32 | Literal[""] = ""
    log_key: Annotated[str, msgspec.Meta(max_length=512)] = ""
    manifests: dict[str, _Hex32] = {}


def read_trust(path: Path, *, allow_simulated: bool = False) -> Trust:
    """The trust file at `path`.

    Raises:
        TrustError: it or the policy it names cannot be read, is malformed, or is not the pinned one.
    """
    try:
        fields = tomllib.loads(_read(path, TRUST_BYTES_MAX).decode())
        file = msgspec.convert(fields, _TrustFile)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrustError(f"{path} is not a trust file: {error}") from error
    return Trust(
        policy=read_policy(path.parent / file.policy, file.policy_sha256),
        network=file.network,
        allow_simulated=allow_simulated,
        operator_key=bytes.fromhex(file.operator_key),
        log_key=file.log_key,
        manifests={model: bytes.fromhex(digest) for model, digest in file.manifests.items()},
    )


def read_policy(path: Path, sha256: str | None = None) -> Policy:
    """The policy in a file, which is the one with this digest (hex) where one is given.

    Raises:
        TrustError: it cannot be read, is not a policy, or is another one.
    """
    raw = _read(path, POLICY_BYTES_MAX)
    try:
        pinned = bytes.fromhex(sha256) if sha256 else hashlib.sha256(raw).digest()
        return load_policy(raw, pinned_sha256=pinned)
    except (PolicyError, ValueError) as error:
        raise TrustError(f"{path}: {error}") from error


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > bytes_max:
        raise TrustError(f"{path} is too long")
    return raw
