"""
`pars learn`: a ranker learns from the requests that it ordered; the new one serves if it is better.

    outcomes -> the older four fifths -> a candidate, trained beside the ranker that serves
             -> the newest fifth      -> both score it -> better by more than chance? -> it serves

Both rankers are judged on the same newest requests, none of whose prompts the candidate was trained
on, by the difference of their tau-b: every resample draws the same prompts for both. The candidate
serves when the 95% interval of the difference is above zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pars import __version__
from pars.errors import DataError, ParsError
from pars.learn.data.pairs import split_groups
from pars.learn.data.records import Row
from pars.learn.own_traffic.own_traffic import (
    Part,
    Request,
    Traffic,
    now,
    rows_of,
    split_by_time,
    teaching,
)
from pars.learn.own_traffic.report import Comparison, LearnReport, why_not
from pars.learn.own_traffic.versions import Versions
from pars.learn.training.calibration import lengths_if_whole
from pars.learn.training.config import LITE_DEFAULTS, TrainConfig
from pars.learn.training.data import training_data
from pars.learn.training.export import export_ranker
from pars.learn.training.models import new_model
from pars.learn.training.processes import Processes, joined_processes
from pars.learn.training.state import Stopped
from pars.learn.training.train import Training
from pars.learn.training.warm_start import warm_start
from pars.outcomes.records import read_outcomes
from pars.ranking.intervals import bootstrap, bootstrap_difference
from pars.ranking.order_metrics import pair_sums
from pars.ranking.ranker import Ranker, bundled_ranker
from pars.ranking.ranker_info import RankerInfo

FEWEST_TO_TRAIN_ON, FEWEST_HELD_OUT = 100, 50  # prompts; below that an interval tells nothing
VALIDATION_SHARE = 0.1  # of the training prompts, to tell when to stop
STARTS = ("auto", "present", "scratch")
KEPT_SHARE = 0.5  # of the present ranker's weights; experiments/own_traffic.py has the curves
# Small steps, and many of them where there is little: some 20,000 rows are seen in all.
BATCH_SIZE, ROWS_TO_SEE, FEWEST_EPOCHS, MOST_EPOCHS = 32, 20_000, 3, 10
NOTED = (  # of a report, in learn.json
    "outcomes", "num_outcomes", "left_out", "repeated", "trained_on", "held_out", "start", "tau_b",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """
    What `pars learn` is told.

    Attributes:
        ranker: The folder that serves. Without one there, the bundled ranker is the present one.
        newest_share: Of the requests, to judge by.
        start: From the present ranker's weights, from scratch, or auto: from the present ranker's
            if it is a lite one.
    """

    outcomes: Path
    ranker: Path
    newest_share: float = 0.2
    start: str = "auto"
    seed: int = 42
    num_resamples: int = 1000

    def __post_init__(self) -> None:
        """Raises ParsError naming the option that is wrong."""
        if not 0 < self.newest_share < 1:
            raise ParsError(f"--newest-share must be between 0 and 1, not {self.newest_share}")
        if self.start not in STARTS:
            raise ParsError(f"--start must be {', '.join(STARTS)}, not {self.start}")
        if self.seed < 0:
            raise ParsError(f"--seed must be 0 or more, not {self.seed}")
        if self.num_resamples < 100:
            raise ParsError(f"--resamples must be at least 100, not {self.num_resamples}")


def learn(config: LearnConfig) -> LearnReport:
    """
    Train a candidate on own traffic, and let it serve if it is better.

    Raises:
        DataError: there are no outcomes, or they cannot be read.
        RankerError: the folder to serve holds something that is no ranker.
        ParsError: another `pars learn` is at work, or nothing can be written; `Stopped` after
            Ctrl-C. What serves is as it was then.
    """
    read = read_outcomes(config.outcomes)
    traffic = teaching(read.outcomes)
    older, newest = split_by_time(traffic.requests, config.newest_share)
    versions = Versions(config.ranker)
    with versions.locked():
        known: dict[str, Any] = {
            "outcomes": str(config.outcomes),
            "ranker": str(config.ranker),
            "version": versions.start(bundled_ranker()),
            "parent": None,
            "num_outcomes": len(read.outcomes),
            "num_damaged": read.num_damaged,
            "left_out": traffic.left_out,
            "repeated": len(traffic.requests) - len(older) - len(newest),
            "trained_on": Part.of(older),
            "held_out": Part.of(newest),
        }
        lacking = _lacking(older, newest, traffic, config)
        if lacking:
            return LearnReport(**known, verdict=f"Not enough: {lacking}. Nothing has changed.")
        try:
            return _try_candidate(config, versions, older, newest, known)
        except DataError as error:  # there is no pair of answers to learn from
            return LearnReport(**known, verdict=f"Not enough: {error}. Nothing has changed.")
        except Stopped as error:
            raise Stopped("stopped; the ranker that serves is as it was") from error


def _lacking(
    older: Sequence[Request], newest: Sequence[Request], traffic: Traffic, config: LearnConfig
) -> str:
    """What there is too little of; empty if there is enough to try."""
    share = config.newest_share
    enough = math.ceil(max(FEWEST_TO_TRAIN_ON / (1 - share), FEWEST_HELD_OUT / share))
    for name, requests, fewest in (
        ("to train on", older, FEWEST_TO_TRAIN_ON),
        ("to judge by", newest, FEWEST_HELD_OUT),
    ):
        num_prompts = Part.of(requests).num_prompts
        if num_prompts < fewest:
            kept = "" if traffic.requests else " (PARS_OUTCOME_PROMPTS=1 keeps their texts)"
            return (
                f"{num_prompts:,} prompts {name}, and it takes {fewest}, which some {enough:,} "
                f"requests with different prompts give{kept}"
            )
    return ""


def _try_candidate(
    config: LearnConfig,
    versions: Versions,
    older: Sequence[Request],
    newest: Sequence[Request],
    known: dict[str, Any],
) -> LearnReport:
    present = versions.path(known["version"])
    with versions.staging() as staging:
        with joined_processes() as processes:
            training, start = train_candidate(config, present, rows_of(older), staging, processes)
        scores = training.score([request.row.prompt for request in newest])
        tau_b = compare(present, scores, newest, config.num_resamples)
        report = LearnReport(**known, start=start, tau_b=tau_b, verdict="")
        if not tau_b.is_better:
            verdict = why_not(tau_b, len(newest), config.newest_share)
            return replace(report, verdict=f"{verdict} Nothing has changed.")
        noted = {name: value for name, value in report.as_json().items() if name in NOTED}
        note = {"learned_at": now(), "pars_version": __version__, **noted}
        _export(training, staging / "ranker", scores, newest, note)
        number = versions.promote(staging / "ranker", note)
    verdict = (
        f"Promoted: version {number} serves in place of {known['version']} "
        f"(undone by: pars learn --ranker {config.ranker} --rollback)."
    )
    return replace(report, version=number, parent=known["version"], verdict=verdict)


def train_candidate(
    config: LearnConfig,
    present: Path,
    rows: list[Row],
    folder: Path,
    processes: Processes,
    *,
    kept_share: float = KEPT_SHARE,
) -> tuple[Training, str]:
    """A candidate with its best epoch's weights, and what it was trained from."""
    train, val = split_groups([row.message for row in rows], VALIDATION_SHARE, config.seed)
    num_epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, ROWS_TO_SEE // len(rows)))
    training_config = TrainConfig(
        output_dir=folder / "run",
        train_data=config.outcomes,
        val_data=config.outcomes,
        model="lite",
        **{
            **LITE_DEFAULTS,
            "batch_size": BATCH_SIZE,
            "num_epochs": num_epochs,
            "seed": config.seed,
        },
    )
    torch.manual_seed(config.seed)
    data = training_data([rows[i] for i in train], [rows[i] for i in val], training_config)
    start = _start(config, present)
    model = (
        warm_start(present, data.prompts, kept_share=kept_share)
        if start == "present"
        else new_model(training_config, data.prompts)
    )
    training = Training(training_config, data, model, processes)
    training.fit()
    return training, start


