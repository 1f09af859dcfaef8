"""The steps about the chain: the block that the evidence names, and the stake that answers for the receipt.

What a chain of the verifier's own was found to hold is looked up before (`OwnChain`), and judged here, offline.
"""

import asyncio
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import msgspec

from attestation.verdict import Verdict
from cocoon.contracts.stake import StakeConfig
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError
from cocoon.money import NUMERATOR_PER_NANO, decimal_units
from cocoon.receipt import NO_STAKE
from cocoon.stakes import delegated_stake, named_stake
from cocoon.statement import Beacon, Statement
from cocoon_client.trust import Trust
from cocoon_client.verification.evidence import Shown, keyset_bytes, shown_evidence
from cocoon_client.verification.log import Anchored
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.receipts import Facts
from cocoon_client.verification.steps import Step, failed, held, not_shown


class StakeOnChain(msgspec.Struct, frozen=True):
    """A stake contract, proven as of a masterchain block. `bond_nano` is without what is on its way out."""

    state: Literal["absent", "live", "slashed"]
    block_seqno: int
    bond_nano: int = 0
    unbonding_nano: int = 0


class OnChain(msgspec.Struct, frozen=True):
    """What a chain of the verifier's own has of what a proof names. None: it was not asked, or could not say.

    `beacon` is its block where the statement names one.
    """

    anchored: Anchored | None = None
    beacon: Beacon | None = None
    stake: StakeOnChain | None = None


class OwnChain(Protocol):
    """A chain that the verifier looks at itself. What it does not say now is None; nothing is raised for that.

    A port: what liteservers say is read in `cli.own_chain`, as this package imports nothing that reads a chain. What
    asynchronous clients are given is asked on their event loop; synchronous ones run one for each question.
    """

    async def look(self, proof: Proof) -> OnChain:
        """All that it has of what a proof names."""
        ...

    async def beacon(self, named: Beacon) -> Beacon | None:
        """The block that it has where a statement names one."""
        ...


async def own_blocks(chain: OwnChain | None, named: Iterable[Beacon]) -> Mapping[Beacon, Beacon]:
    """What the chain has where statements name blocks, as far as it says."""
    if chain is None:
        return {}
    asked = tuple(named)
    found = await asyncio.gather(*map(chain.beacon, asked))
    return {one: own for one, own in zip(asked, found, strict=True) if own is not None}


class Named(msgspec.Struct, frozen=True):
    """What a proof names on the chain."""

    beacon: Beacon | None = None
    stake: bytes = NO_STAKE


def named_in(proof: Proof) -> Named:
    """What to look up for a proof. What is malformed names nothing: other steps say so."""
    if proof.bundle is None:
        return Named()
    try:
        shown = shown_evidence(proof.bundle, proof.opening)
        keyset = keyset_bytes(proof.bundle, shown)
        return Named(
            None if shown is None else Statement.decode(shown.evidence.statement).beacon,
            NO_STAKE if keyset is None else named_stake(Keyset.decode(keyset)),
        )
    except MalformedError:
        return Named()


def beacon(shown: Shown | None, verdict: Verdict | None, on_chain: OnChain) -> Step:
    """The block that the evidence names is one of the verifier's own chain: the evidence is younger than that block."""
    name = "beacon"
    if shown is None or verdict is None or not verdict.accepted:
        return not_shown(name, "there is no accepted evidence that could name a block", required=False)
    named, own = Statement.decode(shown.evidence.statement).beacon, on_chain.beacon
    if named.seqno == 0:
        return not_shown(name, "the evidence names no block", required=False)
    if own is None:
        sentence = f"the evidence names block {named.seqno}, and no chain of your own has said whether there is one"
        return not_shown(name, sentence, required=False)
    if own != named:
        return failed(name, f"block {named.seqno} that the evidence names is not in your own chain [beacon_foreign]")
    made = dt.datetime.fromtimestamp(named.gen_utime, dt.UTC)
    sentence = f"the evidence was made after block {named.seqno} of {made:%Y-%m-%d %H:%M:%S} UTC"
    return held(name, f"{sentence}, which your own liteserver has [own-liteserver]")


def stake(facts: Facts, trust: Trust, on_chain: OnChain) -> Step:
    """The stake that head and keyset name has delegated the receipt key, and is live where the chain was asked."""
    name = "stake"
    if facts.keyset is None:
        return not_shown(name, "no keyset is shown", required=False)
    try:
        account = named_stake(facts.keyset)
        if facts.head.stake != account:
            return failed(name, "the receipt names another stake than the keyset")
        if account == NO_STAKE:
            return not_shown(name, "no stake answers for this worker", required=False)
        if facts.bundle.stake is None:
            return not_shown(name, "the keyset names a stake, whose configuration is not shown", required=False)
        config = answering_stake(facts.keyset, facts.bundle.stake, trust)
    except MalformedError as error:
        return failed(name, f"the stake does not answer for this keyset: {error}")
    said = f"staked key {config.staked_key.hex()[:16]} has delegated the receipt key"
    seen = on_chain.stake
    if seen is None:
        return held(name, f"{said}; what is bonded was not looked up")
    where = f"as of block {seen.block_seqno} of your own chain"
    if seen.state != "live":
        what = "was slashed" if seen.state == "slashed" else "is not there"
        return failed(name, f"{said}, and {where} the stake {what}")
    bond, leaving = (decimal_units(nano * NUMERATOR_PER_NANO) for nano in (seen.bond_nano, seen.unbonding_nano))
    return held(name, f"{said}; {where} {bond} TON are bonded, and {leaving} TON on their way out")


def answering_stake(keyset: Keyset, shown: bytes, trust: Trust) -> StakeConfig:
    """The stake of this network that a keyset may speak for, and that answers for tickets of the pinned operator.

    Raises:
        MalformedError: it is another one's.
    """
    config = delegated_stake(keyset, shown, global_id=trust.network)
    if trust.operator_key and config.operator_key != trust.operator_key:
        raise MalformedError("it answers for tickets of another operator key than the pinned one")
    return config
