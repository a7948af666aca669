"""
`pars leaderboard`: every predictor on every file, trained and judged alike.

    board = leaderboard([Path("log.jsonl")], ("ltr", "tie", "online-warm"), plan=Plan())
    print(render(board))                        # `leaderboard.tables`
"""

import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pars.errors import ParsError
from pars.prove.leaderboard.contestants import Contestant, contestants
from pars.prove.leaderboard.records import Data, Split, read_answered
from pars.prove.leaderboard.worth import Queue, Shares, worth
from pars.prove.rivals.network import LITE
from pars.prove.rivals.predictor import Answered, Predicted, Predictor
from pars.ranking.intervals import Estimate, bootstrap, bootstrap_difference
from pars.ranking.order_metrics import PairSums, pair_sums

NUM_ALONE = 100  # prompts that are timed one by one
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    How predictors are compared.

    Attributes:
        threshold: Least relative difference of length of a filtered pair.
        network: Of the neural rivals.
        queue: What is simulated; None: nothing is.
        against: Whom the others are tested against; None: the best of each file.
    """

    split: Split = field(default_factory=Split)
    threshold: float = 0.2
    num_resamples: int = 1000
    network: str = LITE
    queue: Queue | None = field(default_factory=Queue)
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of training, microseconds of a prompt alone and among all, bytes held."""

    train_s: float
    alone_us: float
    batch_us: float
    held_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """
    How far the tokens that are told can be taken at their word.

    Attributes:
        coverage: Share of whole answers inside the 80% interval.
        sharpness: The interval's upper end over its lower one, the median: 1 would be certainty.
        bias: Expected over real tokens, of all whole answers together.
    """

    coverage: float | None
    sharpness: float | None
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """
    One predictor on one file.

    Attributes:
        tau_b: Over all pairs; conversations are drawn together for its interval.
        tau_b_filtered: Over pairs that differ by the threshold.
        tau_b_within: Over pairs of one conversation; nan where none has two messages held out.
        difference: tau_b less that of the one it is tested against, on the same draws.
        worth: By bound and load.
    """

    predictor: str
    source: str
    differs: str
    tau_b: Estimate
    tau_b_filtered: Estimate
    tau_b_within: Estimate
    difference: Estimate
    calibrated: Calibrated | None
    cost: Cost
    worth: Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBoard:
    """The lines of one file, the best order first; `against` is whom they are tested against."""

    name: str
    num_train: int
    num_test: int
    num_conversations: int
    against: str
    lines: list[Line]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """All of it, and how it was made."""

    files: list[FileBoard]
    facts: dict[str, Any]


