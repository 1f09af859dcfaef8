"""Evidence of a TEE that does not exist, for development. It is judged as real evidence is; there is no hardware."""

import structlog

from attestation.policy import Deployment
from attestation.simulation.tee import SimulatedTEE
from workers.agent.tees.ports import BeaconSource

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class SimulatedSource:
    """One machine of a simulated fleet. `seed` (32 bytes) makes its vendors, `machine` names it.

    Raises:
        SimulationRefusedError: in production, or on the main network.
    """

    tee_type = "tdx-simulated"

    def __init__(self, seed: bytes, *, machine: str, gpus: int, deployment: Deployment, beacons: BeaconSource) -> None:
        self._tee = SimulatedTEE(seed, machine=machine, deployment=deployment, gpus=gpus)
        self._beacons = beacons
        _log.warning("tee_simulated", machine=machine, gpus=gpus, protection="none: no hardware keeps anything secret")

    async def evidence(self, keyset: bytes, nonce: bytes | None) -> bytes:
        """Evidence made in a millisecond, in memory."""
        return self._tee.evidence(keyset, self._beacons.current(), nonce).encode()
