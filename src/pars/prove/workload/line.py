"""
A policy before one engine's queue: it gives each request its key, and hears what a gateway hears.

    line = Line(contender.policy, contender.fitted(requests, calibration))
    key = line.key(request, score)          # at its arrival
    line.began(request.request_id)          # its first token came
    line.ended(request.request_id, now_s, answer_tokens=120, prompt_tokens=80)
"""

from collections.abc import Sequence

from pars.prove.workload.contenders import Contender, Estimator
from pars.prove.workload.learning import LearningEstimator
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.demand import PROMPT_TOKEN_WORK, Calibration
from pars.scheduling.keys import EPOCH_S
from pars.scheduling.policies.policy import Place, Policy

START_S = EPOCH_S + 1e9  # Unix time at which a run is taken to begin


class Line:
    """
    One run's queue.

    Args:
        policy: Of which a fresh one is taken.
        estimator: What is known of each request.
    """

    def __init__(self, policy: Policy, estimator: Estimator | LearningEstimator) -> None:
        self._policy = policy.fresh()
        self._estimator = estimator
        self._places: dict[str, Place] = {}

    def key(self, request: WorkloadRequest, score: float | None = None) -> int:
        """Of a request that arrives when it is due."""
        demand = self._estimator.demand(request, score)
        place = self._policy.place(
            demand,
            START_S + request.arrival_s,
            long_tokens=self._estimator.long_tokens,
            is_ordered=self._estimator.is_ordered,
        )
        self._places[request.request_id] = place
        return place.key

    def began(self, request_id: str) -> None:
        """Its first token came."""
        self._policy.began(self._places[request_id])

    def ended(
        self, request_id: str, now_s: float, *, answer_tokens: int | None, prompt_tokens: int
    ) -> None:
        """It is done, or gone; `answer_tokens` None: nobody knows how long it became."""
        place = self._places.pop(request_id)
        self._estimator.learn(request_id, answer_tokens)
        self._policy.ended(place, now_s)
        if answer_tokens is not None:
            true_work = answer_tokens + PROMPT_TOKEN_WORK * prompt_tokens
            self._policy.correct(place, true_work, answer_tokens)


def keys_of(
    contender: Contender,
    requests: Sequence[WorkloadRequest],
    scores: Sequence[float] | None = None,
    calibration: Calibration | None = None,
) -> list[int]:
    """
    The priority of each request, smaller first, by a policy that does not hear the engine.

    Args:
        scores: [num_requests], of the requests' prompts; for `ranker` only.
        calibration: The ranker's, from score to expected tokens.

    Raises:
        ParsError: scores are missing, or no request has the field that it orders by.
    """
    line = Line(contender.policy, contender.fitted(requests, calibration))
    return [
        line.key(request, None if scores is None else float(scores[row]))
        for row, request in enumerate(requests)
    ]