def leaderboard(
    records: Sequence[Path],
    predictors: Sequence[str],
    *,
    scores: Mapping[str, Path] | None = None,
    plan: Plan | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Leaderboard:
    """
    Train and judge each predictor on each file.

    Args:
        predictors: As `contestants` spells them.
        scores: Files of scores by name; each must have a row for every prompt that is held out.

    Raises:
        ParsError: a predictor, a file or the plan is not what it must be.
    """
    plan = plan or Plan()
    names = [it.name for it in contestants(predictors, scores or {}, plan.network)]
    if plan.against is not None and plan.against not in names:
        raise ParsError(f"--against {plan.against}: is none of {', '.join(names)}")
    if not records:
        raise ParsError("--records: give at least one file")
    data = [read_answered(path, plan.split) for path in records]
    boards = [
        _file_board(it, contestants(predictors, scores or {}, plan.network), plan, say)
        for it in data
    ]
    facts: dict[str, Any] = {
        "records": [str(path) for path in records],
        "seed": plan.split.seed,
        "test_share": plan.split.test_share,
        "network_of_neural_rivals": plan.network,
        "threshold": plan.threshold,
        "engine": plan.queue.engine if plan.queue else None,
        "slots": plan.queue.slots if plan.queue else None,
    }
    return Leaderboard(files=boards, facts=facts)


def _file_board(
    data: Data, entered: Sequence[Contestant], plan: Plan, say: Callable[[str], None]
) -> FileBoard:
    told: dict[str, Predicted] = {}
    costs: dict[str, Cost] = {}
    for it in entered:
        say(f"{data.name}: {it.name}")
        told[it.name], costs[it.name] = _run(it.predictor, data)
    sums = {name: _sums(it, data.test) for name, it in told.items()}
    against = plan.against or max(sums, key=lambda name: _or_least(sums[name].tau_b()))
    scores = {name: it.scores for name, it in told.items()}
    shares = worth(data.test, scores, plan.queue, say) if plan.queue else {}
    lines = [
        _line(it, data, told[it.name], sums, against, costs[it.name], plan, shares)
        for it in entered
    ]
    lines.sort(key=lambda line: _or_least(line.tau_b.value), reverse=True)
    return FileBoard(
        name=data.name,
        num_train=len(data.train),
        num_test=len(data.test),
        num_conversations=len({it.conversation for it in data.test}),
        against=against,
        lines=lines,
    )


def _run(predictor: Predictor, data: Data) -> tuple[Predicted, Cost]:
    """Its predictions of the held-out requests, and what they cost."""
    began_s = time.perf_counter()
    predictor.fit(data.train)
    train_s = time.perf_counter() - began_s
    held = _held_bytes(predictor)
    began_s = time.perf_counter()
    told = predictor.predict(data.test)
    batch_us = (time.perf_counter() - began_s) / len(data.test) * 1e6
    alone = []
    for request in data.test[:NUM_ALONE]:
        began_s = time.perf_counter()
        predictor.predict([request])
        alone.append((time.perf_counter() - began_s) * 1e6)
    return told, Cost(
        train_s=train_s, alone_us=float(np.median(alone)), batch_us=batch_us, held_bytes=held
    )


def _held_bytes(predictor: Any) -> int | None:
    """What it says it holds, or the size of its pickle."""
    if hasattr(predictor, "held_bytes"):
        told: int | None = predictor.held_bytes()
        return told
    try:
        return len(pickle.dumps(predictor))
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _sums(told: Predicted, requests: Sequence[Answered], threshold: float = 0.0) -> PairSums:
    return pair_sums(
        told.scores,
        [it.tokens for it in requests],
        threshold=threshold,
        strata=[it.model for it in requests],
        is_censored=[it.is_censored for it in requests],
    )


def _line(
    entered: Contestant,
    data: Data,
    told: Predicted,
    sums: Mapping[str, PairSums],
    against: str,
    cost: Cost,
    plan: Plan,
    shares: Mapping[str, Shares],
) -> Line:
    drawn: dict[str, Any] = {
        "clusters": [it.conversation for it in data.test],
        "num_resamples": plan.num_resamples,
    }
    own = sums[entered.name]
    within = pair_sums(
        told.scores,
        [it.tokens for it in data.test],
        strata=[(it.model, it.conversation) for it in data.test],
        is_censored=[it.is_censored for it in data.test],
    )
    is_within = data.has_conversations and within.num_pairs > 0
    is_other = entered.name != against
    return Line(
        predictor=entered.name,
        source=entered.predictor.source,
        differs=entered.predictor.differs,
        tau_b=bootstrap(own, "tau_b", **drawn),
        tau_b_filtered=bootstrap(_sums(told, data.test, plan.threshold), "tau_b", **drawn),
        tau_b_within=bootstrap(within, "tau_b", **drawn) if is_within else UNKNOWN,
        difference=bootstrap_difference(own, sums[against], "tau_b", **drawn)
        if is_other
        else UNKNOWN,
        calibrated=_calibrated(told, data.test),
        cost=cost,
        worth=shares.get(entered.name, {}),
    )


def _calibrated(told: Predicted, requests: Sequence[Answered]) -> Calibrated | None:
    """Of whole answers; None where it tells no tokens."""
    is_whole = np.array([not it.is_censored for it in requests])
    if told.tokens is None or not is_whole.any():
        return None
    came = np.array([it.tokens for it in requests])[is_whole]
    bias = float(told.tokens[is_whole].sum() / came.sum())
    if told.low is None or told.high is None:
        return Calibrated(coverage=None, sharpness=None, bias=bias)
    low, high = told.low[is_whole], told.high[is_whole]
    return Calibrated(
        coverage=float(((low <= came) & (came <= high)).mean()),
        sharpness=float(np.median((high + 1) / (low + 1))),
        bias=bias,
    )


def _or_least(value: float) -> float:
    return -2.0 if math.isnan(value) else value
