"""
Shortest first, with a bound in seconds on being overtaken: linear aging as a static key.

    key = ticks(arrival) + ticks(share of the cost),   0 <= share < max_overtake_s,   smaller first

The key never changes while the request waits, yet it is exact linear aging: of two that wait,
`c_i - (now - t_i) < c_j - (now - t_j)` and `c_i + t_i < c_j + t_j` are the same comparison. And it
bounds waiting: what arrives `max_overtake_s` or more after a request has no smaller key, however
short it is. docs/serving.md has the proof, the clocks and the choice of the constants.
"""

import math

from pars.errors import ParsError
from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S, MAX_OFFSET_S, Keys, bounded_offset_s
from pars.scheduling.policies.policy import LONG_TOKENS, Place, Policy

DEFAULT_MAX_OVERTAKE_S = 30.0
MAX_RANGE_S = 1e9

# Answers expected to be among the longest tenth share the last twentieth of the range, so that the
# rest of it separates the short from the middling. (docs/serving.md: measured against other curves)
LONG_SHARE = 0.05


class ShortestFirst(Policy):
    """
    The shortest expected first; overtaken only by what comes within `max_overtake_s` after it.

        key = arrival + max_overtake_s * share(cost),   share from 0 to 1

    Without a bound, `max_overtake_s` infinite, the key is the cost alone.

    Bound: what is admitted before a request came at most `max_overtake_s` after it (docs/serving.md
    has the proof). Source: shortest first is best for the mean (Smith 1956,
    doi:10.1002/nav.3800030106); the aging does what PARS's starvation guard is for
    (arXiv:2510.03243), by a key that never changes.

    Args:
        max_overtake_s: T. A request can be overtaken only by requests that arrive within T seconds
            after it. 0 is first come, first served; infinity is shortest first whatever the age.
        bits: Of the engine's integer: 64, or 32.

    Raises:
        ParsError: `max_overtake_s` or `bits` is out of range.
    """

    def __init__(self, max_overtake_s: float = math.inf, *, bits: int = 64) -> None:
        if not (0 <= max_overtake_s <= MAX_RANGE_S or max_overtake_s == math.inf):
            raise ParsError(
                f"max_overtake_s must be from 0 to {MAX_RANGE_S:.0f}, or inf, not {max_overtake_s}"
            )
        self.max_overtake_s = max_overtake_s
        self._keys = Keys(bits)

    def __repr__(self) -> str:
        return f"ShortestFirst(max_overtake_s={self.max_overtake_s:g})"

    def place(
        self,
        demand: Demand,
        arrival_s: float,
        *,
        long_tokens: float = LONG_TOKENS,
        offset_s: float = 0.0,
        is_ordered: bool = True,
    ) -> Place:
        """
        The place of its arrival and its cost; the cost alone without a bound.

        With `max_overtake_s` infinite an offset is in thousands of tokens, not in seconds.
        """
        offset_s = bounded_offset_s(offset_s)
        ticks_per_s = self._keys.ticks_per_s
        if math.isinf(self.max_overtake_s):
            added = int(min(demand.cost, MAX_OFFSET_S) * ticks_per_s)
            return Place(self._keys.at(self._keys.first_s + offset_s, added), work=demand.work)
        # Whole ticks on both sides, so that no rounding can break the bound.
        range_ticks = math.floor(self.max_overtake_s * ticks_per_s)
        share = cost_share(demand.cost, long_tokens)
        added = min(int(share * range_ticks), max(range_ticks - 1, 0))
        return Place(self._keys.at(arrival_s - EPOCH_S + offset_s, added), work=demand.work)

    @property
    def in_words(self) -> str:
        if self.max_overtake_s == 0:
            return "first come, first served"
        if math.isinf(self.max_overtake_s):
            return "shortest first"
        return f"overtaken only within {self.max_overtake_s:g} s"

    @property
    def suffix(self) -> str:
        if math.isinf(self.max_overtake_s):
            return ""
        return "@" + f"{self.max_overtake_s:.6f}".rstrip("0").rstrip(".")


def cost_share(cost: float, long_tokens: float) -> float:
    """
    `cost` as a share of the overtaking range: from 0 towards 1, strictly rising.

    Linear up to `long_tokens`, which is 0.95; then 0.95 + 0.05 * (1 - long_tokens / cost).
    """
    if cost <= long_tokens:
        return (1 - LONG_SHARE) * cost / long_tokens
    return 1 - LONG_SHARE * long_tokens / cost
