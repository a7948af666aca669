"""
A switchback experiment on a gateway that serves: policies take turns, and their worth is told.

    experiment = Experiment(url, arms=("fcfs", "default"), window_s=600, num_blocks=12)
    experiment.run(Path("experiment.jsonl"))      # goes on where it was stopped
    report_of(read_windows(Path("experiment.jsonl")))

Each block has every arm once, in an order drawn by a seed, so that the hours of the day fall on all
arms alike. The beginning of each window is left out: what waits then was placed by the arm before.
`outcomes.switchback` makes the report.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pars.doctor.live_page import change, metrics_of
from pars.doctor.metrics_page import MetricsPage
from pars.errors import DataError, ParsError
from pars.outcomes.switchback import (
    E2E,
    FEWEST_BLOCKS,
    GUARD,
    NTPOT,
    WAIT,
    Effect,
    Sums,
    Window,
)

MEASURES = {
    NTPOT: "pars_time_per_output_token_seconds",
    WAIT: "pars_wait_seconds",
    E2E: "pars_request_seconds",
}
BY_MODEL = "pars_model_time_per_output_token_seconds"


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
    return found | _by_group(page, NTPOT, BY_MODEL, "model")


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
