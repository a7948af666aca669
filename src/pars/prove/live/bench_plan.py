"""
What `pars bench` will run: its options checked, prompts scored, and the runs in their order.

    scores = scores_for(options, workload)
    for turn in turns(options, workload, scores): ...
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pars.errors import ParsError
from pars.prove.workload.arrivals import at_rate
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import Line
from pars.prove.workload.scores import Scores, Scoring, Source, check_sources, sources_used
from pars.prove.workload.workload import Workload, WorkloadRequest

PROMPTS_A_CALL = 32  # when scoring: as many as a busy server would have at hand
GATEWAY = "gateway"  # the policy of a URL that ranks by itself


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """
    What `pars bench` is asked for.

    Attributes:
        url: Of the engine, or of a gateway or vLLM with our middleware before it.
        policies: Spelled as for `Contender.parse`; or `gateway`, which sends no priority.
        sources: Where scores come from, by what a policy orders by: "ranker", which is the bundled
            one by default, "ranker:NAME", or a name of its own.
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
    sources: Mapping[str, Source] = field(default_factory=dict)
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
        check_sources(self.contenders, self.sources)
        if len(set(self.policies)) < len(self.policies):
            raise ParsError(f"--policies: {','.join(self.policies)} names one twice")

    @property
    def contenders(self) -> list[Contender]:
        """The policies but `gateway`, parsed."""
        names = (policy for policy in self.policies if policy != GATEWAY)
        return [Contender.parse(policy, self.sources) for policy in names]


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


def scores_for(options: BenchOptions, workload: Workload) -> dict[str, Scores]:
    """For each ranker, or scores of another system, that a policy orders by."""
    # Each request is one message: what its conversation was, no gateway can see, and no model.
    knows_notes = GATEWAY not in options.policies and not options.own_eos
    how = Scoring(knows_notes=knows_notes, prompts_a_call=PROMPTS_A_CALL, num_threads=1)
    return {
        known: source.scores(workload.requests, how)
        for known, source in sources_used(options.contenders, options.sources).items()
    }


def turns(options: BenchOptions, workload: Workload, scores: Mapping[str, Scores]) -> list[Turn]:
    """Every run in its order: repeat by repeat, load by load, the policies rotated by repeat."""
    planned = []
    for repeat in range(options.repeats):
        first = repeat % len(options.policies)
        for rate in options.rates or (None,):
            requests = at_rate(workload.requests, rate)
            for policy in options.policies[first:] + options.policies[:first]:
                planned.append(_turn(options, policy, rate, repeat, requests, scores))
    return planned


def _turn(
    options: BenchOptions,
    policy: str,
    rate: float | None,
    repeat: int,
    requests: Sequence[WorkloadRequest],
    scores: Mapping[str, Scores],
) -> Turn:
    if policy == GATEWAY:
        return Turn(policy, rate, repeat, requests)
    contender = Contender.parse(policy, options.sources)
    by = scores.get(contender.known)
    estimator = contender.fitted(requests, by.calibration if by else None)
    line = Line(contender.policy, estimator)
    if by is None:
        return Turn(policy, rate, repeat, requests, line)
    return Turn(policy, rate, repeat, requests, line, by.values.tolist(), by.took_s)
