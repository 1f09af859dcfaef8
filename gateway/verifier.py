"""Builds the attestor that the settings describe."""

from typing import Final

import httpx
import structlog

from attestation.policy import Deployment, PolicyError, load_policy
from attestation.simulation.tee import SimulatedCollateralSource, SimulatedTEE
from attestation.tdx.collateral import CollateralCache, CollateralSource
from attestation.tdx.pccs import PCCSCollateralSource
from cocoon.clock import Clock
from gateway.attestor import Attestor, read_rims
from gateway.beacons import Beacons
from gateway.collateral import SharedSource, Store
from gateway.settings import Settings, SettingsError

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
log = structlog.get_logger()


def new_attestor(
    settings: Settings, clock: Clock, client: httpx.AsyncClient, store: Store, beacons: Beacons
) -> Attestor:
    """The verifier of this deployment. `client` fetches collateral, `store` keeps it, `beacons` finds blocks.

    Raises:
        SettingsError: the policy is not the pinned one, cannot be used here, or its vendors cannot be asked.
    """
    chosen = settings.attestation
    deployment = Deployment(settings.env, settings.global_id)
    source: CollateralSource = PCCSCollateralSource(client, chosen.pccs_url or INTEL_PCS)

    def kept(source: CollateralSource) -> CollateralCache:
        return CollateralCache(SharedSource(source, store), clock)

    if chosen.policy is None:
        return Attestor(None, deployment, clock, kept(source), beacons)
    try:
        policy = load_policy(chosen.policy, pinned_sha256=chosen.policy_sha256)
    except PolicyError as error:
        raise SettingsError(f"COCOON_POLICY_FILE cannot be used: {error}") from error
    if not policy.simulated:
        return Attestor(policy, deployment, clock, kept(source), beacons, rims=read_rims(chosen.rims))
    if deployment.production:
        raise SettingsError("COCOON_POLICY_FILE trusts simulated roots, which production refuses")
    if not chosen.simulated_seed:
        raise SettingsError("COCOON_SIMULATED_SEED is needed for a policy that trusts simulated roots")
    log.warning("policy_simulated", policy=policy.name, protection="none: attested workers prove nothing here")
    vendors = SimulatedTEE(chosen.simulated_seed, machine="vendors", deployment=deployment)
    simulated = SimulatedCollateralSource(vendors.platform, clock)
    cache = kept(source) if chosen.pccs_url else CollateralCache(simulated, clock)
    crls = (vendors.chip.crl(clock.now()),)
    return Attestor(policy, deployment, clock, cache, beacons, rims=vendors.gpus.rims(), crls=crls)
