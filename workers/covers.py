"""What a worker's stake answers for in this process: how much of it may still be dispatched against.

A stake has to cover the most that its worker's tickets in flight can cost and what the worker has earned of late, which
may yet prove to be wrong (PROTOCOL §6). Processes share it through a store that grants each of them a part of it for a
while; a `Cover` is that part. It keeps two promises whatever gets lost between here and there: nothing is dispatched
beyond what the store has on record for this process, and nothing is uncounted between in flight and booked.

Pure: amounts are nano, times the clock's monotonic seconds, and the caller brings both.
"""

import math
import uuid
from typing import Final

import msgspec

ENDLESS_NANO: Final = 2**62
PROVEN_PER_EXPLORED = 100
"""Dispatches to workers with a stake that earn one to somebody without."""
EXPLORED_MAX = 2
"""How many of those may follow one another after a time without any."""


class CoverClaim(msgspec.Struct, frozen=True, gc=False):
    """What a process tells the store of a cover, and asks of it.

    `used_nano` is in flight or on its way to the books, `kept_nano` what may be used until the answer comes, and
    `wanted_nano` what should be granted beyond what is used.
    """

    account: bytes
    used_nano: int
    kept_nano: int
    wanted_nano: int


class Cover:
    """One stake in this process. `units` is what it is worth: requests in flight, a fraction too; 0 covers nothing."""

    __slots__ = (
        "_earned_nano", "_wanted_nano", "account", "ends_at", "granted_nano", "renews_at", "slashed", "units",
        "used_nano", "worker_id",
    )  # fmt: skip

    def __init__(self, account: bytes, worker_id: uuid.UUID) -> None:
        self.account = account
        self.worker_id = worker_id
        """Whom it answers for; nobody else has it, whatever a keyset names."""
        self.units = 0.0
        self.slashed = False
        self.granted_nano = 0
        self.used_nano = 0
        self.ends_at = -math.inf
        """From then on nothing is dispatched: the store has not answered for too long."""
        self.renews_at = -math.inf
        self._wanted_nano = 0
        self._earned_nano = 0

    def room_nano(self, now: float) -> int:
        """What a dispatch may cost at most."""
        return self.granted_nano - self.used_nano if now < self.ends_at else 0

    def covers(self, nano: int, now: float) -> bool:
        """Whether there is room for so much; where there is not, the next claim asks for it."""
        if self.granted_nano - self.used_nano >= nano and now < self.ends_at:
            return True
        self.miss(nano)
        return False

    def take(self, nano: int) -> None:
        """A ticket goes out that may cost so much. There was room for it."""
        self.used_nano += nano
        self._wanted_nano += nano

    def miss(self, nano: int) -> None:
        """There was no room for so much: the next claim asks for it."""
        self._wanted_nano = max(self._wanted_nano, nano)

    def put_back(self, nano: int, earned_nano: int) -> None:
        """What was taken is no longer in flight; of it, so much was booked as earned and stays exposed there."""
        assert 0 <= earned_nano <= nano <= self.used_nano, "nobody earns more than the ticket's most"
        self.used_nano -= nano
        self.granted_nano -= earned_nano
        self._earned_nano += earned_nano

    def bound(self, headroom_nano: int) -> None:
        """The whole stake covers so much now: never more is granted, and a change is claimed at once."""
        if headroom_nano < self.granted_nano:
            self.granted_nano = max(self.used_nano, headroom_nano)
            self.renews_at = -math.inf

    def is_due(self, now: float) -> bool:
        """Whether the store should hear of it: it was used or missed, or its time passes."""
        return self._wanted_nano > 0 or now >= self.renews_at

    def claim(self, now: float) -> CoverClaim:
        """What to tell the store now. `answered` follows when it has answered, and nothing when that got lost."""
        if now >= self.ends_at:
            # Others may have been given the rest meanwhile.
            self.granted_nano = self.used_nano
        self._earned_nano = 0
        wanted, self._wanted_nano = self._wanted_nano, 0
        return CoverClaim(self.account, self.used_nano, self.granted_nano, wanted)

    def answered(self, claim: CoverClaim, granted_nano: int, *, renews_at: float, ends_at: float) -> None:
        """The store has granted so much by a claim. What was booked since then may be in its sum or not."""
        self.granted_nano = max(self.used_nano, granted_nano - self._earned_nano)
        # Once more soon after somebody wanted something: what was too much comes back.
        self.renews_at = -math.inf if claim.wanted_nano else renews_at
        self.ends_at = ends_at


def endless_cover(target_id: uuid.UUID) -> Cover:
    """For what the operator vouches for itself: an upstream needs no stake, and weighs what it can do."""
    cover = Cover(b"", target_id)
    cover.units = cover.ends_at = cover.renews_at = math.inf
    cover.granted_nano = ENDLESS_NANO
    return cover


class Exploration:
    """How often somebody unproven is tried: once for `PROVEN_PER_EXPLORED` others, counted and not drawn."""

    def __init__(self) -> None:
        self._earned = 0

    @property
    def due(self) -> bool:
        """Whether the next dispatch may go to somebody unproven."""
        return self._earned >= PROVEN_PER_EXPLORED

    def note(self, *, proven: bool) -> None:
        """A dispatch was made."""
        earned = self._earned + (1 if proven else -PROVEN_PER_EXPLORED)
        self._earned = min(earned, PROVEN_PER_EXPLORED * EXPLORED_MAX)
