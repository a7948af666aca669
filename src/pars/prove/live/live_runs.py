"""
Live runs in a form that the simulator can replay: who came when, with which priority, how long.

    for run in live_runs(Path("bench")): ...       # a policy at a load; repeats are averaged

A ranker's order is not in a result, and neither is that of a policy that hears the engine (a
gateway's, `NAME@1.33x`): their runs are left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pars.prove.report.latency import ended_well
from pars.prove.report.times import RequestTimes, read_result
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import keys_of
from pars.prove.workload.workload import WorkloadRequest

LEAST_REQUESTS = 10
REPLAYABLE = ("fcfs", "oracle", "prompt-length", "reversed")


@dataclass(frozen=True, slots=True)
class LiveRun:
    """
    A policy at a load, to be replayed: what was asked, in which order it queued, what came out.

    Times are the means over the repeats.
    """

    policy: str
    rate: float | None
    num_repeats: int
    requests: list[WorkloadRequest]
    priorities: list[int]
    ttft_s: dict[str, float]
    e2e_s: dict[str, float]


def live_runs(folder: Path) -> Iterator[LiveRun]:
    """The runs of a result of `pars bench`, or of a simulated one, that can be replayed."""
    by_load: dict[tuple[str, float | None], dict[str, list[RequestTimes]]] = {}
    for times in read_result(folder).requests:
        if ended_well(times) and times.policy.partition("@")[0] in REPLAYABLE:
            of_load = by_load.setdefault((times.policy, times.rate), {})
            of_load.setdefault(times.request_id, []).append(times)
    for (policy, rate), answers in by_load.items():
        contender = Contender.parse(policy)
        if len(answers) < LEAST_REQUESTS or contender.policy.hears_engine:
            continue
        due = [  # priorities came from when a request was due, not from when it was sent
            WorkloadRequest(name, it[0].arrival_s, None, it[0].prompt_tokens, it[0].output_tokens)
            for name, it in answers.items()
        ]
        came_s = {name: _mean(map(_came_s, it)) for name, it in answers.items()}
        queued = sorted(
            zip(due, keys_of(contender, due), strict=True),
            key=lambda pair: came_s[pair[0].request_id],
        )
        yield LiveRun(
            policy,
            rate,
            max(map(len, answers.values())),
            [replace(request, arrival_s=came_s[request.request_id]) for request, _ in queued],
            [priority for _, priority in queued],
            {
                name: _mean((it.first_token_s or 0.0) - _came_s(it) for it in repeats)
                for name, repeats in answers.items()
            },
            {
                name: _mean((it.finished_s or 0.0) - _came_s(it) for it in repeats)
                for name, repeats in answers.items()
            },
        )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _came_s(times: RequestTimes) -> float:
    return times.arrival_s if times.sent_s is None else times.sent_s
