"""
A place in a queue as the one integer that an engine compares, smaller first.

Seconds since 1970 in ticks: whole numbers, so that no rounding can break a bound. A proxy's own
time stamp in microseconds is a place among ours: a request that pars never saw stands where it
came. What an engine's dialect makes of the integer: `engines`, `stamping`.
"""

import math
from dataclasses import dataclass

from pars.errors import ParsError

EPOCH_S = 0.0  # 1970-01-01T00:00:00Z
NARROW_EPOCH_S = (
    1_767_225_600.0  # 2026-01-01T00:00:00Z, of 32 bits, which hold no more than 13 years
)
MAX_OFFSET_S = 10_000_000.0  # 115 days: longer than any queue, and far from any overflow


@dataclass(frozen=True, slots=True)
class Keys:
    """
    The width of an engine's integer.

    Attributes:
        bits: 64 counts microseconds since 1970 (exact in a double, as JSON's numbers are, until
            2255); 32 counts tenths of a second since 2026, from -2**31 (until 2039; then all are
            alike).
    """

    bits: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ParsError(f"bits must be 32 or 64, not {self.bits}")

    @property
    def ticks_per_s(self) -> int:
        return 1_000_000 if self.bits == 64 else 10

    @property
    def first_s(self) -> float:
        """The earliest place, in seconds since EPOCH_S."""
        return EPOCH_S if self.bits == 64 else NARROW_EPOCH_S - EPOCH_S

    def at(self, since_epoch_s: float, more_ticks: int = 0) -> int:
        """The key of a place in seconds since EPOCH_S, and so many ticks behind it."""
        ticks = math.floor((since_epoch_s - self.first_s) * self.ticks_per_s) + more_ticks
        key = ticks if self.bits == 64 else ticks - (1 << 31)
        limit = (1 << (self.bits - 1)) - 1  # -limit too, so that a negated key is in range
        return min(max(key, -limit), limit)

    def seconds(self, key: int) -> float:
        """The place of a key, in seconds since EPOCH_S."""
        return (key if self.bits == 64 else key + (1 << 31)) / self.ticks_per_s


def bounded_offset_s(offset_s: float) -> float:
    """An offset that somebody wishes for, within what keys can hold."""
    return min(max(offset_s, -MAX_OFFSET_S), MAX_OFFSET_S)
