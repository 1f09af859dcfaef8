"""A verifier's own chain: what liteservers that it named itself have of what a proof names.

`Liteservers` is for programs too: `cocoon_client.OpenAI(..., chain=Liteservers(Path("global.config.json"), network))`.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import click
import structlog

from billing.ton.beacons import own_beacon
from billing.ton.chain import AccountStatus, Chain, ChainError
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cli.anchors import anchor_of
from cocoon.addresses import Address
from cocoon.clock import SystemClock, system_random
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, StakeData, StakePhase
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE
from cocoon.statement import Beacon
from cocoon_client.verification.chain import OnChain, StakeOnChain, named_in
from cocoon_client.verification.proof import Proof

BLOCK_S_MAX = 5.0
"""A prompt waits no longer for a liteserver."""
log = structlog.get_logger()


class LookedUp:
    """`cocoon_client.verification.chain.OwnChain` on `chain`. `payout` is the contract that anchors the log, if any."""

    def __init__(self, chain: Chain, payout: Address | None = None) -> None:
        self._chain = chain
        self._payout = payout

    async def look(self, proof: Proof) -> OnChain:
        """All that the chain has of what a proof names.

        Raises:
            ChainError: a payout contract was named, and cannot be read.
            NoPayoutContractError: it is another contract, or none.
        """
        named = named_in(proof)
        return OnChain(
            anchored=None if self._payout is None else await anchor_of(self._chain, self._payout),
            beacon=None if named.beacon is None else await self.beacon(named.beacon),
            stake=None if named.stake == NO_STAKE else await self._stake(named.stake),
        )

    async def beacon(self, named: Beacon) -> Beacon | None:
        """The block that the chain has where a statement names one; None where it cannot say."""
        try:
            async with asyncio.timeout(BLOCK_S_MAX):
                return await own_beacon(self._chain, named)
        except (ChainError, TimeoutError) as error:
            log.warning("beacon_not_read", seqno=named.seqno, reason=str(error) or type(error).__name__)
            return None

    async def _stake(self, account: bytes) -> StakeOnChain | None:
        try:
            state = await self._chain.account(Address(0, account))
            if state.status is not AccountStatus.ACTIVE or state.data is None or state.code_hash != code_of(CODE).hash:
                return StakeOnChain("absent", state.block.seqno)
            data = StakeData.decode(state.data)
        except (ChainError, MalformedError) as error:
            log.warning("stake_not_read", code=error.code, reason=str(error))
            return None
        phase = "live" if data.phase is StakePhase.LIVE else "slashed"
        return StakeOnChain(phase, state.block.seqno, data.bond_nano, data.unbonding_nano)


class Liteservers:
    """The chain of a network through the liteservers that a file names; an `OwnChain` from any event loop.

    It connects for every question, and keeps nothing open; `opened` is for those who ask often. `payout` is as for
    `LookedUp`.

    Raises:
        SettingsError: the file names no liteservers.
        MalformedError: `payout` is not an address.
    """

    def __init__(self, liteservers: Path, network: int, payout: str | None = None) -> None:
        self._servers = read_liteservers(liteservers)
        self._network = network
        self._payout = None if payout is None else Address.parse_any(payout)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncGenerator[LookedUp]:
        """One that keeps its connections until left, on this event loop."""
        # In any order: one that never answers must not be the first every time.
        servers = tuple(system_random().sample(self._servers, len(self._servers)))
        async with LiteChain(servers, SystemClock(), global_id=self._network) as chain:
            yield LookedUp(chain, self._payout)

    async def look(self, proof: Proof) -> OnChain:
        """As `LookedUp.look`.

        Raises:
            ChainError, NoPayoutContractError: likewise.
        """
        async with self.opened() as chain:
            return await chain.look(proof)

    async def beacon(self, named: Beacon) -> Beacon | None:
        """As `LookedUp.beacon`."""
        async with self.opened() as chain:
            return await chain.beacon(named)


@contextlib.asynccontextmanager
async def own_chain(
    liteservers: Path | None, network: int, payout: str | None = None
) -> AsyncGenerator[LookedUp | None]:
    """As `Liteservers.opened`; None where no file is named.

    Raises:
        UsageError: a payout contract is named, and nobody to ask.
        SettingsError, MalformedError: as `Liteservers`.
    """
    if liteservers is None:
        if payout is not None:
            raise click.UsageError("--payout needs --liteservers")
        yield None
        return
    async with Liteservers(liteservers, network, payout).opened() as chain:
        yield chain
