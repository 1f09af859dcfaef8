"""An escrow's configuration and a code that stands for the contract's, where a test needs some."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Builder
from cocoon.contracts.escrow import EscrowConfig
from cocoon.contracts.records import NO_HASH

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
OPERATOR_KEY = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)
CODE = Builder().uint(1, 8).end()


def escrow_config(**changes: object) -> EscrowConfig:
    """A usable configuration, with what a test wants to be otherwise."""
    key = KEY.public_key().public_bytes_raw()
    given = dict[str, object](
        client=Address(0, b"\x01" * 32), operator=Address(0, b"\x02" * 32), payout=Address(0, b"\x03" * 32),
        voucher_key=key, operator_key=OPERATOR_KEY.public_key().public_bytes_raw(),
        challenge_s=86_400, epoch=1, allow_max_nano=100, allow_rate_nano=2,
        salt=NO_HASH,
    )  # fmt: skip
    return EscrowConfig(**{**given, **changes})  # pyright: ignore[reportArgumentType]
