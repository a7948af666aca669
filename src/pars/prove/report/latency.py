"""
From every request's times to the figures: how long people wait, and how much is done.

    for row in figures(result, limits={"ttft_s": 0.5, "ntpot_s": 0.1}):
        print(row.policy, row.rate, row.measures["ntpot_s"].mean)

Delays count from when a request was *due*, so a client that is late cannot flatter a slow server
(Schroeder, Wierman, Harchol-Balter 2006, "Open versus closed: a cautionary tale"):

    ttft_s   first token - due           tpot_s   (end - first token) / (tokens - 1)
    e2e_s    end - due                   ntpot_s  e2e / tokens: "normalized latency" in vLLM's paper
    itl_s    between two tokens                   (arXiv:2309.06180), "per-token latency" in PARS's

A request that failed is counted by the kind of its error and enters no other figure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pars.prove.report.times import RequestTimes, Result, Run, bucket_s

FloatArray = NDArray[np.float64]

MEASURES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "ntpot_s")
THIRDS = ("short", "middle", "long")


@dataclass(frozen=True, slots=True)
class Spread:
    """
    One measure over all requests that ended well, in seconds.

    Attributes:
        of_each_repeat: The mean of each repeat alone: a noisy machine shows here.
    """

    mean: float
    p50: float
    p90: float
    p99: float
    worst: float
    of_each_repeat: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Queue:
    """The engine's own numbers, over all looks at it while requests were in flight."""

    mean_waiting: float
    most_waiting: int
    mean_running: float
    most_running: int
    share_queued: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    One policy at one load, its repeats together.

    Attributes:
        errors: Failed requests by kind.
        measures: By name of `MEASURES`; without those that no request has (one token has no TPOT).
        longest_wait_s: From due to first token.
        throughput_rps, throughput_tokens_s: Of what ended well, over the runs' durations.
        goodput_rps, share_good: Of requests that kept every limit (DistServe, arXiv:2401.09670,
            section 2); None without limits. A failed one counts as not kept.
        thirds: Means of each measure for the shortest, middle and longest third by output tokens.
        num_preemptions: None where unknown.
        queue: None where the engine told nothing.
        mean_late_s, most_late_s: How late the client itself sent; counted into the delays.
    """

    policy: str
    rate: float | None
    num_repeats: int
    num_requests: int
    num_ended_well: int
    errors: Mapping[str, int]
    measures: Mapping[str, Spread]
    longest_wait_s: float | None
    duration_s: float
    throughput_rps: float
    throughput_tokens_s: float
    goodput_rps: float | None
    share_good: float | None
    thirds: Mapping[str, Mapping[str, float]]
    num_preemptions: int | None
    queue: Queue | None
    mean_late_s: float | None
    most_late_s: float | None
    largest_stall_s: float | None
    scoring_s: float | None
    interrupted: bool


def columns(requests: Sequence[RequestTimes]) -> dict[str, FloatArray]:
    """
    Arrays [num_requests] by measure, and `tokens`, of requests that ended well.

    What one request lacks (TPOT of one token) is nan.
    """
    due = _array(r.arrival_s for r in requests)
    first = _array(r.first_token_s for r in requests)
    end = _array(r.finished_s for r in requests)
    tokens = _array(r.output_tokens for r in requests)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(tokens > 1, (end - first) / (tokens - 1), np.nan)
    return {
        "ttft_s": first - due,
        "tpot_s": tpot,
        "e2e_s": end - due,
        "ntpot_s": (end - due) / tokens,
        "longest_itl_s": _array(r.longest_itl_s for r in requests),
        "tokens": tokens,
    }


def _array(values: Iterable[float | None]) -> FloatArray:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def ended_well(request: RequestTimes) -> bool:
    return (
        request.error is None
        and request.output_tokens > 0
        and request.first_token_s is not None
        and request.finished_s is not None
    )


def figures(result: Result, limits: Mapping[str, float] | None = None) -> list[Figures]:
    """The figures of every policy and load, by load and in the policies' order."""
    requests: dict[tuple[str, float | None], list[RequestTimes]] = {}
    runs: dict[tuple[str, float | None], list[Run]] = {}
    for run in result.runs:
        runs.setdefault((run.policy, run.rate), []).append(run)
    for request in result.requests:
        requests.setdefault((request.policy, request.rate), []).append(request)
    keys = list(dict.fromkeys([*runs, *requests]))
    place = {policy: i for i, policy in enumerate(result.policies())}
    keys.sort(key=lambda key: (key[1] or 0.0, place[key[0]]))
    bounds = _third_bounds(result.requests)
    return [
        _figures(key, requests.get(key, []), runs.get(key, []), limits or {}, bounds)
        for key in keys
    ]


def _third_bounds(requests: Sequence[RequestTimes]) -> FloatArray:
    """Output tokens at one and two thirds, over all policies, so that they share the bounds."""
    lengths = [r.output_tokens for r in requests if ended_well(r)]
    return np.percentile(lengths, [100 / 3, 200 / 3]) if lengths else np.zeros(2)


