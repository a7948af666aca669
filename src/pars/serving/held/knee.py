"""
From how many requests at once an engine gets no more done: the knee of its throughput.

For answers that come whole nothing tells when they began. But an engine that answers S requests at
once gets as much done with 2 S at it as with S, and with S / 2 it gets less done.
"""

import math
from dataclasses import dataclass

GROWTH = 1.5  # of the numbers at once that are told apart
ENOUGH_S, ENOUGH_ANSWERS = 10.0, 10  # at a number at once, before its throughput counts
AS_MUCH = 0.9  # of the highest throughput
BEYOND = 1.9  # times the knee that must have been seen, or it is only where traffic ended
MEMORY_S = 300.0  # of busy time at a number, after which half is forgotten


@dataclass(slots=True)
class _Level:
    seconds: float = 0.0
    num_bytes: float = 0.0
    num_answers: float = 0.0

    def forget_half(self) -> None:
        self.seconds, self.num_bytes, self.num_answers = (
            self.seconds / 2,
            self.num_bytes / 2,
            self.num_answers / 2,
        )


class Knee:
    """Counts what is answered, by how many requests are at the engine. On one thread."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._num = 0
        self._since_s = math.nan
        self._request_seconds = 0.0  # of all requests at the engine, so far

    def change(self, num: int, now_s: float) -> float:
        """From now on so many requests are at the engine; what `answer` is to know of its start."""
        if self._num:
            seconds = now_s - self._since_s
            self._request_seconds += self._num * seconds
            level = self._level(self._num)
            level.seconds += seconds
            if level.seconds > MEMORY_S:
                level.forget_half()
        self._num, self._since_s = num, now_s
        return self._request_seconds

    def answer(self, num_bytes: int, sent_s: float, sent_at: float, now_s: float) -> None:
        """
        An answer of that size ended; it counts for the mean number at the engine meanwhile.

        Args:
            sent_s, sent_at: When its request was sent, and what `change` told then.
        """
        if now_s <= sent_s:
            return
        request_seconds = self._request_seconds + self._num * (now_s - self._since_s)
        level = self._level((request_seconds - sent_at) / (now_s - sent_s))
        level.num_bytes += num_bytes
        level.num_answers += 1

    @property
    def num(self) -> int | None:
        """At how many requests at once the throughput stops rising; None: not seen."""
        rates = {
            at: level.num_bytes / level.seconds
            for at, level in sorted(self._levels.items())
            if level.seconds >= ENOUGH_S and level.num_answers >= ENOUGH_ANSWERS
        }
        if not rates:
            return None
        most = max(rates.values())
        found = next(at for at, rate in rates.items() if rate >= AS_MUCH * most)
        knee, last = GROWTH**found, GROWTH ** max(rates)
        return math.ceil(knee) if last >= BEYOND * knee else None

    def _level(self, num: float) -> _Level:
        return self._levels.setdefault(round(math.log(max(num, 1.0), GROWTH)), _Level())
