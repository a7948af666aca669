"""
One point of a sweep: a policy at a load, simulated into a folder of its own; many of them at once.

    for point in simulated(points, num_processes=None):      # each as it is done
        read_result(point.folder)

Requests are read from the workload's file and written to the result one after the other: memory
holds what is in flight.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pars.processes import num_cores, spread
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.policy_run import run_policy
from pars.prove.engine.step_time import EnginePreset
from pars.prove.engine.stepping import SteppedEngine
from pars.prove.report.times import RequestTimes, ResultWriter, RunKey
from pars.prove.workload.contenders import Contender
from pars.prove.workload.workload import WorkloadRequest, open_workload
from pars.scheduling.demand import Calibration

REQUESTS_A_WRITE = 500


@dataclass(frozen=True, slots=True)
class Point:
    """
    One policy at one load: all that a process needs to simulate it.

    Attributes:
        rate: Requests a second, for the result; None for the workload's own arrivals.
        squeeze: The workload's arrivals are divided by it.
        stepper: "fast", or "vllm" for the installed vLLM's own scheduler.
        scores: A .npy file [num_requests], if the policy ranks; with the ranker's calibration.
        folder: Where its result goes.
    """

    workload: Path
    contender: Contender
    rate: float | None
    squeeze: float
    preset: EnginePreset
    stepper: str
    scores: Path | None
    calibration: Calibration | None
    folder: Path

    @property
    def key(self) -> RunKey:
        return str(self.contender), self.rate, 0


def simulated(points: list[Point], num_processes: int | None) -> Iterator[Point]:
    """The points, each as it is done; several at a time if there are several cores."""
    yield from spread(run_point, points, min(num_processes or num_cores(), len(points)))


def run_point(point: Point) -> Point:
    """The point, once it is simulated into its own folder."""
    shutil.rmtree(point.folder, ignore_errors=True)
    with ResultWriter(point.folder, {"kind": "simulate"}) as writer:
        waiting: list[RequestTimes] = []

        def keep(times: RequestTimes) -> None:
            waiting.append(times)
            if len(waiting) >= REQUESTS_A_WRITE:
                writer.add(*waiting)
                waiting.clear()

        began_s = time.perf_counter()
        run = run_policy(
            _squeezed(point),
            point.contender,
            point.contender.fitted(_squeezed(point), point.calibration),
            _engine(point),
            point.preset.step_time,
            scores=None if point.scores is None else np.load(point.scores, mmap_mode="r"),
            rate=point.rate,
            on_finished=keep,
        )
        writer.add(*waiting)
        took_s = round(time.perf_counter() - began_s, 3)
        writer.add_run(replace(run, facts={**run.facts, "simulating_s": took_s}))
        writer.end(interrupted=False)
    return point


def _engine(point: Point) -> SteppedEngine:
    if point.stepper == "fast":
        return FastEngine(point.preset.limits)
    from pars.prove.engine.vllm_engine import VllmEngine

    return VllmEngine(point.preset.limits)


def _squeezed(point: Point) -> Iterator[WorkloadRequest]:
    _, requests = open_workload(point.workload)
    for request in requests:
        if point.squeeze != 1.0:
            request = replace(request, arrival_s=request.arrival_s / point.squeeze)
        yield request
