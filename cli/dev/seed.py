"""What a new development network begins with: a customer with credit, its keys, a model and a price.

Every step is idempotent and its ids are kept in the state directory, so a restart finds what it made before.
"""

import uuid

import msgspec

from cli.dev.state import Secrets
from cocoon.clock import Clock

MODEL = "smollm2-135m-instruct"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """The ids and keys to plant."""

    customer_id: uuid.UUID
    deposit_id: uuid.UUID

    @classmethod
    def of(cls, secrets: Secrets) -> "Seed":
        """The part of the secrets that the seed is made of."""
        return cls(customer_id=secrets.customer_id, deposit_id=secrets.deposit_id)


async def seed(dsn: str, content: Seed, clock: Clock) -> None:
    """Plant."""
    raise NotImplementedError
