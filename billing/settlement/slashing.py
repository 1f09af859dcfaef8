"""Workers' stakes are slashed with the evidence that gateways keep (PROTOCOL §4).

Each piece is judged here first as the contract will judge it. One message at a time goes to a stake; whatever was
submitted for it, only the chain says that it is slashed.
"""

from itertools import groupby

import structlog

from billing.postgres.alarms import Alarms
from billing.postgres.asked import Asked, AskedFor
from billing.postgres.slashing import SlashEvidence
from billing.settlement import actions
from billing.settlement.actions import Action
from billing.slashing import Charge
from cocoon.cells import read_boc
from cocoon.contracts.judge import Refusal, judge

WORTH_NANO = 10_000_000
"""A stake with less in it is left alone: the message costs half of that. Evidence stays, should more be bonded."""
TRIES_MAX = 3
"""Messages with one piece of evidence that the chain has executed and the stake has not acted on."""
REFUSED_SHOWN_S = 7 * 24 * 3600.0
"""How long an operator is told of evidence that was refused."""
log = structlog.get_logger()


class SlashPlan:
    """What is to be submitted, and alarms about it."""

    def __init__(self, evidence: SlashEvidence, asked: AskedFor, alarms: Alarms, *, global_id: int) -> None:
        self._evidence = evidence
        self._asked = asked
        self._alarms = alarms
        self._global_id = global_id

    async def wanted(self) -> list[Action]:
        """One message for each live stake against which something is pending.

        Raises:
            LedgerUnavailableError: ask again.
        """
        for one in await self._evidence.follow_stakes(WORTH_NANO):
            log.info(
                "biller_slash_evidence", id=one.id, state=one.state.value, stake=one.stake,
                worker_id=str(one.worker_id), staked_nano=one.staked_nano,
            )  # fmt: skip
        charges = await self._evidence.charges(global_id=self._global_id)
        found: list[Action] = []
        pending: dict[str, str] = {}
        for stake, against in groupby(charges, key=lambda one: one.evidence.stake):
            action = await self._first(list(against))
            if action is not None:
                found.append(action)
                pending[stake] = f"{action.purpose} is under way"
        refused = await self._evidence.refused(REFUSED_SHOWN_S)
        await self._alarms.set("slash_pending", pending)
        await self._alarms.set("slash_refused", {str(one.id): f"{one.stake}: {one.detail}" for one in refused})
        return found

    async def _first(self, against: list[Charge]) -> Action | None:
        """The message with the first piece that holds; what does not hold is closed."""
        for charge in against:
            kept = charge.evidence
            cell = read_boc(kept.boc)
            action = actions.slash(kept, cell)
            asked = await self._asked([action.purpose])
            fault = _fault(judge(kept.kind, cell, charge.accused), asked.get(action.purpose))
            if fault is None:
                await self._evidence.mark_submitted(kept.id, charge.staked_nano)
                return action
            await self._evidence.refuse(kept.id, fault)
        return None


def _fault(refusal: Refusal | None, asked: Asked | None) -> str | None:
    """Why evidence is not to be submitted, or not again."""
    if refusal is not None:
        return f"exit code {refusal.value}: {refusal.reason}"
    if asked is not None and asked.is_over and asked.times >= TRIES_MAX:
        return f"the contract has not acted on {asked.times} messages: look at its transactions"
    return None
