"""Worker keys of wallets in Postgres: one for each wallet, for ever. Issuing one is one transaction."""

import random
import uuid
from importlib.resources import files

from billing.postgres.account import open_customer
from billing.postgres.pool import Pool, transaction
from cocoon.clock import Clock
from cocoon.ids import new_job_id
from cocoon.sql import named_statements
from cocoon.wallet_enrolment import WalletKeyAnswer
from gateway.auth import Role
from gateway.postgres.keys import KeySpec, KeyStore
from gateway.wallet_keys import Acceptance, ChallengeRefusedError, WalletBarredError, WalletLimitError

PROOFS_PER_DAY_MAX = 20
"""Secrets of one wallet's key within a day."""
FIRST_PER_HOUR_MAX = 200
"""Wallets that get their first key within an hour, over the whole network: each is rows that are kept."""
_SQL = named_statements(files("gateway.postgres").joinpath("wallets.sql").read_text(encoding="utf-8"))


class WalletKeyStore:
    """A `KeyIssuer`. Raises `LedgerUnavailableError` when the database is away; then no key was given."""

    def __init__(self, pool: Pool, clock: Clock, rng: random.Random) -> None:
        self._pool = pool
        self._clock = clock
        self._rng = rng

    async def issue(self, acceptance: Acceptance) -> WalletKeyAnswer:
        """See `KeyIssuer.issue`. What is refused here spends no challenge."""
        address = str(acceptance.wallet.address)
        keys = KeyStore(self._pool, self._rng, actor=f"wallet {address}")
        async with transaction(self._pool) as connection:
            await connection.execute(_SQL["lock_wallet"], address)
            known = await connection.fetchrow(_SQL["find_wallet_key"], address)
            spent = await connection.fetchval(
                _SQL["spend_challenge"], acceptance.challenge, address, known is None, acceptance.challenge_s
            )
            if spent is None:
                raise ChallengeRefusedError
            if known is not None and known["revoked_at"] is not None:
                raise WalletBarredError
            counts = await connection.fetchrow(_SQL["count_proofs"], address)
            assert counts is not None, "counts are one row"
            if counts["own"] > PROOFS_PER_DAY_MAX or (known is None and counts["first"] > FIRST_PER_HOUR_MAX):
                raise WalletLimitError
            if known is None:
                name = f"wallet {address}"
                customer_id = await open_customer(connection, new_job_id(self._clock, self._rng), name)
                spec = KeySpec(customer_id=customer_id, name=name, role=Role.WORKER, wallet=address)
                made = await keys.create_on(connection, spec)
            else:
                rotation = uuid.UUID(int=self._rng.getrandbits(128), version=4)
                made = await keys.rotate_on(
                    connection, known["id"], rotation_id=rotation, grace_s=acceptance.keep_s
                )  # fmt: skip
            await connection.execute(_SQL["forget_proofs"])
        return WalletKeyAnswer(key=made.secret, key_id=made.key_id, address=address, rotated=known is not None)
