"""
`pars simulate --fit`: the four coefficients of a step's time, out of a live run's times.

    fitted = fit_step_time(Path("bench"), EnginePreset.named("h100-8b"))
    fitted.preset.write(Path("engine.json"))

A run's requests are replayed in the simulator. Once it is settled which steps a request was in the
engine for, its time is a sum over them, linear in the coefficients: four unknowns, two equations a
request (first token, end), solved by non-negative least squares. Other coefficients mean other
steps, so this is repeated, and the best is kept. Repeats of a run are averaged request by request
first: the busiest moments of a noisy machine are not what is fitted to.
"""

import math
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pars.errors import DataError
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import Loads, simulate
from pars.prove.engine.step_time import EnginePreset, StepTime
from pars.prove.live.live_runs import LEAST_REQUESTS, REPLAYABLE, LiveRun, live_runs
from pars.prove.report.times import RequestTimes

FloatArray = NDArray[np.float64]

MOST_ROUNDS, SCALE_ROUNDS = 25, 8
NAMES = ("base_s", "prefill_token_s", "decode_seq_s", "kv_token_s")


@dataclass(frozen=True, slots=True)
class RunFit:
    """Seconds per output token (NTPOT) of a policy at a load, live, and of its replay."""

    policy: str
    rate: float | None
    num_repeats: int
    num_requests: int
    mean: float
    p90: float
    replayed_mean: float
    replayed_p90: float

    @property
    def error(self) -> float:
        """The larger of both relative errors."""
        return max(abs(self.replayed_mean / self.mean - 1), abs(self.replayed_p90 / self.p90 - 1))


@dataclass(frozen=True, slots=True)
class Fitted:
    """The preset that fits, and how well."""

    preset: EnginePreset
    runs: list[RunFit]

    def __str__(self) -> str:
        values = asdict(self.preset.step_time)
        lines = ["  ".join(f"{name} {value:.4g}" for name, value in values.items())]
        lines.append("NTPOT, s: measured and replayed, mean and p90")
        for it in self.runs:
            at = "" if it.rate is None else f" at {it.rate:g}/s"
            mean, p90 = it.replayed_mean / it.mean - 1, it.replayed_p90 / it.p90 - 1
            lines.append(
                f"  {it.policy}{at} ({it.num_requests} requests, {it.num_repeats} repeats):"
                f" mean {it.mean:.4g} {it.replayed_mean:.4g} ({mean:+.1%}),"
                f" p90 {it.p90:.4g} {it.replayed_p90:.4g} ({p90:+.1%})"
            )
        return "\n".join(lines)


def fit_step_time(folder: Path, preset: EnginePreset) -> Fitted:
    """
    Fit a step's time to a result of `pars bench`; the engine's limits are `preset`'s.

    Runs of policies that a ranker made are left out: their order is not in the result.

    Raises:
        DataError: no result is there, or it has no run to go by.
    """
    runs = list(live_runs(folder))
    if not runs:
        problem = (
            f"has no run to fit to: it takes {LEAST_REQUESTS} answers under one of"
            f" {', '.join(REPLAYABLE)}"
        )
        raise DataError.at(folder, problem)
    step_time = _first_guess(runs)
    best, best_fits, best_error = step_time, list[RunFit](), math.inf
    for number in range(MOST_ROUNDS + SCALE_ROUNDS):
        rows, times_s, fits = _replayed(runs, preset, step_time)
        error = float(np.mean([it.error for it in fits]))
        if error < best_error:
            best, best_fits, best_error = step_time, fits, error
        elif number > MOST_ROUNDS:
            break  # scaling helps no more
        if number < MOST_ROUNDS:
            found = _non_negative_least_squares(rows, times_s)
            # Half way: a full step changes the schedule so much that it may swing to and fro.
            step_time = _of(found + _values(step_time), 0.5)
        else:  # least squares lean to the shorter of noisy times: bring the means together
            step_time = _of(_values(best), _mean_ratio(best_fits))
    worst = max(it.error for it in best_fits)
    source = f"fitted to {folder.name}: {len(runs)} policies and loads, NTPOT within {worst:.0%}"
    fitted = replace(preset, name=f"fitted-{folder.name}", step_time=best, source=source)
    return Fitted(fitted, best_fits)


def _values(step_time: StepTime) -> FloatArray:
    return np.array([getattr(step_time, name) for name in NAMES])


