"""
What repeated answers say of the limit: how well a perfect predictor could order single answers.

    noise = measure_noise(Path("answers.jsonl"))     # several answers of one model to each prompt
    noise.ceiling                                    # tau-b of the best possible predictor

**The ceiling.** Take log lengths, up to any monotone map of them all, as a part of the prompt plus
a part of the answer, both normal, and R as the prompt's share of the variance (the intraclass
correlation). Two answers to a prompt correlate by R, an answer and the prompt's own part by sqrt(R)
(the correction for attenuation: Spearman 1904, doi:10.2307/1412159), and of normal variables
tau = 2/pi arcsin(correlation) (Greiner 1909; Kruskal 1958, doi:10.1080/01621459.1958.10501481). So
the tau-b of two answers, whose measuring takes no model, tells R = sin(pi/2 tau), and

    ceiling = 2/pi arcsin(sqrt(R))

**The check.** By the same model the mean log length of m other answers correlates with one more by
R / sqrt(R + (1 - R) / m). That tau-b is measured, too: where it is not what the model expects, the
ceiling is off. It bounds the ceiling from below. On made-up answers whose parts are not normal
(Student's t with 3 degrees of freedom, one answer in ten far off, spreads that differ from prompt
to prompt, skewed prompts) the ceiling came within 0.03 of the truth.

An answer that was cut short counts with the length it has.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pars.errors import DataError
from pars.learn.data.record_reader import FOUND, Names
from pars.learn.data.records import Row, read_data
from pars.learn.evaluation.repeated_answers import ROW_EDGES, Answers, Difference
from pars.ranking.intervals import Estimate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_ROUNDS = 10  # draws of one answer, and of another, from each prompt
SURE = (0.75, 0.9)
FEWEST_PROMPTS = 50  # with repeated answers, for a ceiling beside an evaluation
SHARE_EQUAL = 0.25  # of the prompts: when more have answers of one length only, they may be copies
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """
    How answers of one model to one prompt differ, and what follows for order.

    Attributes:
        num_prompts: With two answers or more of one model; the others are left out.
        answers_each: How many prompts have how many answers.
        num_equal: Prompts whose answers all have one length: duplicates, if they are many.
        num_cut: Answers of the file that were cut short.
        two_answers: Tau-b between one answer to each prompt and another.
        others_mean, others_mean_expected: Tau-b between the mean log length of a prompt's other
            answers and one of it, measured, and as the model of the ceiling has it.
        ceiling: Tau-b of a perfect predictor with one answer each; nan where there is no order.
        within_sigma, between_sigma: Standard deviations of the natural log of the length: of
            answers to a prompt, and of prompts of a model.
        variation: Standard deviation over mean of a prompt's answers: the three quartiles.
        thresholds: For each certainty of SURE the least difference at which a pair is so sure to
            have the same order again; None where no difference is enough.
    """

    data: str
    num_rows: int
    num_prompts: int
    num_single: int
    num_models: int
    answers_each: dict[int, int]
    num_equal: int
    num_cut: int
    two_answers: Estimate
    others_mean: Estimate
    others_mean_expected: float
    ceiling: Estimate
    within_sigma: float
    between_sigma: float
    variation: tuple[float, float, float]
    differences: tuple[Difference, ...]
    thresholds: dict[float, Difference | None]
    num_resamples: int

    def as_json(self) -> dict[str, Any]:
        """What `pars noise` writes to noise.json; undefined numbers are null."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        for name in ("two_answers", "others_mean", "ceiling"):
            plain[name] = plain[name].as_json()
        for name in ("others_mean_expected", "within_sigma", "between_sigma"):
            plain[name] = _plain(plain[name])
        plain["variation"] = [_plain(value) for value in self.variation]
        plain["differences"] = [_difference_json(row) for row in self.differences]
        plain["thresholds"] = {
            f"{sure:g}": row and _difference_json(row) for sure, row in self.thresholds.items()
        }
        return plain


def ceiling_of(tau_b: ArrayLike) -> FloatArray:
    """A perfect predictor's tau-b from that of two answers; nan where that is not above 0."""
    tau = np.asarray(tau_b, dtype=np.float64)
    shared = np.sin(np.pi / 2 * np.where(tau > 0, tau, np.nan))
    return np.asarray(2 / np.pi * np.arcsin(np.sqrt(shared)))


