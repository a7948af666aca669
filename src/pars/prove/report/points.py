"""
One point of a sweep: a policy at a load, simulated into a folder of its own; many of them at once.

    for point in simulated(points, num_processes=None):      # each as it is done
        read_result(point.folder)

Requests are read from the workload's file and written to the result one after the other: memory
holds what is in flight.
"""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

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
    count = min(num_processes or _num_cores(), len(points))
    if count <= 1:
        for point in points:
            run_point(point)
            yield point
        return
    with ExitStack() as stack:
        executor = stack.enter_context(
            ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_leave_ctrl_c)
        )
        stack.callback(_kill, executor)
        futures: dict[Future[None], Point] = {
            executor.submit(run_point, point): point for point in points
        }
        for future in as_completed(futures):
            future.result()
            yield futures[future]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_ctrl_c() -> None:
    """The terminal sends Ctrl-C to every process; only the first one acts on it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _kill(executor: Executor) -> None:
    """What still runs is not wanted any more (Ctrl-C, or a point that failed)."""
    executor.shutdown(wait=False, cancel_futures=True)
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        process.terminate()


def run_point(point: Point) -> None:
    """Simulate into the point's own folder."""
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