def _start(config: LearnConfig, present: Path) -> str:
    """What to train from: what was told, else the present ranker if it is of the same kind."""
    if config.start != "auto":
        return config.start
    return "present" if RankerInfo.read(present).kind == "lite" else "scratch"


def compare(
    present: Path, scores: NDArray[np.float64], newest: Sequence[Request], num_resamples: int
) -> Comparison:
    """The ranker in `present`, and a candidate's scores, on the same requests [num_requests]."""
    rows = rows_of(newest)
    prompts = [row.prompt for row in rows]
    messages = [row.message for row in rows]
    sums = partial(
        pair_sums,
        lengths=[row.answer_length for row in rows],
        strata=[row.model for row in rows],
        is_censored=[row.is_censored for row in rows],
    )
    before, after = sums(Ranker.load(present).score(prompts)), sums(scores)
    options: dict[str, Any] = {"clusters": messages, "num_resamples": num_resamples}
    return Comparison(
        present=bootstrap(before, "tau_b", **options),
        candidate=bootstrap(after, "tau_b", **options),
        difference=bootstrap_difference(after, before, "tau_b", **options),
        num_pairs=after.num_pairs,
    )


def _export(
    training: Training,
    folder: Path,
    scores: NDArray[np.float64],
    newest: Sequence[Request],
    note: dict[str, Any],
) -> None:
    """The ranker folder, calibrated on the newest requests: they are what is like the next ones."""
    rows = rows_of(newest)
    lengths = [row.answer_length for row in rows]
    is_censored = [row.is_censored for row in rows]
    export_ranker(
        training.model,
        folder,
        model_name="lite",
        tau_b=note["tau_b"]["candidate"],
        trained_on={"outcomes": note["outcomes"], **note["trained_on"], "start": note["start"]},
        calibration=(scores, lengths_if_whole(scores, lengths, is_censored)),
        reads_notes=training.reads_notes,
    )
