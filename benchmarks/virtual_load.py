"""
What orders of requests are worth on the simulated engine: the common part of two benchmarks.

    load = Load.poisson(lengths, prompt_tokens, rate=40.0, seed=0)
    measured = run_all([Job(load, priorities), ...])         # on all cores

The preset is h100-8b (docs/proving.md), the engine the fast one, which decides as vLLM does.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import EnginePreset
from pars.prove.workload.arrivals import poisson
from pars.prove.workload.workload import WorkloadRequest

PRESET = EnginePreset.named("h100-8b")
MEASURES = ("ntpot_s", "ttft_s", "e2e_s", "p99_ttft_s")
STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """Requests in order of arrival, each array [num_requests]."""

    arrivals_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray

    @classmethod
    def poisson(
        cls, output_tokens: np.ndarray, prompt_tokens: np.ndarray, *, rate: float, seed: int
    ) -> "Load":
        arrivals_s = np.array(poisson(len(output_tokens), rate, seed))
        return cls(arrivals_s, prompt_tokens, output_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A load and the priority of each request, smaller first; equal ones by arrival."""

    load: Load
    priorities: np.ndarray


def run(job: Job) -> dict[str, float]:
    """The `MEASURES` of one simulated run, in seconds: means over requests, and a percentile."""
    times = finished(job)
    due = np.array([it.arrival_s for it in times])
    ttft = np.array([it.first_token_s for it in times]) - due
    e2e = np.array([it.finished_s for it in times]) - due
    tokens = np.array([it.output_tokens for it in times])
    return {
        "ntpot_s": float((e2e / tokens).mean()),
        "ttft_s": float(ttft.mean()),
        "e2e_s": float(e2e.mean()),
        "p99_ttft_s": float(np.percentile(ttft, 99)),
    }


def finished(job: Job) -> list:
    """The times of every request, as they end."""
    load, times = job.load, []
    requests = (
        (WorkloadRequest(f"{row:06d}", at_s, None, prompt, output), priority)
        for row, (at_s, prompt, output, priority) in enumerate(
            zip(
                load.arrivals_s.tolist(),
                load.prompt_tokens.tolist(),
                load.output_tokens.tolist(),
                job.priorities.tolist(),
                strict=True,
            )
        )
    )
    engine = FastEngine(PRESET.limits)
    simulate(requests, engine, PRESET.step_time, policy="order", on_finished=times.append)
    return times


def run_all(jobs: Sequence[Job]) -> list[dict[str, float]]:
    """Every job's measures, on all cores."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, jobs, chunksize=4))


def capacity(output_tokens: np.ndarray, prompt_tokens: np.ndarray) -> float:
    """Requests a second that the engine gets done: those in the middle half of one burst."""
    load = Load(np.zeros(len(output_tokens)), prompt_tokens, output_tokens)
    times = finished(Job(load, np.zeros(len(output_tokens), dtype=np.int64)))
    quarter, rest = len(times) // 4, 3 * len(times) // 4
    return (rest - quarter) / (times[rest].finished_s - times[quarter].finished_s)


def ranks(costs: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the costs; equal costs are equal."""
    return np.unique(costs, return_inverse=True)[1].reshape(-1)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some repeats, and half of its 95% interval (Student)."""
    if len(values) < 2:
        return fmean(values), float("nan")
    return fmean(values), STUDENT_95[len(values)] * stdev(values) / len(values) ** 0.5


def rounded(found: Any) -> Any:
    """Every number in it to five digits: more is noise, and nothing to keep."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    if isinstance(found, float):
        return None if math.isnan(found) else float(f"{found:.5g}")
    return found
