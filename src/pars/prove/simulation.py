"""
`pars.simulate`: what each policy would be worth, in virtual time, from Python.

    results = pars.simulate(workload, ["fcfs", "oracle@1.33x", pars.MaxSlowdown(1.5)])
    print(results)
    results.to_pandas().groupby("policy").ntpot_s.mean()

It is what `pars simulate` does, in this process and without files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from pars.errors import MissingExtra, ParsError
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.policy_run import run_policy
from pars.prove.engine.step_time import EnginePreset
from pars.prove.report.latency import Figures, columns, ended_well, figures
from pars.prove.report.report import tables_of
from pars.prove.report.times import RequestTimes, Result, Run
from pars.prove.workload.arrivals import at_rate
from pars.prove.workload.contenders import Contender
from pars.prove.workload.score_files import FileSource
from pars.prove.workload.scores import (
    ArraySource,
    RankerSource,
    Scores,
    Source,
    check_scores_name,
    check_sources,
    sources_used,
)
from pars.prove.workload.workload import Workload, WorkloadRequest
from pars.ranking.ranker import Scorer
from pars.scheduling.policies.fcfs import FCFS
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN
from pars.scheduling.policies.policy import Policy

if TYPE_CHECKING:
    import pandas

    from pars.prove.report.plot import Plot

Asked = str | Policy | tuple[str, Policy]
DEFAULT_POLICIES: tuple[Asked, ...] = ("fcfs", f"ranker@{DEFAULT_MAX_SLOWDOWN:g}x", "oracle")


@dataclass(frozen=True, slots=True)
class Simulation:
    """
    What came of a simulation; printed, it is the tables of `pars simulate`.

    Attributes:
        requests: The times of every request under every policy, in seconds of virtual time.
        figures: Of each policy at each load: mean, percentiles and worst of each measure, in
            seconds (`figures[0].measures["ntpot_s"].mean`), throughput, queue.
    """

    requests: Sequence[RequestTimes]
    figures: Sequence[Figures]
    _result: Result

    def to_pandas(self) -> "pandas.DataFrame":
        """
        A row for each request under each policy.

        The columns are policy, rate, request_id, arrival_s, prompt_tokens, output_tokens, and the
        measures ttft_s, tpot_s, e2e_s, ntpot_s and longest_itl_s.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("Simulation.to_pandas()", "pandas") from error
        names = ("policy", "rate", "request_id", "arrival_s", "prompt_tokens", "output_tokens")
        good = [it for it in self.requests if ended_well(it)]
        table = {name: [getattr(it, name) for it in good] for name in names}
        measured = columns(good)
        del measured["tokens"]
        return pandas.DataFrame(table | measured)

    def plots(self) -> "list[Plot]":
        """
        The pictures of a report: latency against load, waits, thirds; shown in a notebook.

        Each has `save("name.pdf")`, or .svg or .png.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from pars.prove.report.pictures import pictures
        from pars.prove.report.plot import need_matplotlib

        need_matplotlib("Simulation.plots()")
        return pictures(self._result, self.figures)

    def __str__(self) -> str:
        return "\n\n".join(map(str, tables_of(self._result, self.figures)))


def simulate(
    workload: Workload | Path | str,
    policies: Sequence[Asked] = DEFAULT_POLICIES,
    *,
    ranker: Path | str | Scorer | None = None,
    rankers: Mapping[str, Path | str | Scorer] | None = None,
    scores: Mapping[str, Path | str | ArrayLike] | None = None,
    rates: Iterable[float] = (),
    engine: str | EnginePreset = "h100-8b",
    max_num_seqs: int | None = None,
) -> Simulation:
    """
    Run a workload under each policy in a simulated engine, and say what everybody waited.

    Args:
        workload: In hand, or a file of `pars workload`.
        policies: Spelled as for the command (docs/proving.md): "fcfs", "oracle", "ranker@30",
            "online@1.33x", "ranker:NAME", or the name of `scores`. A policy object orders by the
            ranker; a pair says by what: ("oracle", pars.MaxSlowdown(2)).
        ranker: Of the policy "ranker": a folder, "module:object", or anything with
            `score(list[str]) -> array`. None: the bundled one.
        rankers: More of them, by NAME.
        scores: Of other systems, by name: [num_requests] in the workload's order, or a file as for
            `--scores`.
        rates: Requests a second to scale the arrivals to, one after the other; none: as they are.
        engine: A preset's name, a file of `pars simulate --fit`, or a preset.
        max_num_seqs: Of the engine; None: the preset's.

    Raises:
        ParsError: the workload, a policy, a ranker or the scores are not what they must be.
    """
    if not isinstance(workload, Workload):
        workload = Workload.read(workload)
    preset = engine if isinstance(engine, EnginePreset) else EnginePreset.named(str(engine))
    if max_num_seqs is not None:
        if max_num_seqs < 1:
            raise ParsError(f"max_num_seqs must be 1 or more, not {max_num_seqs}")
        preset = replace(preset, limits=replace(preset.limits, max_num_seqs=max_num_seqs))
    sources = _sources(ranker, rankers or {}, scores or {})
    if isinstance(policies, str):
        raise ParsError(f"policies: want a list of them, [{policies!r}]")
    contenders = [_contender(policy, sources) for policy in policies]
    check_sources(contenders, sources)
    _check_prompts(policies, workload)
    names = [str(contender) for contender in contenders]
    if not names:
        raise ParsError("policies: give at least one")
    for name in names:
        if names.count(name) > 1:
            raise ParsError(f"policies: {name} stands there twice")
    known = {
        name: source.scores(workload.requests)
        for name, source in sources_used(contenders, sources).items()
    }
    runs: list[Run] = []
    times: list[RequestTimes] = []
    loads: list[float | None] = [*rates]
    for rate in loads or [None]:
        requests = at_rate(workload.requests, rate)
        for contender in contenders:
            runs.append(_run(requests, contender, known.get(contender.known), preset, rate, times))
    result = Result({"kind": "simulate"}, times, runs, interrupted=False)
    return Simulation(times, figures(result), result)


def _run(
    requests: Sequence[WorkloadRequest],
    contender: Contender,
    scores: Scores | None,
    preset: EnginePreset,
    rate: float | None,
    times: list[RequestTimes],
) -> Run:
    return run_policy(
        requests,
        contender,
        contender.fitted(requests, scores.calibration if scores else None),
        FastEngine(preset.limits),
        preset.step_time,
        scores=scores.values if scores else None,
        rate=rate,
        on_finished=times.append,
    )


def _sources(
    ranker: Path | str | Scorer | None,
    rankers: Mapping[str, Path | str | Scorer],
    scores: Mapping[str, Path | str | ArrayLike],
) -> dict[str, Source]:
    sources: dict[str, Source] = {} if ranker is None else {"ranker": RankerSource(ranker)}
    sources |= {f"ranker:{name}": RankerSource(it) for name, it in rankers.items()}
    for name, given in scores.items():
        check_scores_name(name)
        if isinstance(given, str | Path):
            sources[name] = FileSource(Path(given))
        else:
            sources[name] = ArraySource(name, given)
    return sources


def _check_prompts(policies: Sequence[Asked], workload: Workload) -> None:
    """A policy alone orders by a ranker, which needs prompts."""
    bare = [it for it in policies if isinstance(it, Policy) and not isinstance(it, FCFS)]
    without = next((it for it in workload.requests if it.prompt is None), None)
    if bare and without is not None:
        raise ParsError(
            f"policies: {bare[0]!r} alone orders by the ranker, and request {without.request_id}"
            f" has no prompt: say by what, as in ('oracle', {bare[0]!r})"
        )


def _contender(
    policy: str | Policy | tuple[str, Policy], sources: Mapping[str, Source]
) -> Contender:
    if isinstance(policy, str):
        return Contender.parse(policy, sources)
    known, rule = policy if isinstance(policy, tuple) else ("ranker", policy)
    if not isinstance(rule, Policy):
        raise ParsError(
            f"policies: want a name such as 'oracle@30', a policy such as pars.FCFS(), or a pair of"
            f" both, not {rule!r}"
        )
    if isinstance(rule, FCFS):
        return Contender("fcfs", rule)
    parsed = Contender.parse(known, sources)
    return Contender(parsed.by, rule, parsed.which)
