"""
Pauses between tokens, without looking at each token: how many of which length, and the longest.

    pauses = Pauses()
    pauses.note(step, seconds=0.011, num_seqs=32)     # 32 requests waited that long for a token
    pauses.longest_since(step - 100)
"""

from bisect import bisect_left
from collections import Counter

from pars.prove.report.times import itl_bucket


class Pauses:
    """
    Of one run. Attribute `counts`: tokens by `itl_bucket` of the pause before them.

    A request that decodes waits for each token as long as the step takes, so its longest pause is
    the longest step since it began. Kept are only the steps that were longer than all after them.
    """

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._steps: list[int] = []  # rising
        self._seconds: list[float] = []  # falling

    def note(self, step: int, seconds: float, num_seqs: int) -> None:
        """Step number `step` gave `num_seqs` requests their next token."""
        self._keep(step, seconds)
        if num_seqs:
            self.count(seconds, num_seqs)

    def note_many(
        self, last_step: int, first_s: float, growth_s: float, num_steps: int, num_seqs: int
    ) -> None:
        """As many steps up to `last_step`, each `growth_s` longer than the one before."""
        self._keep(last_step, first_s + (num_steps - 1) * growth_s)
        start = 0
        while start < num_steps:
            bucket = itl_bucket(first_s + start * growth_s)
            low, high = start, num_steps - 1  # the last step of this bucket is in between
            if itl_bucket(first_s + high * growth_s) == bucket:
                low = high
            while low < high:
                middle = (low + high + 1) // 2
                if itl_bucket(first_s + middle * growth_s) == bucket:
                    low = middle
                else:
                    high = middle - 1
            self.counts[bucket] += (low + 1 - start) * num_seqs
            start = low + 1

    def count(self, seconds: float, num_tokens: int = 1) -> None:
        """A pause beside the steps' own, as after a preemption."""
        self.counts[itl_bucket(seconds)] += num_tokens

    def longest_since(self, step: int) -> float:
        """The longest step from number `step` on, in seconds; 0 if there was none."""
        place = bisect_left(self._steps, step)
        return self._seconds[place] if place < len(self._steps) else 0.0

    def _keep(self, step: int, seconds: float) -> None:
        while self._seconds and self._seconds[-1] <= seconds:
            self._seconds.pop()
            self._steps.pop()
        self._steps.append(step)
        self._seconds.append(seconds)