def tau_of_mean(tau_b: float, num_others: float) -> float:
    """Tau-b of the mean of so many answers with one more, from that of two answers."""
    if not tau_b > 0:
        return NAN
    shared = np.sin(np.pi / 2 * tau_b)
    correlation = shared / np.sqrt(shared + (1 - shared) / num_others)
    return float(2 / np.pi * np.arcsin(min(1.0, correlation)))


def measure_noise(
    data: Path,
    *,
    num_resamples: int = 1000,
    where: Sequence[tuple[str, str]] = (),
    names: Names = FOUND,
    seed: int = 0,
) -> Noise:
    """
    Compare the answers to each prompt with one another.

    Args:
        data: Records with prompts and answers or lengths; rows of one prompt (and model) are
            answers to be compared.
        where: (field, value) conditions on the rows.
        names: Of the fields of prompt, answer and length.
        seed: Of the answers and pairs that are drawn.

    Raises:
        DataError: the file is not what it must be, no prompt has two answers of one model, fewer
            than two prompts of a model have, or all lengths are equal.
    """
    rows = read_data(data, names=names, where=where)
    answers = Answers.of(rows)
    if not answers.num_prompts:
        problem = (
            "no prompt has two answers of one model, so their spread cannot be told: it takes"
            " several rows with the same prompt (`pars collect --samples 4` makes them)"
        )
        raise DataError.at(data, problem)
    if answers.num_prompts == len(set(answers.models)):
        raise DataError.at(data, "only one prompt of a model has two answers: it takes two prompts")
    if answers.lengths.min() == answers.lengths.max():
        raise DataError.at(data, "all answers have one length, so there is no order to compare")
    rng = np.random.default_rng(seed)
    rounds = [answers.draw(rng) for _ in range(NUM_ROUNDS)]
    two_answers = answers.tau_b([(one, another) for one, another, _ in rounds], num_resamples)
    others_mean = answers.tau_b([(mean, one) for one, _, mean in rounds], num_resamples)
    bins = answers.compare_pairs(rng)
    within, between = answers.sigmas()
    return Noise(
        data=str(data),
        num_rows=len(answers.lengths),
        num_prompts=answers.num_prompts,
        num_single=answers.num_single,
        num_models=len(set(answers.models)),
        answers_each=dict(sorted(Counter(answers.counts.tolist()).items())),
        num_equal=answers.num_equal(),
        num_cut=sum(row.is_censored for row in rows),
        two_answers=two_answers,
        others_mean=others_mean,
        others_mean_expected=tau_of_mean(two_answers.value, float(answers.counts.mean()) - 1),
        ceiling=ceiling_estimate(two_answers),
        within_sigma=within,
        between_sigma=between,
        variation=answers.variation(),
        differences=tuple(bins.row(least) for least in ROW_EDGES),
        thresholds={sure: bins.threshold(sure) for sure in SURE},
        num_resamples=num_resamples,
    )


def ceiling_estimate(two_answers: Estimate) -> Estimate:
    """The ceiling with its interval, which is the other's ends: the map is monotone."""
    ends = (two_answers.value, two_answers.low, two_answers.high)
    return Estimate(*ceiling_of(ends).tolist())


def ceiling_of_rows(rows: Sequence[Row], num_resamples: int) -> Estimate | None:
    """
    The ceiling, where at least FEWEST_PROMPTS prompts are answered more than once and most of them
    in different lengths, as copies are not; else None.
    """
    answers = Answers.of(rows)
    if (
        answers.num_prompts < FEWEST_PROMPTS
        or answers.num_equal() > SHARE_EQUAL * answers.num_prompts
    ):
        return None
    rng = np.random.default_rng(0)
    rounds = [answers.draw(rng)[:2] for _ in range(NUM_ROUNDS)]
    found = ceiling_estimate(answers.tau_b(rounds, num_resamples))
    return None if np.isnan(found.value) else found


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def _difference_json(row: Difference) -> dict[str, float | None]:
    return {name: _plain(getattr(row, name)) for name in row.__slots__}
