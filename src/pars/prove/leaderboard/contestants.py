"""
Who takes part, as `--predictors` and `--scores` spell it.

    contestants(("ltr", "bundled", "run/ranker", "mine:Ranker"), {"theirs": Path("scores.csv")})

A name of `RIVALS` is trained on the training part; a ranker folder, module:object or file of scores
is judged as it comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pars.errors import DataError, ParsError
from pars.prove.rivals.network import LITE
from pars.prove.rivals.predictor import Answered, Predicted, Predictor
from pars.ranking.ranker import Scorer, bundled_ranker
from pars.ranking.ranker_info import RankerInfo
from pars.ranking.scorers import is_object_name, load_scorer, scored_offline, tells_tokens

RIVALS = {
    "prompt-length": "prompt_length:PromptLength",
    "tfidf-ridge": "tfidf_ridge:TfidfRidge",
    "ssjf": "ssjf:SSJF",
    "ltr": "ltr:LTR",
    "pars-margin": "pars_margin:ParsMargin",
    "tie": "tie:TIE",
    "clairvoyant": "clairvoyant:Clairvoyant",
    "sagesched": "sagesched:SageSched",
    "online-cold": "online:OnlineCold",
    "online-warm": "online:OnlineWarm",
    "lite": "pars_margin:Lite",
}
NEURAL = ("ssjf", "ltr", "pars-margin", "tie", "lite")  # which take --network
BUNDLED = "bundled"


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """A predictor with its name."""

    name: str
    predictor: Predictor


class OfRanker:
    """A ranker folder or the user's own object, trained elsewhere."""

    differs = ""

    def __init__(self, ranker: str | Path, source: str = "") -> None:
        self.source = source or str(ranker)
        self._scorer: Scorer = load_scorer(ranker)

    def fit(self, requests: Sequence[Answered]) -> None:
        """Nothing: it comes trained."""

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """Its scores, and what its calibration makes of them."""
        prompts = [request.prompt for request in requests]
        scores = scored_offline(self._scorer, prompts, self.source, only_scores=True)
        info = getattr(self._scorer, "info", None)
        if isinstance(info, RankerInfo) and info.score_quantiles and info.expected_tokens:
            spread = info.token_quantiles or {}
            low, high = (
                np.interp(scores, info.score_quantiles, spread[share]) if share in spread else None
                for share in ("0.1", "0.9")
            )
            tokens = np.interp(scores, info.score_quantiles, info.expected_tokens)
            return Predicted(scores, tokens, low, high)
        if tells_tokens(self._scorer):
            return Predicted(scores, scored_offline(self._scorer, prompts, self.source))
        return Predicted(scores)

    def held_bytes(self) -> int | None:
        """Of the folder's files."""
        folder = getattr(self._scorer, "folder", None)
        if not isinstance(folder, Path):
            return None
        return sum(file.stat().st_size for file in folder.iterdir())


class OfFile:
    """Scores that another system wrote, by prompt."""

    differs = ""

    def __init__(self, path: Path) -> None:
        self.source, self._path = str(path), path

    def fit(self, requests: Sequence[Answered]) -> None:
        """Nothing."""

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """Of each request the row with its prompt."""
        from pars.prove.workload.score_files import FileSource
        from pars.prove.workload.workload import WorkloadRequest

        asked = [
            WorkloadRequest(it.request_id, 0.0, it.prompt, it.prompt_tokens, max(1, int(it.tokens)))
            for it in requests
        ]
        return Predicted(FileSource(self._path).scores(asked).values)


def contestants(
    names: Iterable[str], scores: Mapping[str, Path], network: str = LITE
) -> list[Contestant]:
    """
    New predictors, untrained.

    Args:
        names: Of RIVALS, "bundled", ranker folders, or module:object.
        scores: Files of scores by name.
        network: Of the neural rivals: lite, or a model for `pars train --model-name`.

    Raises:
        ParsError: a name is none of these, or stands there twice.
    """
    found = [Contestant(*_named(name, network)) for name in names]
    found += [Contestant(name, OfFile(path)) for name, path in scores.items()]
    if not found:
        raise ParsError("--predictors: give at least one")
    told = [it.name for it in found]
    if twice := next((name for name in told if told.count(name) > 1), None):
        raise ParsError(f"--predictors: {twice} stands there twice")
    return found


def _named(name: str, network: str) -> tuple[str, Predictor]:
    if name in RIVALS:
        module, _, kind = RIVALS[name].partition(":")
        made: Any = getattr(import_module(f"pars.prove.rivals.{module}"), kind)
        return name, made(network) if name in NEURAL else made()
    if name == BUNDLED:
        return name, OfRanker(bundled_ranker(), "comes with pars, trained on other logs")
    if is_object_name(name) or Path(name).is_dir():
        short = Path(name).parent.name if Path(name).name == "ranker" else Path(name).name
        return (name if is_object_name(name) else short or name), OfRanker(name)
    known = ", ".join([*RIVALS, BUNDLED])
    raise ParsError(f"--predictors {name}: want one of {known}, a ranker folder, or module:object")


def parsed_scores(given: Iterable[str]) -> dict[str, Path]:
    """
    --scores NAME=FILE, taken apart.

    Raises:
        ParsError: it is not spelled so.
        DataError: there is no such file.
    """
    found: dict[str, Path] = {}
    for one in given:
        name, _, path = one.partition("=")
        if not name or not path:
            raise ParsError(f"--scores takes NAME=FILE, not {one}")
        if not Path(path).exists():
            raise DataError.at(path, "no such file of scores")
        found[name] = Path(path)
    return found
