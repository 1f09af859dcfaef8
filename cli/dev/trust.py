"""The trust file of the development network: its own simulated policy, operator and log."""

import hashlib
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.checkpoints import NoteSigner
from gateway.settings import LogSettings


def trust_text(
    policy_name: str, policy: bytes, operator: Ed25519PrivateKey, log: LogSettings, network: int,
    manifests: Mapping[str, bytes],
) -> bytes:  # fmt: skip
    """The file's bytes; `manifests` are digests by model. Whoever uses it still has to allow simulated evidence."""
    log_key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(log.seed.reveal()))
    pins = "\n".join(f'"{model}" = "{digest.hex()}"' for model, digest in manifests.items())
    return f"""\
# The development network of this folder. Its workers are SIMULATED: nothing is protected.
version = 1
network = {network}
policy = "{policy_name}"
policy_sha256 = "{hashlib.sha256(policy).hexdigest()}"
operator_key = "{operator.public_key().public_bytes_raw().hex()}"
log_key = "{NoteSigner(log.origin, log_key).verifier.text}"

[manifests]
{pins}
""".encode()
