"""
`pars simulate`: every policy at every load, on all cores, into one result folder.

    run_sweep(SweepPlan(workload=Path("load.jsonl"), policies=("fcfs", "oracle"),
                        rates=("0.5x", "1x"), output_dir=Path("sim")))

A point is one policy at one load. Each is simulated into a folder of its own, streaming, and then
appended to the result, so that after Ctrl-C the finished ones are there and are not run again.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pars import __version__
from pars.errors import ParsError
from pars.files import written_whole
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import EnginePreset
from pars.prove.report.points import Point, simulated
from pars.prove.report.times import REQUESTS_FILE, ResultWriter, read_result
from pars.prove.workload.contenders import Contender
from pars.prove.workload.scores import Scoring, Source, check_sources, sources_used
from pars.prove.workload.workload import Header, WorkloadRequest, open_workload
from pars.scheduling.demand import Calibration

STEPPERS = ("fast", "vllm")
PARTS_FOLDER, SCORES_FILE = ".parts", ".scores"
LOADS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # of what the engine can do
SAME = ("workload", "engine", "step_time", "limits", "stepper")  # or it is another result

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """
    What `pars simulate` is asked for.

    Attributes:
        rates: "20" is requests a second on average, "0.5x" half of the workload's own, and "" the
            arrivals as they are.
        stepper: "fast", or "vllm" for the installed vLLM's own scheduler.
        sources: Where scores come from, by what a policy orders by: "ranker", which is the bundled
            one by default, "ranker:NAME", or a name of its own.
        num_processes: None takes one a core.
    """

    workload: Path
    policies: tuple[str, ...]
    output_dir: Path
    rates: tuple[str, ...] = ("",)
    preset: EnginePreset = field(default_factory=lambda: EnginePreset.named("h100-8b"))
    stepper: str = "fast"
    sources: Mapping[str, Source] = field(default_factory=dict)
    num_processes: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not self.policies or not self.rates:
            raise ParsError("give at least one policy and one rate")
        if self.stepper not in STEPPERS:
            raise ParsError(f"--stepper must be one of {', '.join(STEPPERS)}")
        policies = self.contenders
        check_sources(policies, self.sources)
        spelled = list(map(str, policies))
        for name, values in (("--policies", spelled), ("--rates", list(self.rates))):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ParsError(f"{name} names {', '.join(sorted(twice))} twice")

    @property
    def contenders(self) -> list[Contender]:
        """The policies, parsed."""
        return [Contender.parse(policy, self.sources) for policy in self.policies]

    @property
    def used(self) -> dict[str, Source]:
        """Of the sources those that a policy orders by, in the order of the policies."""
        return sources_used(self.contenders, self.sources)

    def scores_file(self, known: str) -> Path:
        """Where these scores stand while their points are simulated."""
        return self.output_dir / f"{SCORES_FILE}.{list(self.used).index(known)}.npy"


def run_sweep(plan: SweepPlan, progress: Callable[[str, int], Progress] | None = None) -> bool:
    """
    Simulate what is not in the output folder yet.

    Args:
        progress: Called with a phase's name and its number of steps; the result is told of each.

    Returns whether all of it is there now; False after Ctrl-C.

    Raises:
        ParsError: the workload or the plan is wrong, vLLM is missing, or the folder holds the
            result of another workload or engine.
    """
    begin = progress or (lambda _name, _steps: lambda _done: None)
    header, num_requests, own_rate = _looked_at(plan.workload)
    facts = _facts(plan, header, num_requests)
    kept = read_result(plan.output_dir) if (plan.output_dir / REQUESTS_FILE).exists() else None
    if kept is not None:
        _check_same(plan.output_dir, kept.header, facts)
        facts["rankers"] = {**_rankers_in(kept.header), **facts["rankers"]}
    there = {run.key for run in kept.runs if not run.interrupted} if kept else set()
    parts = plan.output_dir / PARTS_FOLDER
    points = [it for it in _points(plan, own_rate, parts) if it.key not in there]
    if not points:
        return True
    calibrations = {}
    for known in dict.fromkeys(it.contender.known for it in points if it.contender.needs_scores):
        calibrations[known] = _score(plan, known, begin(f"scores of {known}", num_requests))
    points = [
        replace(point, calibration=calibrations.get(point.contender.known)) for point in points
    ]
    done = begin("simulating", len(points))
    try:
        with ResultWriter(plan.output_dir, facts, kept=kept) as writer:
            _simulate(points, plan.num_processes, writer, done)
    except KeyboardInterrupt:
        return False
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    for known in plan.used:
        plan.scores_file(known).unlink(missing_ok=True)
    return True


def _simulate(
    points: list[Point], num_processes: int | None, writer: ResultWriter, done: Progress
) -> None:
    """The points into the result, each as it is done."""
    is_whole = False
    try:
        for point in simulated(points, num_processes):
            part = read_result(point.folder)
            writer.add(*part.requests)
            writer.add_run(part.runs[0])
            shutil.rmtree(point.folder)
            done(1)
        is_whole = True
    finally:
        writer.end(interrupted=not is_whole)


def _points(plan: SweepPlan, own_rate: float | None, parts: Path) -> list[Point]:
    points: list[Point] = []
    for text in plan.rates:
        rate, squeeze = _load(text, own_rate)
        for contender in plan.contenders:
            points.append(
                Point(
                    workload=plan.workload,
                    contender=contender,
                    rate=rate,
                    squeeze=squeeze,
                    preset=plan.preset,
                    stepper=plan.stepper,
                    scores=plan.scores_file(contender.known) if contender.needs_scores else None,
                    calibration=None,
                    folder=parts / str(len(points)),
                )
            )
    return points


def _load(text: str, own_rate: float | None) -> tuple[float | None, float]:
    """A spelled load as (requests a second, what to divide arrivals by)."""
    if not text:
        return None, 1.0
    try:
        number = float(text.removesuffix("x"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ParsError(f"--rates takes numbers above 0 like 20, or shares like 0.5x, not {text!r}")
    if own_rate is None:
        raise ParsError("--rates: the workload's requests come all at once, so it has no rate")
    rate = number * own_rate if text.endswith("x") else number
    return round(rate, 6), rate / own_rate


def _looked_at(workload: Path) -> tuple[Header, int, float | None]:
    """Read the whole workload once: its header, how many requests, and how many a second."""
    header, requests = open_workload(workload)
    first_s = last_s = next(requests).arrival_s
    count = 1
    for request in requests:
        last_s = request.arrival_s
        count += 1
    span_s = last_s - first_s
    return header, count, (count - 1) / span_s if span_s > 0 else None


def _facts(plan: SweepPlan, header: Header, num_requests: int) -> dict[str, Any]:
    """What the result says of itself."""
    stepper = "fast (pars)"
    if plan.stepper == "vllm":
        from pars.prove.engine.vllm_engine import vllm_version

        stepper = f"vLLM {vllm_version()}'s own scheduler"
    described = plan.preset.as_json()
    facts = {
        "kind": "simulate",
        "command": plan.command,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "pars": __version__,
        "engine": plan.preset.name,
        "engine_source": plan.preset.source,
        "step_time": described["step_time"],
        "limits": described["limits"],
        "stepper": stepper,
        "policies": list(plan.policies),
        "rates": [rate for rate in plan.rates if rate],
        "num_requests": num_requests,
        "workload": header,
    }
    facts["rankers"] = {known: str(source) for known, source in plan.used.items()}
    return facts


def _rankers_in(header: Mapping[str, Any]) -> dict[str, str]:
    """Folders by policy; older results name one ranker at most."""
    known = {"ranker": header["ranker"]} if "ranker" in header else {}
    return dict(header.get("rankers", known))


def _check_same(folder: Path, old: Any, new: dict[str, Any]) -> None:
    """A folder is continued only with what began it; policies and rates may be added."""
    for name in SAME:
        if name in old and name in new and old[name] != new[name]:
            raise ParsError(
                f"{folder} holds a result with another {name}: choose another --output-dir"
            )
    before = _rankers_in(old)
    for policy, ranker in new["rankers"].items():
        if before.get(policy, ranker) != ranker:
            problem = f"{folder} holds a result in which {policy} is {before[policy]}"
            raise ParsError(f"{problem}: choose another --output-dir, or name: --ranker NAME=DIR")
    if old.get("kind") != "simulate":
        raise ParsError(f"{folder} holds no simulated result: choose another --output-dir")


def _score(plan: SweepPlan, known: str, done: Progress) -> Calibration:
    """One source's scores of all requests into a file, once for all its points."""
    _, requests = open_workload(plan.workload)
    scores = plan.used[known].scores(requests, Scoring(done=done))
    with written_whole(plan.scores_file(known)) as file:
        np.save(file, scores.values)
    return scores.calibration


def loads_around(requests: Sequence[WorkloadRequest], preset: EnginePreset) -> tuple[str, ...]:
    """Loads from half to 1.2 times what the engine gets done, in requests a second."""
    capacity = capacity_rps(requests, preset)
    return tuple(f"{float(f'{share * capacity:.3g}'):g}" for share in LOADS)


def capacity_rps(requests: Sequence[WorkloadRequest], preset: EnginePreset) -> float:
    """Requests a second under a full queue: without the first and the last tenth to end."""
    ends: list[float] = []
    simulate(
        ((replace(request, arrival_s=0.0), 0) for request in requests),
        FastEngine(preset.limits),
        preset.step_time,
        policy="fcfs",
        on_finished=lambda times: ends.append(times.finished_s or 0.0),
    )
    low, high = len(ends) // 10, len(ends) - 1 - len(ends) // 10
    span_s = ends[high] - ends[low]
    return (high - low) / span_s if span_s > 0 else len(ends) / ends[-1]
