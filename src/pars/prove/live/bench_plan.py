"""
What `pars bench` will run: its options checked, prompts scored, and the runs in their order.

    scores = scores_for(options, workload)
    for turn in turns(options, workload, scores): ...
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pars.errors import ParsError
from pars.prove.workload.arrivals import scaled
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import Line
from pars.prove.workload.workload import Workload, WorkloadRequest
from pars.ranking.ranker import Ranker, bundled_ranker
from pars.request.conversation import as_read
from pars.scheduling.demand import Calibration

GATEWAY = "gateway"  # the policy of a URL that ranks by itself
PROMPTS_A_CALL = 32  # when scoring: as many as a busy server would have at hand


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """
    What `pars bench` is asked for.

    Attributes:
        url: Of the engine, or of a gateway or vLLM with our middleware before it.
        policies: Spelled as for `Contender.parse`; or `gateway`, which sends no priority.
        rates: Requests per second to scale the arrivals to, in turn; empty: as they are.
        own_eos: Let the model end its answers; else exactly `output_tokens` are asked for.
        own_eos_max_tokens: With own_eos, the limit of requests that have none.
        truncate_prompts: Have vLLM cut each prompt to `prompt_tokens`, for a model whose
            tokenizer makes more of it.
        secret: What a gateway or middleware trusts, so that every policy passes it.
        extra_body: Fields for every request's body.
    """

    url: str
    workload: Path
    policies: tuple[str, ...]
    output_dir: Path
    repeats: int = 3
    rates: tuple[float, ...] = ()
    rankers: Mapping[str, Path] = field(default_factory=dict)
    own_eos: bool = False
    own_eos_max_tokens: int = 1024
    endpoint: str = "completions"
    model: str | None = None
    engine: str = "auto"
    truncate_prompts: bool = False
    api_key: str | None = None
    secret: str | None = None
    timeout_s: float = 1800.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.policies or self.repeats < 1:
            raise ParsError("want at least one policy and one repeat")
        for policy in self.policies:
            which = "" if policy == GATEWAY else Contender.parse(policy).which
            if which and which not in self.rankers:
                raise ParsError(f"policy {policy}: give its folder: --ranker {which}=DIR")
        if len(set(self.policies)) < len(self.policies):
            raise ParsError(f"--policies: {','.join(self.policies)} names one twice")


@dataclass(frozen=True, slots=True)
class Turn:
    """
    One run to be: a policy over the workload at one load.

    Attributes:
        line: Gives each request its priority as it is sent; None: none is sent.
        scores: [num_requests], for the line; None: it orders by something else.
    """

    policy: str
    rate: float | None
    repeat: int
    requests: Sequence[WorkloadRequest]
    line: Line | None = None
    scores: Sequence[float] | None = None
    scoring_s: float | None = None

    def key(self, row: int) -> int | None:
        """The priority of the request that is sent now."""
        if self.line is None:
            return None
        return self.line.key(self.requests[row], None if self.scores is None else self.scores[row])


@dataclass(frozen=True, slots=True)
class Scores:
    """One ranker's scores of the workload's prompts, and what they cost."""

    folder: Path
    values: list[float]
    calibration: Calibration
    took_s: float

    @classmethod
    def by(cls, folder: Path, workload: Workload, *, knows_notes: bool = True) -> "Scores":
        """What the ranker in `folder` makes of every prompt, or its message alone; 32 a call."""
        ranker = Ranker.load(folder)
        prompts = as_read([request.prompt or "" for request in workload.requests], knows_notes)
        ranker.score(prompts[:1])  # the first call sets up the session
        began_s = time.perf_counter()
        parts = [
            ranker.score(prompts[start : start + PROMPTS_A_CALL])
            for start in range(0, len(prompts), PROMPTS_A_CALL)
        ]
        took_s = time.perf_counter() - began_s
        values = np.concatenate(parts).tolist()
        return cls(folder, values, Calibration.of(ranker.info), took_s)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "scoring_ms_per_prompt": round(1000 * self.took_s / len(self.values), 4),
            "prompts_a_scoring_call": PROMPTS_A_CALL,
        }


def scores_for(options: BenchOptions, workload: Workload) -> dict[str, Scores]:
    """For each ranker that a policy names, by that name; "" is the bundled one by default."""
    folders = {"": bundled_ranker(), **options.rankers}
    wanted = [Contender.parse(policy) for policy in options.policies if policy != GATEWAY]
    names = dict.fromkeys(policy.which for policy in wanted if policy.needs_scores)
    # Each request is one message: what its conversation was, no gateway can see, and no model.
    knows_notes = GATEWAY not in options.policies and not options.own_eos
    return {name: Scores.by(folders[name], workload, knows_notes=knows_notes) for name in names}


def turns(options: BenchOptions, workload: Workload, scores: Mapping[str, Scores]) -> list[Turn]:
    """Every run in its order: repeat by repeat, load by load, the policies rotated by repeat."""
    planned = []
    for repeat in range(options.repeats):
        first = repeat % len(options.policies)
        for rate in options.rates or (None,):
            requests = at_rate(workload.requests, rate)
            for policy in options.policies[first:] + options.policies[:first]:
                planned.append(_turn(policy, rate, repeat, requests, scores))
    return planned


def _turn(
    policy: str,
    rate: float | None,
    repeat: int,
    requests: Sequence[WorkloadRequest],
    scores: Mapping[str, Scores],
) -> Turn:
    if policy == GATEWAY:
        return Turn(policy, rate, repeat, requests)
    contender = Contender.parse(policy)
    if not contender.needs_scores:
        line = Line(contender.policy, contender.fitted(requests))
        return Turn(policy, rate, repeat, requests, line)
    by = scores[contender.which]
    line = Line(contender.policy, contender.fitted(requests, by.calibration))
    return Turn(policy, rate, repeat, requests, line, by.values, by.took_s)


def at_rate(requests: Sequence[WorkloadRequest], rate: float | None) -> Sequence[WorkloadRequest]:
    """
    The same requests with their arrivals stretched to `rate` a second on average.

    Raises:
        ParsError: they all arrive at once.
    """
    if rate is None:
        return requests
    arrivals_s = scaled([request.arrival_s for request in requests], rate)
    return [
        replace(request, arrival_s=arrival_s)
        for request, arrival_s in zip(requests, arrivals_s, strict=True)
    ]
