"""Which block of the chain a statement names: the newest that a gateway has told of.

The agent sees no chain and believes nobody about one: whoever verifies looks the named block up in a chain of its own.
A block that does not exist makes evidence useless, an old one makes it look older than it is; nobody can name one that
is still to come, because nobody knows its hash. So it does not matter who tells (docs/attestation.md).
"""

from typing import Final

import structlog

from cocoon.clock import Clock
from cocoon.statement import Beacon

AGE_S_MAX: Final = 120
"""A block so old is named no more: verifiers refuse old ones, and a chain that is away must not stop an enrolment."""
SKEW_S_MAX: Final = 60
"""How far a block's time may be ahead of our clock."""
_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ToldBeacons:
    """The newest plausible block. Without one, or when it is too old, no block is named: height and hashes are zero.

    Such a statement has the agent's own time, and its freshness is the verifier's nonce, or unproven.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._newest: Beacon | None = None
        self._named = False

    def note(self, told: Beacon | None) -> None:
        """Take a block for the newest, unless its time cannot be or is before that of a known one."""
        if told is None or told.seqno == 0 or not self._is_plausible(told):
            return
        if self._newest is None or told.gen_utime >= self._newest.gen_utime:
            self._newest = told

    def current(self) -> Beacon:
        """The newest block, or no block and the time of now."""
        newest = self._newest
        if newest is not None and not self._is_plausible(newest):
            newest = None
        if self._named != (newest is not None):
            self._named = newest is not None
            _log.info("statements_name_a_block" if self._named else "statements_name_no_block")
        if newest is not None:
            return newest
        return Beacon(seqno=0, root_hash=bytes(32), file_hash=bytes(32), gen_utime=int(self._clock.now().timestamp()))

    def _is_plausible(self, beacon: Beacon) -> bool:
        return -SKEW_S_MAX <= self._clock.now().timestamp() - beacon.gen_utime <= AGE_S_MAX
