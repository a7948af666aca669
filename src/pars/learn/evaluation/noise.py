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
from pars.learn.data.records import Row, read_data
from pars.learn.evaluation.tables import table
from pars.learn.training.calibration import pool_adjacent_violators
from pars.ranking.intervals import Estimate, bootstrap
from pars.ranking.order_metrics import PairSums, pair_sums

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_ROUNDS = 10  # draws of one answer, and of another, from each prompt
NUM_PAIRS = 1_000_000  # drawn, to see which keep their order
NUM_BINS = 100  # of the relative difference of two lengths
ROW_EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SURE = (0.75, 0.9)
FEWEST_PROMPTS = 50  # with repeated answers, for a ceiling beside an evaluation
SHARE_EQUAL = 0.25  # of the prompts: when more have answers of one length only, they may be copies
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """
    Pairs of answers to different prompts, their lengths |a-b| / max(a, b) >= `least` apart.

    Attributes:
        right_here: How often such a pair has the same order when both prompts are asked again,
            up to the next row's difference; nan without such pairs.
        share, right: Of all pairs from `least` on: the pairs that `--threshold` would keep.
    """

    least: float
    right_here: float
    share: float
    right: float


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
    seed: int = 0,
) -> Noise:
    """
    Compare the answers to each prompt with one another.

    Args:
        data: Records with prompts and answers or lengths; rows of one prompt (and model) are
            answers to be compared.
        where: (field, value) conditions on the rows.
        seed: Of the answers and pairs that are drawn.

    Raises:
        DataError: the file is not what it must be, no prompt has two answers of one model, fewer
            than two prompts of a model have, or all lengths are equal.
    """
    rows = read_data(data, where=where)
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


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """
    Answers by prompt and model, each such group with two answers or more.

    Attributes:
        lengths: [num_answers], group after group.
        starts, counts: Of each group in `lengths`, [num_prompts].
        models, prompts: Of each group, those of one model together, [num_prompts].
        num_single: Groups that were left out, since they have one answer.
    """

    lengths: FloatArray
    starts: IntArray
    counts: IntArray
    models: list[str | None]
    prompts: list[str]
    num_single: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Answers":
        """The repeated answers among `rows`."""
        groups: dict[str | None, dict[str, list[float]]] = {}
        for row in rows:
            of_model = groups.setdefault(row.model, {})
            of_model.setdefault(row.prompt, []).append(row.answer_length)
        every = [
            (m, p, lengths) for m, of_model in groups.items() for p, lengths in of_model.items()
        ]
        repeated = [group for group in every if len(group[2]) > 1]
        counts = np.array([len(lengths) for _, _, lengths in repeated], dtype=np.int64)
        return cls(
            np.array(
                [length for _, _, lengths in repeated for length in lengths], dtype=np.float64
            ),
            np.cumsum(counts) - counts,
            counts,
            [model for model, _, _ in repeated],
            [prompt for _, prompt, _ in repeated],
            len(every) - len(repeated),
        )

    @property
    def num_prompts(self) -> int:
        return len(self.counts)

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
        """An answer to each prompt, another one, and the mean log length of all but the first."""
        group = np.repeat(np.arange(self.num_prompts), self.counts)
        shuffled = self.lengths[np.lexsort((rng.random(len(group)), group))]
        one, another = shuffled[self.starts], shuffled[self.starts + 1]
        logs = _logs(shuffled)
        mean = (np.add.reduceat(logs, self.starts) - logs[self.starts]) / (self.counts - 1)
        return one, another, mean

    def tau_b(
        self, rounds: Sequence[tuple[FloatArray, FloatArray]], num_resamples: int
    ) -> Estimate:
        """Tau-b of predictions and lengths, of all rounds together; only within a model."""
        parts = [pair_sums(predicted, of, strata=self.models) for predicted, of in rounds]
        names = ("concordant", "discordant", "comparable", "score_distinct")
        sums = PairSums(**{name: _sum(getattr(part, name) for part in parts) for name in names})
        return bootstrap(sums, "tau_b", clusters=self.prompts, num_resamples=num_resamples)

    def compare_pairs(self, rng: np.random.Generator) -> "PairBins":
        """Random pairs of prompts of one model, each prompt asked twice."""
        sizes = np.array(list(Counter(self.models).values()))
        first, size = (np.repeat(x, sizes) for x in (np.cumsum(sizes) - sizes, sizes))
        a = rng.choice(np.flatnonzero(size > 1), NUM_PAIRS)
        b = _another(a, first[a], size[a], rng)
        a_one, b_one = (
            self.starts[x] + (rng.random(NUM_PAIRS) * self.counts[x]).astype(np.int64)
            for x in (a, b)
        )
        a_again, b_again = (
            _another(one, self.starts[x], self.counts[x], rng)
            for one, x in ((a_one, a), (b_one, b))
        )
        bins = PairBins.empty()
        bins.add(*(self.lengths[x] for x in (a_one, b_one, a_again, b_again)))
        return bins

    def num_equal(self) -> int:
        """Prompts whose answers all have one length."""
        low = np.minimum.reduceat(self.lengths, self.starts)
        return int((low == np.maximum.reduceat(self.lengths, self.starts)).sum())

    def sigmas(self) -> tuple[float, float]:
        """
        Standard deviations of log length within prompts and between them.

        From the mean squares of a one-way analysis of variance, by model (Searle et al. 1992).
        """
        logs = _logs(self.lengths)
        means = np.add.reduceat(logs, self.starts) / self.counts
        within = float(((logs - np.repeat(means, self.counts)) ** 2).sum())
        within /= len(logs) - self.num_prompts
        models = np.unique([str(model) for model in self.models], return_inverse=True)[1]
        of_model = np.bincount(models, self.counts * means) / np.bincount(models, self.counts)
        squares = float((self.counts * (means - of_model[models]) ** 2).sum())
        between = squares / max(1, self.num_prompts - len(of_model)) - within
        return within**0.5, max(0.0, between / float(self.counts.mean())) ** 0.5

    def variation(self) -> tuple[float, float, float]:
        """Quartiles of the coefficient of variation of a prompt's answers."""
        means = np.add.reduceat(self.lengths, self.starts) / self.counts
        squares = np.add.reduceat(
            (self.lengths - np.repeat(means, self.counts)) ** 2, self.starts
        ) / (self.counts - 1)
        variations = np.sqrt(squares) / np.maximum(means, 1e-9)
        low, median, high = np.percentile(variations, [25, 50, 75]).tolist()
        return low, median, high


