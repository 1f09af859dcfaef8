"""Two candidates in proportion to their weights, so that dividing a weight among several candidates gains nothing."""

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate


def weighted_pair(weights: Sequence[float], rng: random.Random) -> tuple[int, int]:
    """The indices of two candidates, in random order; all weights are positive.

    Each weight is an arc of a circle, and the candidates lie under two points of it, each of them anywhere with equal
    chances: who has a share p of all weight is named 2p times on average, in one piece or in many. Drawing the second
    from those that the first left over would favour pieces. The points are at least the widest arc apart, so that a
    candidate is its own rival only where it has more than half of all weight.
    """
    ends = list(accumulate(weights))
    around = ends[-1]
    apart = min(max(weights), around / 2)
    first = rng.random() * around
    second = (first + apart + rng.random() * (around - 2 * apart)) % around
    last = len(ends) - 1
    # Rounding may carry a point to the very end.
    return min(bisect(ends, first), last), min(bisect(ends, second), last)
