"""One policy over a workload in a simulated engine: it gives the keys, and hears what comes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import StepTime
from pars.prove.engine.stepping import SteppedEngine
from pars.prove.report.times import RequestTimes, Run
from pars.prove.workload.contenders import Contender, Estimator
from pars.prove.workload.learning import LearningEstimator
from pars.prove.workload.line import Line
from pars.prove.workload.workload import WorkloadRequest


def run_policy(
    requests: Iterable[WorkloadRequest],
    contender: Contender,
    estimator: Estimator | LearningEstimator,
    engine: SteppedEngine,
    step_time: StepTime,
    *,
    scores: Iterable[Any] | None = None,
    rate: float | None = None,
    on_finished: Callable[[RequestTimes], None],
) -> Run:
    """
    Run every request to its end; in memory is what is in flight.

    Args:
        requests: In order of arrival.
        estimator: What the contender knows of them.
        scores: [num_requests], if it orders by scores.
        rate: What the result is named by.
        on_finished: Gets each request's times as it ends.

    Raises:
        ParsError: a request does not fit into the engine, or lacks what it is ordered by.
    """
    line = Line(contender.policy, estimator)

    def keyed() -> Iterator[tuple[WorkloadRequest, int]]:
        told: Iterable[Any] = iter(lambda: None, 0) if scores is None else scores  # without end
        for request, score in zip(requests, told, strict=False):
            yield request, line.key(request, None if score is None else float(score))

    def ended(times: RequestTimes) -> None:
        line.ended(
            times.request_id,
            times.finished_s or 0.0,
            answer_tokens=times.output_tokens,
            prompt_tokens=times.prompt_tokens,
        )
        on_finished(times)

    return simulate(
        keyed(),
        engine,
        step_time,
        policy=str(contender),
        rate=rate,
        on_finished=ended,
        on_first_token=lambda request_id, _now_s: line.began(request_id),
    )