def _of(values: FloatArray, factor: float) -> StepTime:
    return StepTime(**dict(zip(NAMES, (values * factor).tolist(), strict=True)))


def _mean_ratio(fits: list[RunFit]) -> float:
    """Measured over replayed, in the middle between all policies' means and p90s."""
    ratios = [(it.mean / it.replayed_mean, it.p90 / it.replayed_p90) for it in fits]
    return float(np.exp(np.log(ratios).mean()))


def _first_guess(runs: list[LiveRun]) -> StepTime:
    """Half of a token's time for the step, half shared by those that decode together."""
    per_token, together = [], []
    for run in runs:
        decode_s = {
            it.request_id: run.e2e_s[it.request_id] - run.ttft_s[it.request_id]
            for it in run.requests
        }
        per_token += [
            decode_s[it.request_id] / (it.output_tokens - 1)
            for it in run.requests
            if it.output_tokens > 1
        ]
        span_s = max(it.arrival_s + run.e2e_s[it.request_id] for it in run.requests)
        together.append(sum(decode_s.values()) / max(span_s, 1e-9))
    token_s = float(np.median(per_token)) if per_token else 0.01
    return StepTime(
        base_s=max(token_s / 2, 1e-9),
        prefill_token_s=token_s / 100,
        decode_seq_s=token_s / 2 / max(1.0, float(np.mean(together))),
        kv_token_s=0.0,
    )


def _replayed(
    runs: list[LiveRun], preset: EnginePreset, step_time: StepTime
) -> tuple[FloatArray, FloatArray, list[RunFit]]:
    """The equations [2 · num_requests, 4], their right sides, and how well the replay fits."""
    rows: list[list[float]] = []
    times_s: list[float] = []
    fits = []
    for run in runs:
        replayed: list[RequestTimes] = []
        loads: dict[str, Loads] = {}
        simulate(
            zip(run.requests, run.priorities, strict=True),
            FastEngine(preset.limits),
            step_time,
            policy=run.policy,
            on_finished=replayed.append,
            on_loads=loads.__setitem__,
        )
        for it in run.requests:
            e2e_s, load = run.e2e_s[it.request_id], loads[it.request_id]
            before_s = load.seen_s - it.arrival_s  # the rest of a step that was going on
            for at, total_s in (
                (load.at_first_token, run.ttft_s[it.request_id]),
                (load.at_end, e2e_s),
            ):
                # Relative to the end-to-end time: long and short requests count alike.
                rows.append([(a - b) / e2e_s for a, b in zip(at, load.at_arrival, strict=True)])
                times_s.append((total_s - before_s) / e2e_s)
        fits.append(_run_fit(run, replayed))
    return np.array(rows), np.array(times_s), fits


def _run_fit(run: LiveRun, replayed: list[RequestTimes]) -> RunFit:
    tokens = {it.request_id: it.output_tokens for it in run.requests}
    live = np.array([run.e2e_s[request_id] / count for request_id, count in tokens.items()])
    again = np.array(
        [((it.finished_s or 0.0) - it.arrival_s) / it.output_tokens for it in replayed]
    )
    return RunFit(
        run.policy,
        run.rate,
        run.num_repeats,
        len(live),
        float(live.mean()),
        float(np.percentile(live, 90)),
        float(again.mean()),
        float(np.percentile(again, 90)),
    )


def _non_negative_least_squares(rows: FloatArray, right: FloatArray) -> FloatArray:
    """
    The best of all solutions that use some of the columns and have no negative coefficient.

    Four columns make fifteen choices; one of them is the optimum (Lawson and Hanson 1974, ch. 23).
    """
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    best, least = np.array([1e-9, 0.0, 0.0, 0.0]), math.inf
    for size in range(1, rows.shape[1] + 1):
        for columns in combinations(range(rows.shape[1]), size):
            part = rows[:, columns] / scale[list(columns)]
            solution, *_ = np.linalg.lstsq(part, right, rcond=None)
            missed = float(np.sum((part @ solution - right) ** 2))
            moves = bool(set(columns) & {0, 2})  # else a step of decoding would take no time
            if (solution >= 0).all() and moves and missed < least * (1 - 1e-12):
                best, least = np.zeros(rows.shape[1]), missed
                best[list(columns)] = solution / scale[list(columns)]
    return best
