"""
How well a ranker orders held-out prompts, beside what one gets without it.

Beside the ranker stand three others: the prompt's length (what engines sort by today), TF-IDF with
ridge regression on log length (the strongest baseline that takes a minute to write), and the oracle
(the true length), which shows what is lost to ties; of conversations also the last answer's length.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pars.errors import DataError, MissingExtra
from pars.learn.data.record_reader import FOUND, Names
from pars.learn.data.records import Row, length_unit_of, read_data
from pars.learn.evaluation.noise import ceiling_of_rows
from pars.learn.evaluation.tables import table
from pars.learn.training.calibration import (
    TOKENS_PER_UNIT,
    CalibrationCheck,
    check_calibration,
    lengths_if_whole,
)
from pars.ranking.evaluation import Order
from pars.ranking.evaluation import evaluate as order_of
from pars.ranking.intervals import Estimate
from pars.ranking.ranker_info import RankerInfo
from pars.ranking.scorers import load_scorer, scored_offline
from pars.request.conversation import message_of, split_note

FloatArray = NDArray[np.float64]

NUM_FOLDS = 5  # of the baseline, where no training data is given
SMALLEST_CATEGORY = 20  # rows; below that an interval says nothing
DATASETS_OWN_FOLDS = f"{NUM_FOLDS}-fold on this file, split by prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The order of every predictor, over all rows and in each category."""

    data: str
    ranker: str
    num_rows: int
    num_prompts: int
    num_seen_prompts: int | None  # of the data, that also stand in the training data given
    models: dict[str, int]  # rows of each answering model; only answers of one model are compared
    threshold: float
    num_resamples: int
    baseline_fitted_on: str
    prompts_per_second: float
    overall: dict[str, Order]
    by_category: dict[str, dict[str, Order]]
    deciles: list[float]  # mean answer length of each tenth of the rows, by the ranker's score
    calibration: CalibrationCheck | None  # of the tokens that the ranker expects
    ceiling: Estimate | None  # tau-b of a perfect predictor, where rows repeat prompts enough

    def as_json(self) -> dict[str, Any]:
        """What `pars evaluate` writes to evaluation.json."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["overall"] = {name: order.as_json() for name, order in self.overall.items()}
        plain["by_category"] = {
            category: {name: order.as_json() for name, order in orders.items()}
            for category, orders in self.by_category.items()
        }
        plain["calibration"] = self.calibration and self.calibration.as_json()
        plain["ceiling"] = self.ceiling and self.ceiling.as_json()
        return plain


def evaluate(
    ranker: Path | str,
    data: Path,
    *,
    train_data: Path | None = None,
    threshold: float = 0.2,
    num_resamples: int = 1000,
    where: Sequence[tuple[str, str]] = (),
    names: Names = FOUND,
    num_threads: int = 1,
) -> Evaluation:
    """
    Score the prompts of `data` and compare their order with that of their answers' lengths.

    Args:
        data: val_data.json, or records with prompts and answers or lengths.
        ranker: A folder, or module:object.
        train_data: what the TF-IDF baseline is fitted on; without it, on the other folds of `data`.
        where: (field, value) conditions on the rows of `data`.
        names: Of the fields of prompt, answer and length, in both files.

    Raises:
        RankerError: the ranker cannot be loaded.
        DataError: a file is not what it must be, or all lengths are equal.
    """
    scorer = load_scorer(ranker, num_threads=num_threads)
    rows = read_data(data, names=names, where=where)
    lengths = np.array([row.answer_length for row in rows])
    if lengths.min() == lengths.max():
        raise DataError.at(
            data, "all answers have one length, so there is no order to compare with"
        )
    train_rows = read_data(train_data, names=names) if train_data else None
    started = time.perf_counter()
    scores = scored_offline(scorer, [row.prompt for row in rows], str(ranker), only_scores=True)
    seconds = time.perf_counter() - started
    whole_lengths = lengths_if_whole(scores, lengths, [row.is_censored for row in rows])
    predictors = {
        "ranker": scores,
        "TF-IDF + ridge": _tfidf_ridge(rows, train_rows),
        "prompt length": np.array([float(len(message_of(row.prompt))) for row in rows]),
    }
    before = np.array([split_note(row.prompt)[0].last_chars for row in rows], dtype=np.float64)
    if before.any():  # a first message stands in the middle
        predictors["last answer"] = np.where(before > 0, before, np.median(before[before > 0]))
    predictors["oracle"] = lengths

    def orders(members: NDArray[np.int64]) -> dict[str, Order]:
        return {
            name: _order(predicted, rows, members, threshold, num_resamples)
            for name, predicted in predictors.items()
        }

    info = getattr(scorer, "info", None)
    overall = orders(np.arange(len(rows)))
    return Evaluation(
        data=str(data),
        ranker=str(ranker),
        num_rows=len(rows),
        num_prompts=len({row.message for row in rows}),
        num_seen_prompts=_num_seen(rows, train_rows),
        models=dict(Counter(row.model or "-" for row in rows)),
        threshold=threshold,
        num_resamples=num_resamples,
        baseline_fitted_on=str(train_data) if train_data else DATASETS_OWN_FOLDS,
        prompts_per_second=round(len(rows) / seconds, 1),
        overall=overall,
        by_category={name: orders(members) for name, members in _categories(rows).items()},
        deciles=list(overall["ranker"].deciles),
        calibration=None
        if not isinstance(info, RankerInfo)
        else check_calibration(
            info, scores, whole_lengths * TOKENS_PER_UNIT.get(length_unit_of(data, names), 1.0)
        ),
        ceiling=ceiling_of_rows(rows, num_resamples),
    )


def _order(
    predicted: FloatArray,
    rows: Sequence[Row],
    members: NDArray[np.int64],
    threshold: float,
    num_resamples: int,
) -> Order:
    chosen = [rows[member] for member in members]
    # Requests to different models never wait in one queue, so they are not compared.
    models = [row.model for row in chosen] if len({row.model for row in chosen}) > 1 else None
    return order_of(
        predicted[members],
        [row.answer_length for row in chosen],
        threshold=threshold,
        is_censored=[row.is_censored for row in chosen],
        groups=models,
        prompts=[row.message for row in chosen],
        num_resamples=num_resamples,
    )


def _categories(rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
    """Row positions of each category that is large enough; empty where there is only one."""
    names = [row.category for row in rows]
    counts = Counter(name for name in names if name is not None)
    large = sorted(name for name, count in counts.items() if count >= SMALLEST_CATEGORY)
    if len(counts) < 2:
        return {}
    return {name: np.flatnonzero([other == name for other in names]) for name in large}


def _num_seen(rows: Sequence[Row], train_rows: Sequence[Row] | None) -> int | None:
    if train_rows is None:
        return None
    seen = {row.message for row in train_rows}
    return len({row.message for row in rows} & seen)


def _tfidf_ridge(rows: Sequence[Row], train_rows: Sequence[Row] | None) -> FloatArray:
    """The baseline's prediction for every row, always from rows with other prompts."""
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise MissingExtra("the TF-IDF baseline of pars evaluate", "train") from error

    if train_rows is not None:
        return _fit_and_predict(train_rows, rows)
    prompts = [row.message for row in rows]
    num_folds = min(NUM_FOLDS, len(set(prompts)))
    if num_folds < 2:
        return np.zeros(len(rows))
    predicted = np.empty(len(rows))
    for fitted, held_out in GroupKFold(num_folds).split(prompts, groups=prompts):
        parts = [rows[i] for i in fitted], [rows[i] for i in held_out]
        predicted[held_out] = _fit_and_predict(*parts)
    return predicted


