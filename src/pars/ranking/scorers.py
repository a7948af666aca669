"""
Anything with `score(list[str]) -> array` is a ranker: a folder, or an object of the user's own.

    scorer = load_scorer("run/ranker")           # what `pars train` made
    scorer = load_scorer("my_module:ranker")     # an object to be imported; a class is called
    scores = scored(scorer, prompts, "my_module:ranker")

Scores of one's own are in any scale, of which only the order counts; `Scale` makes tokens of them.
An object that has `expected_tokens(list[str]) -> array` too is asked that instead.
"""

import re
import sys
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pars.errors import RankerError, one_line
from pars.ranking.ranker import PROBES, Ranker, Scorer
from pars.request.conversation import as_read
from pars.scheduling.demand import Calibration

OBJECT_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
NUM_REMEMBERED = 1024  # scores, of a scale that is learned as they come
REFIT_SHARE = 8  # anew when an eighth of what is remembered is new

FloatArray = NDArray[np.float64]


def is_object_name(text: str) -> bool:
    """Whether `text` is module:object, and not a path that is there."""
    return OBJECT_NAME.fullmatch(text) is not None and not Path(text).exists()


def load_scorer(ranker: str | Path, *, num_threads: int | None = 1) -> Scorer:
    """
    The ranker in a folder, or the object called module:object.

    The working directory is looked through too, after everything else, so that no file in it can
    stand in for an installed module.

    Raises:
        RankerError: no ranker is there, or the module or object is missing.
    """
    name = str(ranker)
    if not is_object_name(name):
        return Ranker.load(Path(ranker), num_threads=num_threads)
    module_name, _, object_name = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found: Any = import_module(module_name)
        for part in object_name.split("."):
            found = getattr(found, part)
        if isinstance(found, type):
            found = found()
    except Exception as error:  # a user's module may raise anything
        told = f"{type(error).__name__}: {one_line(error)}"
        raise RankerError(f"ranker {name}: cannot be imported: {told}") from error
    if not callable(getattr(found, "score", None)):
        raise RankerError(
            f"ranker {name}: a {type(found).__name__} has no score(list[str]) -> array"
        )
    return found  # type: ignore[no-any-return]


def load_for_serving(ranker: str | Path) -> Scorer:
    """
    `load_scorer`, and an object has to score some prompts first, as a folder has.

    Raises:
        RankerError: as `load_scorer`, or it cannot score.
    """
    scorer = load_scorer(ranker)
    if not isinstance(scorer, Ranker):
        scored_offline(scorer, PROBES, str(ranker))
    return scorer


def tells_tokens(scorer: Scorer) -> bool:
    """Whether an object of the user's own says lengths and not scores alone."""
    return not isinstance(scorer, Ranker) and callable(getattr(scorer, "expected_tokens", None))


def scored(
    scorer: Scorer, prompts: Sequence[str], name: str, *, only_scores: bool = False
) -> FloatArray:
    """
    What the scorer makes of the prompts, [num_prompts]: tokens, if it tells them, or scores.

    An object without `info` is shown bare messages, without notes of what came before them.

    Args:
        name: Who it is, for errors.
        only_scores: Not the tokens, whoever tells them.

    Raises:
        RankerError: it did not give one finite number a prompt. What it raises itself passes.
    """
    asked: Any = scorer
    method = "expected_tokens" if tells_tokens(scorer) and not only_scores else "score"
    if not hasattr(scorer, "info"):
        prompts = as_read(prompts, False)
    values = np.asarray(getattr(asked, method)(list(prompts)), dtype=np.float64)
    if values.shape != (len(prompts),):
        raise RankerError(
            f"ranker {name}: {method}() must give one number a prompt, an array of shape"
            f" ({len(prompts)},), not {values.shape}"
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise RankerError(
            f"ranker {name}: {method}() gave {values[row]} for prompt {row + 1} of {len(prompts)}:"
            " want finite numbers"
        )
    return values


def scored_offline(
    scorer: Scorer, prompts: Sequence[str], name: str, *, only_scores: bool = False
) -> FloatArray:
    """
    `scored` for a command: what a user's object raises is told in its own words.

    Not for a server, whose logs hold no text of a prompt.
    """
    try:
        return scored(scorer, prompts, name, only_scores=only_scores)
    except RankerError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {one_line(error)}"
        raise RankerError(f"ranker {name}: scoring failed: {told}") from error


class Scale:
    """
    From a scorer's own numbers to expected tokens, by what it told so far. On one thread.

    A ranker folder brings its calibration along. The numbers of anything else are spread by their
    rank over the lengths that answers usually have, or stand for themselves if they are tokens.
    """

    def __init__(self, scorer: Scorer | None) -> None:
        own = None if scorer is None else own_calibration(scorer)
        self._is_known = own is not None
        self.calibration = own or Calibration()
        is_in_tokens = scorer is not None and tells_tokens(scorer)
        self._of = Calibration.of_tokens if is_in_tokens else Calibration.of_scores
        self._seen: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self._num_new = 0

    def see(self, values: Sequence[float]) -> None:
        """Numbers that it told."""
        if self._is_known:
            return
        self._seen.extend(values)
        self._num_new += len(values)
        if self._num_new * REFIT_SHARE >= len(self._seen) > 1:
            self._num_new = 0
            self.calibration = self._of(self._seen)


def calibration_of(scorer: Scorer, values: FloatArray) -> Calibration:
    """From all the numbers that it told of a workload."""
    of = Calibration.of_tokens if tells_tokens(scorer) else Calibration.of_scores
    return own_calibration(scorer) or of(values.tolist())


def own_calibration(scorer: Scorer) -> Calibration | None:
    """What a ranker folder brings along; None for anything else."""
    info: Any = getattr(scorer, "info", None)
    is_told = hasattr(info, "score_quantiles") and hasattr(info, "expected_tokens")
    return Calibration.of(info) if is_told else None
