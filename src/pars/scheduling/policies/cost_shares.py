"""What share of the work cheaper requests make: a running distribution of costs, by work."""

import math
from itertools import accumulate

BINS_AN_OCTAVE = 4
NUM_BINS = 30 * BINS_AN_OCTAVE
MEMORY = 4096.0  # requests after which half is forgotten
LOOK_EVERY = 32  # requests between two sums, at most


class CostShares:
    """
    A histogram over the logarithm of the cost. O(1) a request, amortised.

    Attributes:
        mean_work: Of a request.
    """

    def __init__(self) -> None:
        self._work = [0.0] * NUM_BINS
        self._below = [1.0] * (NUM_BINS + 1)  # before anything is known nobody is cheap
        self._num_seen = self.mean_work = 0.0
        self._until_look = 0

    def see(self, cost: float, work: float) -> None:
        """Count a request in."""
        self._work[int(_position(cost))] += work
        self._num_seen += 1
        self._until_look -= 1
        if self._until_look > 0:
            return
        self._until_look = min(LOOK_EVERY, int(self._num_seen))  # each time twice as many, at first
        if self._num_seen > MEMORY:
            self._work = [it / 2 for it in self._work]
            self._num_seen /= 2
        if total := sum(self._work):
            self.mean_work = total / self._num_seen
            self._below = [0.0, *(it / total for it in accumulate(self._work))]

    def forget(self, cost: float, work: float) -> None:
        """Count a request out again that was counted in: it never ran."""
        at = int(_position(cost))
        self._work[at] = max(0.0, self._work[at] - work)
        self._num_seen = max(1.0, self._num_seen - 1)
        self._until_look = 0

    def below(self, cost: float) -> float:
        """The share of the work that cheaper requests make, from 0 to 1."""
        position = _position(cost)
        low = int(position)
        return self._below[low] + (position - low) * (self._below[low + 1] - self._below[low])


def _position(cost: float) -> float:
    """In bins."""
    return min(BINS_AN_OCTAVE * math.log2(max(cost, 1.0)), NUM_BINS - 1.0)
