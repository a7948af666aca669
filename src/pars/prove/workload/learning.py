"""
What the ranker that learns while it serves knows of a workload's requests: little, then more.

A request is expected something of at its arrival, by the answers that ended before it; its own
answer is learned when it ends, as a server has it. At first it hears the bundled ranker. Where its
order is no better than chance the queue is first come, first served.
"""

from pars.errors import ParsError
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.online.bundled import BundledWord
from pars.ranking.online.ranker import Guess, OnlineRanker
from pars.request.conversation import split_note
from pars.request.features import Signals
from pars.request.prompts import Prompt, Request
from pars.scheduling.demand import Demand, demand_of


class LearningEstimator:
    """
    One run's ranker, which has learned nothing yet.

    Args:
        hears_bundled: The bundled ranker is asked at first, as the gateway does by default.

    Attributes:
        ranker: The same.
    """

    def __init__(self, *, hears_bundled: bool = True) -> None:
        self.ranker = OnlineRanker(b"a simulation keeps nothing", begins_ordered=hears_bundled)
        self._bundled = BundledWord() if hears_bundled else None
        self._guesses: dict[str, tuple[Guess, int | None]] = {}

    @property
    def is_ordered(self) -> bool:
        """Whether to order by it, by now."""
        return self.ranker.is_useful

    @property
    def long_tokens(self) -> float:
        """From here on an answer counts as long."""
        return self.ranker.long_tokens

    def demand(self, request: WorkloadRequest, score: float | None = None) -> Demand:
        """
        What the request is expected to take, by now.

        Raises:
            ParsError: it has no prompt.
        """
        if request.prompt is None:
            raise ParsError(
                f"request {request.request_id} has no prompt, so nothing can be learned: policy"
                " online needs a workload made from --records"
            )
        signals = signals_of_workload(request)
        word = 0.0 if self._bundled is None else self._bundled.for_now(self.ranker, signals)
        guess = self.ranker.expect(signals, word)
        self._guesses[request.request_id] = guess, request.max_tokens
        expected = guess.tokens if self.is_ordered else self.ranker.neutral_tokens
        prompt = Prompt(request.prompt, request.prompt_tokens)
        demand = demand_of(Request((prompt,), request.max_tokens), [expected])
        return demand if self.is_ordered else demand._replace(cost=self.ranker.neutral_tokens)

    def learn(self, request_id: str, answer_tokens: int | None) -> None:
        """The request ended; None: nobody knows how long its answer became."""
        guess, max_tokens = self._guesses.pop(request_id)
        if answer_tokens is None:
            return
        is_cut = max_tokens is not None and answer_tokens >= max_tokens
        self.ranker.learn(guess, answer_tokens, is_lower_bound=is_cut)
        if self.ranker.gauge.is_due:
            self.ranker.gauge.judge()


def signals_of_workload(request: WorkloadRequest) -> Signals:
    """What a server would know of the request at its arrival."""
    before, text = split_note(request.prompt or "")
    return Signals(text, tuple(request.facts or ()), before, request.prompt_tokens)