def _figures(
    key: tuple[str, float | None],
    requests: list[RequestTimes],
    runs: list[Run],
    limits: Mapping[str, float],
    bounds: FloatArray,
) -> Figures:
    good = [request for request in requests if ended_well(request)]
    table = columns(good)
    repeats = np.array([request.repeat for request in good])
    duration_s = _duration_s(requests, runs)
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    kept = np.ones(len(good), dtype=bool)
    for name, limit in limits.items():
        kept &= ~(table[name] > limit)  # a request without the measure cannot break its limit
    measures = {
        name: _spread(table[name], repeats) for name in table if name in MEASURES and len(good)
    } | (_itl(good, runs) if good else {})
    late = [r.sent_s - r.arrival_s for r in requests if r.sent_s is not None]
    known = {run.repeat for run in runs} | {request.repeat for request in requests}
    return Figures(
        policy=key[0],
        rate=key[1],
        num_repeats=len(known),
        num_requests=len(requests),
        num_ended_well=len(good),
        errors=dict(Counter(r.error or "no answer" for r in requests if not ended_well(r))),
        measures={name: spread for name, spread in measures.items() if spread is not None},
        longest_wait_s=float(table["ttft_s"].max()) if good else None,
        duration_s=duration_s,
        throughput_rps=len(good) * per_s,
        throughput_tokens_s=float(table["tokens"].sum()) * per_s,
        goodput_rps=float(kept.sum()) * per_s if limits else None,
        share_good=float(kept.sum()) / max(len(requests), 1) if limits else None,
        thirds=_thirds(table, bounds),
        num_preemptions=_preemptions(requests, runs),
        queue=_queue(runs),
        mean_late_s=float(np.mean(late)) if late else None,
        most_late_s=max(late) if late else None,
        largest_stall_s=_largest(run.largest_stall_s for run in runs),
        scoring_s=_largest(run.scoring_s for run in runs),
        interrupted=len(runs) < len(known) or any(run.interrupted for run in runs),
    )


def _duration_s(requests: Sequence[RequestTimes], runs: Sequence[Run]) -> float:
    """Of all repeats together; of a run that did not end, up to its last answer."""
    of_runs = {run.repeat: run.duration_s for run in runs}
    last: dict[int, float] = {}
    for request in requests:
        if request.repeat not in of_runs and request.finished_s is not None:
            last[request.repeat] = max(last.get(request.repeat, 0.0), request.finished_s)
    return sum(of_runs.values()) + sum(last.values())


def _spread(values: FloatArray, repeats: NDArray[np.int64]) -> Spread | None:
    known = ~np.isnan(values)
    if not known.any():
        return None
    p50, p90, p99, worst = np.percentile(values[known], [50, 90, 99, 100]).tolist()
    means = [float(values[known & (repeats == n)].mean()) for n in np.unique(repeats[known])]
    return Spread(float(values[known].mean()), p50, p90, p99, worst, tuple(means))


def _itl(good: Sequence[RequestTimes], runs: Sequence[Run]) -> dict[str, Spread | None]:
    """From the runs' counts by bucket: right within 1%; the worst one is exact."""
    totals: Counter[int] = Counter()
    means = []
    for run in runs:
        if run.itl_counts:
            totals.update(run.itl_counts)
            sums = [bucket_s(bucket) * n for bucket, n in run.itl_counts.items()]
            means.append(sum(sums) / sum(run.itl_counts.values()))
    if not totals:
        return {}
    buckets = sorted(totals)
    middles = np.array([bucket_s(bucket) for bucket in buckets])
    counts = np.array([totals[bucket] for bucket in buckets])
    upto = np.cumsum(counts)
    p50, p90, p99 = middles[np.searchsorted(upto, np.array([0.5, 0.9, 0.99]) * upto[-1])].tolist()
    worst = _largest(request.longest_itl_s for request in good)
    mean = float((middles * counts).sum() / upto[-1])
    worst = float(middles[-1]) if worst is None else worst
    return {"itl_s": Spread(mean, p50, p90, p99, worst, tuple(means))}


def _thirds(table: Mapping[str, FloatArray], bounds: FloatArray) -> dict[str, dict[str, float]]:
    third = np.searchsorted(bounds, table["tokens"], side="left")
    found: dict[str, dict[str, float]] = {}
    for index, name in enumerate(THIRDS):
        of_third = third == index
        if of_third.any():
            found[name] = {"num_requests": float(of_third.sum())} | {
                measure: float(np.nanmean(table[measure][of_third]))
                for measure in MEASURES
                if measure in table and not np.isnan(table[measure][of_third]).all()
            }
    return found


def _preemptions(requests: Sequence[RequestTimes], runs: Sequence[Run]) -> int | None:
    of_runs = [run.num_preemptions for run in runs if run.num_preemptions is not None]
    of_requests = [r.num_preemptions for r in requests if r.num_preemptions is not None]
    return sum(of_runs) if of_runs else sum(of_requests) if of_requests else None


def _queue(runs: Sequence[Run]) -> Queue | None:
    busy = [it for run in runs for it in run.queue if it.num_running or it.num_waiting]
    if not any(run.queue for run in runs):
        return None
    waiting = np.array([it.num_waiting for it in busy] or [0])
    running = np.array([it.num_running for it in busy] or [0])
    return Queue(
        mean_waiting=float(waiting.mean()),
        most_waiting=int(waiting.max()),
        mean_running=float(running.mean()),
        most_running=int(running.max()),
        share_queued=float((waiting > 0).mean()),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
