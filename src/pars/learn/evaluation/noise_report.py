"""What a person reads of repeated answers."""

import numpy as np

from pars.learn.evaluation.noise import SHARE_EQUAL, Noise
from pars.learn.evaluation.repeated_answers import Difference
from pars.learn.evaluation.tables import table


def render(noise: Noise) -> str:
    """What a person reads."""
    n = noise
    each = ", ".join(f"{many:,} with {count}" for count, many in n.answers_each.items())
    lines = [f"{n.num_rows:,} answers to {n.num_prompts:,} prompts of {n.data} ({each})"]
    if n.num_single:
        lines.append(f"{n.num_single:,} prompts with one answer are left out")
    if n.num_models > 1:
        lines.append(f"{n.num_models} models: only answers of one model are compared")
    if n.num_equal > SHARE_EQUAL * n.num_prompts:
        lines.append(
            f"CAUTION: {n.num_equal / n.num_prompts:.0%} of the prompts have answers of one length"
            " only: are they copies, and not repeated samples?"
        )
    if n.num_cut:
        lines.append(f"{n.num_cut:,} answers were cut short: each counts with the length it has")
    low, median, high = n.variation
    expected = "" if np.isnan(n.others_mean_expected) else f"expected {n.others_mean_expected:.3f}"
    lines += [
        "",
        *table(
            ("Kendall tau-b with one answer", "", ""),
            [
                ("another answer", str(n.two_answers), ""),
                ("mean of the others", str(n.others_mean), expected),
                ("perfect predictor: the ceiling", str(n.ceiling), ""),
            ],
        ),
        "",
        f"Standard deviation of log length: {n.within_sigma:.2f} within a prompt,"
        f" {n.between_sigma:.2f} between prompts",
        f"Standard deviation over mean of a prompt's answers: {median:.2f}"
        f" (half of the prompts: {low:.2f} to {high:.2f})",
        "",
        *table(
            ("lengths differ by", "right when asked again", "pairs from here on", "right of them"),
            [
                (
                    f"{row.least:.0%}",
                    _percent(row.right_here),
                    f"{row.share:.0%}",
                    _percent(row.right),
                )
                for row in n.differences
            ],
        ),
        "",
        *(_advice(sure, row) for sure, row in n.thresholds.items()),
    ]
    return "\n".join(lines)


def _advice(sure: float, row: Difference | None) -> str:
    if row is None:
        return f"No difference of two lengths makes their order {sure:.0%} sure."
    return (
        f"--threshold {row.least:.2f}: from there on the order of a pair is {sure:.0%} sure"
        f" ({row.share:.0%} of all pairs, right {row.right:.0%} of the time)"
    )


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0%}"
