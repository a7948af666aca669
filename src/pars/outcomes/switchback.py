"""
What a policy was worth where policies take turns: windows of time, told apart by blocks of them.

    effects = report_of([Window(0, "fcfs", at_s, sums), Window(0, "default", later_s, sums), ...])

Requests of one window depend on each other (they share a queue), windows hardly do. So a block is
the unit: an arm's effect is the mean over blocks of its difference to the first arm, with Student's
interval (Bojinov, Simchi-Levi, Zhao 2023, Management Science 69:3759, on switchback designs).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

NTPOT, WAIT, E2E = "time per output token", "wait", "end to end"
GUARD = 0.25  # of a window, left out at its beginning
FEWEST_BLOCKS = 4
# Student's t for a two-sided 95% interval, by degrees of freedom; then the normal one.
STUDENT = (
    *(math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16),
    *(2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09),
)
NORMAL = 1.96

Sums = dict[str, tuple[float, float]]  # by measure and group: the sum, and how many


@dataclass(frozen=True, slots=True)
class Window:
    """
    One turn of one arm.

    Attributes:
        sums: Of what ended in it, after its guard: for each measure, and each group of one, the
            sum in seconds and the number of requests.
    """

    block: int
    arm: str
    began_s: float
    sums: Sums = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effect:
    """
    What an arm is worth, beside the first.

    Attributes:
        ratio: By how much its mean is smaller: 0.3 is by 30%.
        low, high: Of its 95% interval; nan: too few blocks.
    """

    measure: str
    arm: str
    num_blocks: int
    num_requests: int
    mean_s: float
    base_s: float
    ratio: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether it is surely more or less than nothing."""
        return self.num_blocks >= FEWEST_BLOCKS and (self.low > 0 or self.high < 0)


def report_of(windows: Sequence[Window]) -> list[Effect]:
    """Each measure's effect of each arm beside the first, over all requests and by group."""
    if not windows:
        return []
    base = _first_arm(windows)
    arms = [arm for arm in dict.fromkeys(it.arm for it in windows) if arm != base]
    measures = dict.fromkeys(name for window in windows for name in window.sums)
    effects = (effect_of(windows, measure, base, arm) for measure in measures for arm in arms)
    return [it for it in effects if it is not None]


def _first_arm(windows: Sequence[Window]) -> str:
    """fcfs if it takes part, else the arm of the first window."""
    arms = [it.arm for it in windows]
    return "fcfs" if "fcfs" in arms else arms[0]


def effect_of(windows: Iterable[Window], measure: str, base: str, arm: str) -> Effect | None:
    """One arm's effect beside the base, over the blocks in which both had requests; None: none."""
    blocks: dict[int, dict[str, tuple[float, float]]] = {}
    for window in windows:
        total, count = window.sums.get(measure, (0.0, 0.0))
        if count > 0:
            blocks.setdefault(window.block, {})[window.arm] = (total, count)
    pairs = [(it[base], it[arm]) for it in blocks.values() if base in it and arm in it]
    if not pairs:
        return None
    base_s = fmean(total / count for (total, count), _ in pairs)
    mean_s = fmean(total / count for _, (total, count) in pairs)
    if base_s <= 0:
        return None
    differences = [(b[0] / b[1] - a[0] / a[1]) / base_s for b, a in pairs]
    ratio, half = fmean(differences), math.nan
    if len(pairs) > 1:
        degrees = len(pairs) - 1
        student = STUDENT[degrees] if degrees < len(STUDENT) else NORMAL
        half = student * stdev(differences) / math.sqrt(len(pairs))
    num_requests = round(sum(b[1] + a[1] for b, a in pairs))
    told = (ratio, ratio - half, ratio + half)
    return Effect(measure, arm, len(pairs), num_requests, mean_s, base_s, *told)