def _fit_and_predict(train_rows: Sequence[Row], rows: Sequence[Row]) -> FloatArray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        token_pattern=r"(?u)\w+|[^\w\s]",
        max_features=200_000,
    )
    train_matrix = vectorizer.fit_transform([row.prompt for row in train_rows])
    log_lengths = np.log1p([row.answer_length for row in train_rows])
    model = Ridge(alpha=1.0, solver="sparse_cg").fit(train_matrix, log_lengths)
    predicted: FloatArray = model.predict(vectorizer.transform([row.prompt for row in rows]))
    return predicted


def render(evaluation: Evaluation) -> str:
    """The tables that a person reads."""
    e = evaluation
    lines = [
        f"{e.num_rows:,} answers to {e.num_prompts:,} prompts of {e.data}",
        f"TF-IDF + ridge fitted on {e.baseline_fitted_on}; "
        f"95% intervals from {e.num_resamples:,} resamples of prompts",
    ]
    if len(e.models) > 1:
        lines.append(f"{len(e.models)} models: only answers of one model are compared")
    if e.num_seen_prompts:
        lines.append(
            f"CAUTION: {e.num_seen_prompts:,} of the prompts also stand in the training data"
        )
    filtered = f"accuracy, pairs >= {e.threshold:g} apart"
    head: Sequence[str] = ("", "Kendall tau-b, all pairs", "accuracy, all pairs", filtered)
    body: list[Sequence[str]] = [
        (name, str(order.tau_b), str(order.accuracy), str(order.filtered_accuracy))
        for name, order in e.overall.items()
    ]
    lines += ["", *table(head, body)]
    if e.by_category:
        names = list(e.overall)
        body = [
            (f"{category} ({orders[names[0]].num_rows:,})", *(str(orders[n].tau_b) for n in names))
            for category, orders in e.by_category.items()
        ]
        lines += ["", *table(("tau-b by category", *names), body)]
    if e.ceiling:
        share = e.overall["ranker"].tau_b.value / e.ceiling.value
        lines += ["", f"A perfect predictor would reach {e.ceiling}; the ranker has {share:.0%}"]
    if e.calibration:
        lines += ["", *_calibration_table(e.calibration)]
    lines += ["", f"The ranker scored {e.prompts_per_second:,.0f} prompts a second in one batch."]
    return "\n".join(lines)


def _calibration_table(check: CalibrationCheck) -> list[str]:
    body = [
        (str(number), f"{tenth.expected_tokens:,.0f}", f"{tenth.answer_tokens:,.0f}")
        for number, tenth in enumerate(check.tenths, 1)
    ]
    between = (
        ""
        if check.share_between is None
        else f"; {check.share_between:.0%} of the answers are within their 80% range"
    )
    return [
        *table(("tenth, by score", "expected tokens", "answer tokens"), body),
        f"Calibration error {check.error:.1%} of the mean answer{between}.",
    ]
