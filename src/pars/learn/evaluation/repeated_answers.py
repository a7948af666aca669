"""Several answers of one model to each prompt: drawn, compared, and counted by difference."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pars.learn.data.records import Row
from pars.learn.training.calibration import pool_adjacent_violators
from pars.ranking.intervals import Estimate, bootstrap
from pars.ranking.order_metrics import PairSums, pair_sums

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_PAIRS = 1_000_000  # drawn, to see which keep their order
NUM_BINS = 100  # of the relative difference of two lengths
ROW_EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
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
