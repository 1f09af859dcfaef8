"""How much of request bodies a process takes in: each one, and all of them together."""

from gateway.errors import OverloadedError

BODY_S_MAX = 60.0
"""How long an upload may take. It holds one of the process' exchanges meanwhile."""


class BodyRoom:
    """Bytes of bodies held at once, uploads under way included; each is given back when its exchange is over."""

    def __init__(self, *, each_max: int, total_max: int) -> None:
        self.each_max = each_max
        self._left = total_max

    @property
    def left(self) -> int:
        """Bytes that can still be taken."""
        return self._left

    def take(self, count: int) -> None:
        """Hold `count` bytes more.

        Raises:
            OverloadedError: there is no room for them.
        """
        if count > self._left:
            raise OverloadedError
        self._left -= count

    def give_back(self, count: int) -> None:
        """Bytes that are held no more."""
        self._left += count
