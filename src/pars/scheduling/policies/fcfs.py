"""First come, first served: what an engine does by itself, and what every other is held against."""

from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S, Keys, bounded_offset_s
from pars.scheduling.policies.policy import LONG_TOKENS, Place, Policy


class FCFS(Policy):
    """
    First come, first served.

        key = arrival

    Whatever is expected of a request. Who comes behind a long request waits for it (head-of-line
    blocking).

    Bound: nobody is overtaken. Source: every engine's own order; the baseline of all that is
    claimed for another.

    Args:
        bits: Of the engine's integer: 64, or 32.

    Raises:
        ParsError: `bits` is neither.
    """

    def __init__(self, *, bits: int = 64) -> None:
        self._keys = Keys(bits)

    def __repr__(self) -> str:
        return "FCFS()"

    def place(
        self,
        demand: Demand,
        arrival_s: float,
        *,
        long_tokens: float = LONG_TOKENS,
        offset_s: float = 0.0,
        is_ordered: bool = True,
    ) -> Place:
        """The place of its arrival."""
        return Place(self._keys.at(arrival_s - EPOCH_S + bounded_offset_s(offset_s)))

    @property
    def in_words(self) -> str:
        return "first come, first served"

    @property
    def suffix(self) -> str:
        return ""