@dataclass(frozen=True, slots=True, eq=False)
class PairBins:
    """Pairs by their relative difference: how many, and how many in the same order again."""

    counts: FloatArray  # [NUM_BINS]
    right: FloatArray

    @classmethod
    def empty(cls) -> "PairBins":
        return cls(np.zeros(NUM_BINS), np.zeros(NUM_BINS))

    def add(self, a: FloatArray, b: FloatArray, a_again: FloatArray, b_again: FloatArray) -> None:
        """Count pairs (a, b) of different lengths; when equal again, a pair is half right."""
        differs = a != b
        a, b, a_again, b_again = (x[differs] for x in (a, b, a_again, b_again))
        difference = np.abs(a - b) / np.maximum(a, b)
        bins = np.minimum((difference * NUM_BINS + 1e-9).astype(np.int64), NUM_BINS - 1)
        right = (1 + np.sign(a - b) * np.sign(a_again - b_again)) / 2
        self.counts[:] += np.bincount(bins, minlength=NUM_BINS)
        self.right[:] += np.bincount(bins, right, minlength=NUM_BINS)

    def row(self, least: float) -> Difference:
        """The pairs from a difference on, and those up to the next row of the table."""
        start = round(least * NUM_BINS)
        stop = round(min([edge for edge in ROW_EDGES if edge > least] or [1.0]) * NUM_BINS)
        return self._difference(start, stop)

    def threshold(self, sure: float) -> Difference | None:
        """The least difference at which pairs keep their order so often, and from there on."""
        filled = np.flatnonzero(self.counts)
        values, widths = pool_adjacent_violators(
            self.right[filled] / self.counts[filled], self.counts[filled]
        )
        enough = np.flatnonzero(np.repeat(values, widths) >= sure)
        if not len(enough):
            return None
        start = int(filled[enough[0]])
        return self._difference(start, start + 1)

    def _difference(self, start: int, stop: int) -> Difference:
        count, right = self.counts[start:].sum(), self.right[start:].sum()
        here, right_here = self.counts[start:stop].sum(), self.right[start:stop].sum()
        return Difference(
            least=start / NUM_BINS,
            right_here=float(right_here / here) if here else NAN,
            share=float(count / max(1.0, self.counts.sum())),
            right=float(right / count) if count else NAN,
        )


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


def _another(
    chosen: IntArray, first: IntArray, count: IntArray, rng: np.random.Generator
) -> IntArray:
    """For each of `chosen` another one of the `count` from `first` on, evenly drawn."""
    step = 1 + (rng.random(len(chosen)) * (count - 1)).astype(np.int64)  # around the end
    return np.asarray(first + (chosen - first + step) % count)


def _logs(lengths: FloatArray) -> FloatArray:
    """Natural logs; an empty answer counts as one of length 1."""
    return np.asarray(np.log(np.maximum(lengths, 1.0)))


def _sum(arrays: Any) -> FloatArray:
    return np.asarray(np.sum(list(arrays), axis=0))


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0%}"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def _difference_json(row: Difference) -> dict[str, float | None]:
    return {name: _plain(getattr(row, name)) for name in row.__slots__}
