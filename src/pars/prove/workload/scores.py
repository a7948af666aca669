"""
Scores of a workload's prompts, by whom they come: a ranker, or a file that another system wrote.

    scores = RankerSource("run/ranker").scores(workload.requests)
    scores = FileSource(Path("theirs.csv")).scores(workload.requests)

What files hold: `score_files`.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pars.errors import ParsError
from pars.prove.workload.contenders import NAMES, Contender
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.ranker import Scorer, bundled_ranker
from pars.ranking.scorers import calibration_of, load_scorer, scored_offline
from pars.request.conversation import as_read
from pars.scheduling.demand import Calibration

PROMPTS_A_CALL = 256
SCORES_NAME = re.compile(r"[A-Za-z_][\w.-]*")
RESERVED = (*NAMES, "gateway")

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """
    Of every request of a workload, [num_requests].

    Attributes:
        calibration: From a score to expected tokens.
        took_s: What the scoring took.
        facts: For the result's header.
    """

    values: NDArray[np.float64]
    calibration: Calibration
    took_s: float
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scoring:
    """
    How to score.

    Attributes:
        knows_notes: Whether what came before a message may be known.
        prompts_a_call: How many prompts a ranker is shown at once.
        num_threads: Of a ranker folder's passes; None: as many as gain.
        done: Is told how many more requests have their score.
    """

    knows_notes: bool = True
    prompts_a_call: int = PROMPTS_A_CALL
    num_threads: int | None = None
    done: Progress = lambda _: None


AS_USUAL = Scoring()


class Source(Protocol):
    """Where scores come from."""

    def scores(self, requests: Iterable[WorkloadRequest], how: Scoring = AS_USUAL) -> Scores:
        """
        The scores of the requests.

        Raises:
            ParsError: a request has no prompt or no score, or a score is no finite number.
        """
        ...


@dataclass(frozen=True, slots=True)
class RankerSource:
    """A ranker folder, module:object, or an object that scores prompts."""

    ranker: str | Path | Scorer

    def __str__(self) -> str:
        return _name(self.ranker)

    def scores(self, requests: Iterable[WorkloadRequest], how: Scoring = AS_USUAL) -> Scores:
        """Each prompt's, by the ranker; the first call, which sets it up, is not timed."""
        scorer = self.ranker
        if isinstance(scorer, str | Path):
            scorer = load_scorer(scorer, num_threads=how.num_threads)
        name, took_s = str(self), 0.0
        parts: list[NDArray[np.float64]] = []
        rest = iter(requests)
        while some := list(islice(rest, how.prompts_a_call)):
            prompts = as_read(list(_prompts(some)), how.knows_notes)
            if not parts:
                scored_offline(scorer, prompts[:1], name)  # sets it up
            began_s = time.perf_counter()
            parts.append(scored_offline(scorer, prompts, name))
            took_s += time.perf_counter() - began_s
            how.done(len(some))
        values = np.concatenate(parts) if parts else np.empty(0)
        facts = {
            "folder": name,
            "scoring_ms_per_prompt": round(1000 * took_s / max(1, len(values)), 4),
            "prompts_a_scoring_call": how.prompts_a_call,
        }
        return Scores(values, calibration_of(scorer, values), took_s, facts)


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Scores in hand, [num_requests], in the order of the workload."""

    name: str
    given: ArrayLike

    def __str__(self) -> str:
        return self.name

    def scores(self, requests: Iterable[WorkloadRequest], how: Scoring = AS_USUAL) -> Scores:
        """As they are, checked."""
        count = sum(1 for _ in requests)
        try:
            values = np.asarray(self.given, dtype=np.float64)
        except (TypeError, ValueError):
            raise ParsError(f"scores {self.name}: want one list of numbers") from None
        if values.shape != (count,):
            raise ParsError(
                f"scores {self.name}: want one number a request, [{count}], not {values.shape}"
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ParsError(f"scores {self.name}: number {row + 1} is {values[row]}: want finite")
        how.done(count)
        facts = {"rows": count}
        return Scores(values, Calibration.of_scores(values.tolist()), 0.0, facts)


def sources_used(
    contenders: Iterable[Contender], sources: Mapping[str, Source]
) -> dict[str, Source]:
    """Those that a contender orders by, by its `known`; the ranker of `ranker` is the bundled one
    unless another is given."""
    known = dict.fromkeys(it.known for it in contenders if it.needs_scores)
    return {it: sources.get(it) or RankerSource(bundled_ranker()) for it in known}


def check_scores_name(name: str) -> None:
    """
    Raises:
        ParsError: scores of another system cannot have this name.
    """
    if not SCORES_NAME.fullmatch(name) or name in RESERVED:
        raise ParsError(
            f"scores {name!r}: want a name of letters, digits, _, - and . that is none of"
            f" {', '.join(RESERVED)}"
        )


def check_sources(contenders: Collection[Contender], sources: Mapping[str, Source]) -> None:
    """
    Raises:
        ParsError: a policy names a ranker that is not given, or the other way round.
    """
    known = {it.known: it.which for it in contenders if it.needs_scores}
    for name, which in known.items():
        if name not in sources and name != "ranker":
            raise ParsError(f"policy {name}: give its folder: --ranker {which}=DIR")
    for name, source in sources.items():
        if name not in known and name != "ranker":
            option = "--ranker " if name.startswith("ranker:") else "--scores "
            given = f"{option}{name.removeprefix('ranker:')}={source}"
            raise ParsError(f"{given}: no policy is {name}")


def _prompts(requests: Iterable[WorkloadRequest]) -> Iterator[str]:
    for request in requests:
        if request.prompt is None:
            raise ParsError(
                f"request {request.request_id} has no prompt, so it cannot be ranked: policy ranker"
                " needs a workload made from --records"
            )
        yield request.prompt


def _name(ranker: str | Path | Scorer) -> str:
    if isinstance(ranker, str | Path):
        return str(ranker)
    return str(getattr(ranker, "folder", None) or type(ranker).__name__)
