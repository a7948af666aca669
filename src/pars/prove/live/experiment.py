"""
A switchback experiment on a gateway that serves: policies take turns, and their worth is told.

    experiment = Experiment(url, arms=("fcfs", "default"), window_s=600, num_blocks=12)
    experiment.run(Path("experiment.jsonl"))      # goes on where it was stopped
    report_of(read_windows(Path("experiment.jsonl")))

Each block has every arm once, in an order drawn by a seed, so that the hours of the day fall on all
arms alike. The beginning of each window is left out: what waits then was placed by the arm before.
Requests of one window depend on each other (they share a queue), windows hardly do. So a block is
the unit: an arm's effect is the mean over blocks of its difference to the first arm, with Student's
interval (Bojinov, Simchi-Levi, Zhao 2023, Management Science 69:3759, on switchback designs).
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from pars.doctor.live_page import change, metrics_of
from pars.doctor.metrics_page import MetricsPage
from pars.errors import DataError, ParsError

MEASURES = {
    "time per output token": "pars_time_per_output_token_seconds",
    "wait": "pars_wait_seconds",
    "end to end": "pars_request_seconds",
}
BY_MODEL = "pars_model_time_per_output_token_seconds"
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


@dataclass(frozen=True, slots=True)
class Experiment:
    """
    Attributes:
        arms: Policies as `pars ctl` takes them; the others are held against the first.
        admin_key: PARS_ADMIN_KEY of the gateway.
    """

    url: str
    arms: tuple[str, ...]
    window_s: float
    num_blocks: int
    admin_key: str
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise ParsError("--arms: want two different policies or more, such as fcfs,default")
        if not self.window_s > 0 or self.num_blocks < 1:
            raise ParsError("--window-s and --blocks must be more than 0")

    def schedule(self) -> list[tuple[int, str]]:
        """The block and arm of each window, in their order."""
        rng, turns = random.Random(self.seed), []
        for block in range(self.num_blocks):
            arms = list(self.arms)
            rng.shuffle(arms)
            turns += [(block, arm) for arm in arms]
        return turns

    def run(self, path: Path, told: Callable[[int, int, str], None] = lambda *_: None) -> None:
        """
        Run what is left of it; each window is written to `path` as it ends. The policy that was
        set before is set again at the end, and when it is interrupted.

        Args:
            told: Hears the window's number, of how many, and its arm.

        Raises:
            ParsError: the gateway does not answer, or the file is of another experiment.
        """
        before = change(self.url, self.admin_key, {})["policy"]
        turns = self.schedule()
        done = read_windows(path) if path.exists() else []
        if [(it.block, it.arm) for it in done] != turns[: len(done)]:
            raise ParsError(f"{path}: of another experiment (arms, blocks or seed differ)")
        try:
            for number, (block, arm) in enumerate(turns[len(done) :], len(done) + 1):
                told(number, len(turns), arm)
                window = self._window(block, arm)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(window)) + "\n")
        finally:
            change(self.url, self.admin_key, {"policy": before})

    def _window(self, block: int, arm: str) -> Window:
        change(self.url, self.admin_key, {"policy": arm})
        began_s = time.time()
        time.sleep(GUARD * self.window_s)
        first = metrics_of(self.url)
        time.sleep((1 - GUARD) * self.window_s)
        return Window(block, arm, began_s, sums_between(first, metrics_of(self.url)))


def sums_between(first: MetricsPage, last: MetricsPage) -> Sums:
    """What ended between two looks at the metrics, by measure and group."""
    page = last.since(first)
    found: Sums = {}
    for measure, metric in MEASURES.items():
        found[measure] = (page.total(f"{metric}_sum") or 0.0, page.total(f"{metric}_count") or 0.0)
    for measure, metric in MEASURES.items():
        found |= _by_group(page, measure, metric, "expected")
    return found | _by_group(page, "time per output token", BY_MODEL, "model")


def _by_group(page: MetricsPage, measure: str, metric: str, label: str) -> Sums:
    sums, counts = page.by(f"{metric}_sum", label), page.by(f"{metric}_count", label)
    return {f"{measure}, {label} {it}": (sums.get(it, 0.0), counts[it]) for it in counts}


def read_windows(path: Path) -> list[Window]:
    """
    The windows of a file of `Experiment.run`. A last line that was cut is left out.

    Raises:
        DataError: a line is none of its.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    windows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            values = json.loads(line)
            sums = values.pop("sums").items()
            values["sums"] = {str(it): (float(told[0]), float(told[1])) for it, told in sums}
            windows.append(Window(**values))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise DataError.at(path, f"line {number} is no window: {error}") from None
    return windows


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


def render(effects: Sequence[Effect]) -> str:
    """For people."""
    if not effects:
        return "nothing yet: no block has had requests in every window"
    lines = [f"{'':<44}{'shorter by':>11}{'95% interval':>20}{'blocks':>8}{'requests':>10}"]
    for it in effects:
        interval = "-" if math.isnan(it.low) else f"[{it.low:.1%}, {it.high:.1%}]"
        title = f"{it.arm}: {it.measure}"
        lines.append(
            f"{title:<44}{it.ratio:>11.1%}{interval:>20}{it.num_blocks:>8}{it.num_requests:>10,}"
        )
    main = effects[0]
    if main.num_blocks < FEWEST_BLOCKS:
        lines.append(f"not enough yet: {FEWEST_BLOCKS} blocks at least")
    elif not main.is_clear:
        lines.append("not clear yet: the interval holds 0; more blocks narrow it")
    return "\n".join(lines)
