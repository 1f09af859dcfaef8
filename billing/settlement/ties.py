"""The report of a reconciliation: pairs of numbers that must be equal, each with its name. Pure."""

import msgspec


class Tie(msgspec.Struct, frozen=True, kw_only=True):
    """Two sources of one number, in nano (or counts, where `what` says so).

    `explained_nano` is the part of the difference (left less right) that `explanation` names; what is left of it is a
    difference that nobody has explained.
    """

    section: str
    subject: str
    what: str
    left: str
    left_nano: int
    right: str
    right_nano: int
    explained_nano: int = 0
    explanation: str = ""

    @property
    def difference_nano(self) -> int:
        """What nobody has explained."""
        return self.left_nano - self.right_nano - self.explained_nano

    @property
    def holds(self) -> bool:
        """Whether both say the same, but for what is explained."""
        return self.difference_nano == 0


class EpochLine(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch: what it added, what it came to in all, and how far it is: fixed, posted or active."""

    epoch: int
    added_nano: int
    total_nano: int
    state: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was compared, at one masterchain block (`seqno`, its time `utime` in Unix seconds)."""

    seqno: int
    utime: int
    ties: tuple[Tie, ...]
    epochs: tuple[EpochLine, ...]

    @property
    def differences(self) -> tuple[Tie, ...]:
        """What does not tie."""
        return tuple(tie for tie in self.ties if not tie.holds)

    @property
    def explained(self) -> tuple[Tie, ...]:
        """What differs and is explained."""
        return tuple(tie for tie in self.ties if tie.holds and tie.explained_nano)


class Ties:
    """Collects ties."""

    def __init__(self) -> None:
        self.found: list[Tie] = []

    def equal(
        self, section: str, subject: str, what: str, left: tuple[str, int], right: tuple[str, int],
        explained: tuple[int, str] = (0, ""),
    ) -> None:  # fmt: skip
        """Two sources of one number, and what explains a part of their difference."""
        self.found.append(
            Tie(
                section=section, subject=subject, what=what, left=left[0], left_nano=left[1], right=right[0],
                right_nano=right[1], explained_nano=explained[0], explanation=explained[1] if explained[0] else "",
            )
        )  # fmt: skip

    def at_least(self, section: str, subject: str, what: str, has: tuple[str, int], needs: tuple[str, int]) -> None:
        """Something holds what it owes; more than that is rent and gas."""
        over = max(0, has[1] - needs[1])
        self.equal(section, subject, what, has, needs, (over, "rent reserve and gas"))

    def broken(self, section: str, subject: str, what: str, expected: int, actual: int) -> None:
        """Something that is wrong, whatever its numbers are."""
        if expected == actual:
            expected = actual + 1
        self.equal(section, subject, what, ("expected", expected), ("found", actual))
