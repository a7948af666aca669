"""
One point of a sweep: a policy at a load, simulated into a folder of its own; many of them at once.

    for point in simulated(points, num_processes=None):      # each as it is done
        read_result(point.folder)

Requests are read from the workload's file and written to the result one after the other: memory
holds what is in flight.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import EnginePreset
from pars.prove.engine.stepping import SteppedEngine
from pars.prove.report.times import RequestTimes, ResultWriter, RunKey
from pars.prove.workload.policies import Policy
from pars.prove.workload.workload import WorkloadRequest, open_workload
from pars.scheduling.priority import Calibration
from pars.scheduling.slowdown import LAST_EXPRESS_S, MaxSlowdown, Place

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
    policy: Policy
    rate: float | None
    squeeze: float
    preset: EnginePreset
    stepper: str
    scores: Path | None
    calibration: Calibration | None
    folder: Path

    @property
    def key(self) -> RunKey:
        return str(self.policy), self.rate, 0


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
        lane = None if point.policy.max_slowdown is None else _Lane(point.policy.max_slowdown)
        run = simulate(
            _with_keys(point, lane),
            _engine(point),
            point.preset.step_time,
            policy=str(point.policy),
            rate=point.rate,
            on_finished=keep if lane is None else lane.seen_by(keep),
            on_first_token=None if lane is None else lane.began,
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


class _Lane:
    """The express lane of a simulated queue: it hears what a gateway would hear."""

    def __init__(self, max_slowdown: float) -> None:
        self._slowdown = MaxSlowdown(max_slowdown)
        self._places: dict[str, Place] = {}

    def key(self, request: WorkloadRequest, cost: float) -> int:
        """Of a request that arrives, in microseconds."""
        # Its cost is the root of answer * (answer + prompt): the answer that was expected of it.
        prompt = request.prompt_tokens
        answer = (math.sqrt(prompt * prompt + 4 * cost * cost) - prompt) / 2
        place = self._slowdown.place(cost, answer + prompt)
        self._places[request.request_id] = place
        since_s = LAST_EXPRESS_S + request.arrival_s
        return math.floor(self._slowdown.key_s(place, cost, since_s) * 1e6)

    def began(self, request_id: str, now_s: float) -> None:
        """Its first token came."""
        self._slowdown.began(self._places[request_id])

    def seen_by(self, keep: Callable[[RequestTimes], None]) -> Callable[[RequestTimes], None]:
        """`keep`, and the lane hears of each end too."""

        def ended(times: RequestTimes) -> None:
            place = self._places.pop(times.request_id)
            self._slowdown.ended(place, times.finished_s or 0.0)
            self._slowdown.correct(place, float(times.output_tokens + times.prompt_tokens))
            keep(times)

        return ended


def _with_keys(point: Point, lane: _Lane | None) -> Iterator[tuple[WorkloadRequest, int]]:
    """The requests at the point's load, each with its priority; one at a time in memory."""
    key_of = point.policy.fitted(_squeezed(point), point.calibration)
    scores: Iterable[Any] = iter(lambda: None, 0)  # without end
    if point.policy.needs_scores and point.scores is not None:
        scores = np.load(point.scores, mmap_mode="r")
    for request, score in zip(_squeezed(point), scores, strict=False):
        told = None if score is None else float(score)
        if lane is None:
            yield request, key_of(request, told)
        else:
            yield request, lane.key(request, key_of.cost(request, told))


def _squeezed(point: Point) -> Iterator[WorkloadRequest]:
    _, requests = open_workload(point.workload)
    for request in requests:
        if point.squeeze != 1.0:
            request = replace(request, arrival_s=request.arrival_s / point.squeeze)
        yield request
