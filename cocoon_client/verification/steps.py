"""What verification says: steps as values, and the report that they make."""

from typing import Literal

import msgspec

Outcome = Literal["held", "failed", "not shown"]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step. A report holds only if every `required` step held and none failed; `name` never changes."""

    name: str
    outcome: Outcome
    sentence: str
    required: bool = True


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that was found out about one receipt. `simulated` says that no hardware stands behind it."""

    receipt_id: str
    simulated: bool
    steps: tuple[Step, ...]

    @property
    def holds(self) -> bool:
        """Whether the receipt proves what it has to."""
        return all(step.outcome == "held" or (step.outcome == "not shown" and not step.required) for step in self.steps)

    def step(self, name: str) -> Step:
        """The step of this name.

        Raises:
            KeyError: there is none.
        """
        found = {step.name: step for step in self.steps}
        return found[name]

    def in_words(self) -> str:
        """A paragraph for a person: one line for each step, and what they come to."""
        width = max((len(step.name) for step in self.steps), default=0)
        lines = [f"Receipt {self.receipt_id}"]
        for step in self.steps:
            open_point = " (nothing that is required)" if step.outcome == "not shown" and not step.required else ""
            lines.append(f"  {step.outcome:<9}  {step.name:<{width}}  {step.sentence}{open_point}")
        if self.simulated:
            lines.append("SIMULATED: the worker's TEE is a simulation; no hardware protected this request.")
        lines.append(
            "VERIFIED: every required step holds." if self.holds else "NOT VERIFIED: a required step does not hold."
        )
        return "\n".join(lines)

    def encode(self) -> bytes:
        """The report as JSON."""
        steps = [msgspec.to_builtins(step) for step in self.steps]
        members = {"receipt_id": self.receipt_id, "holds": self.holds, "simulated": self.simulated, "steps": steps}
        return msgspec.json.encode(members)


def held(name: str, sentence: str, *, required: bool = True) -> Step:
    """A step that holds."""
    return Step(name, "held", sentence, required)


def failed(name: str, sentence: str) -> Step:
    """A step that does not hold; that counts whether or not it was required."""
    return Step(name, "failed", sentence)


def not_shown(name: str, sentence: str, *, required: bool = True) -> Step:
    """A step that cannot be taken for lack of something."""
    return Step(name, "not shown", sentence, required)
