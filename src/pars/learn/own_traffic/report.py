"""What `pars learn` says of a run, to people and as JSON: what it read, how both rankers did."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pars.learn.own_traffic.own_traffic import Part
from pars.ranking.intervals import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Tau-b on the newest requests: of the ranker that serves, of the candidate, and between."""

    present: Estimate
    candidate: Estimate
    difference: Estimate
    num_pairs: int

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better by more than chance."""
        return self.difference.low > 0

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "present": self.present.as_json(),
            "candidate": self.candidate.as_json(),
            "difference": self.difference.as_json(),
            "num_pairs": self.num_pairs,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnReport:
    """
    What came of it.

    Attributes:
        version: The one that serves now.
        parent: The one that served before, where a candidate was promoted; else None.
        left_out: Requests that cannot teach, by reason.
        repeated: Older requests whose prompt also stands in the newest part.
        start: What the candidate was trained from; None without a candidate.
    """

    outcomes: str
    ranker: str
    version: int
    parent: int | None
    verdict: str
    num_outcomes: int
    num_damaged: int
    left_out: dict[str, int]
    repeated: int
    trained_on: Part
    held_out: Part
    start: str | None = None
    tau_b: Comparison | None = None

    @property
    def is_promoted(self) -> bool:
        """Whether the candidate serves now."""
        return self.parent is not None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            **asdict(self),
            "is_promoted": self.is_promoted,
            "tau_b": self.tau_b and self.tau_b.as_json(),
        }

    def render(self) -> str:
        """What a person reads."""
        damaged = f", {self.num_damaged:,} damaged lines" if self.num_damaged else ""
        lines = [f"{self.num_outcomes:,} outcomes in {self.outcomes}{damaged}"]
        lines += [f"  left out: {count:,} ({reason})" for reason, count in self.left_out.items()]
        if self.repeated:
            lines.append(f"  left out: {self.repeated:,} (asked again in the newest part)")
        lines += [f"to train on: {self.trained_on}", f"to judge by: {self.held_out}"]
        if self.tau_b:
            lines += [
                f"Kendall tau-b there over {self.tau_b.num_pairs:,} pairs:",
                f"  the ranker that serves  {self.tau_b.present}",
                f"  the candidate           {self.tau_b.candidate} (trained from {self.start})",
                f"  the difference          {self.tau_b.difference}",
            ]
        return "\n".join([*lines, self.verdict])


def why_not(tau_b: Comparison, num_held_out: int, newest_share: float) -> str:
    """Why a candidate is not promoted, and how many requests would tell, if any."""
    difference = tau_b.difference
    if math.isnan(difference.low):
        return "Not promoted: nothing in the newest part can be compared."
    if difference.value <= 0:
        return "Not promoted: the candidate is no better."
    # An interval shrinks with the square root of what it is measured on.
    times = ((difference.value - difference.low) / difference.value) ** 2
    needed = math.ceil(times * num_held_out / newest_share)
    return (
        "Not promoted: the candidate may be better by chance; were the difference to stay, some "
        f"{needed:,} requests would tell."
    )
