"""
How long answers are expected to be: by the ranker that learns, or by the offline one alone.

Whatever the offline ranker says is one signal more for the one that learns. The bundled one is
asked until a thousand answers are learned: up to thirty its word stands alone, then it counts for
less with every answer. A ranker of the user's own is asked for each request, and orders alone
until the one that learns is better than chance. Where neither is, the queue is first come, first
served.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pars.outcomes.learner import Learner
from pars.outcomes.metrics import LearnMetrics, ServeMetrics
from pars.outcomes.records import Outcome
from pars.ranking.live_ranker import Expectation, LiveRanker
from pars.ranking.online.ranker import Guess, OnlineRanker
from pars.scheduling.demand import Calibration
from pars.serving.asked import Asked
from pars.serving.asked_ranker import AskedRanker
from pars.serving.settings import Settings

ONLINE = "online"  # the ranker that learns, as outcomes name it


@dataclass(frozen=True, slots=True)
class Prediction:
    """
    What is expected of a request's answers.

    Attributes:
        reason: How that came about, as counted in pars_decisions_total.
        tokens: Of one answer to each prompt.
        is_ordered: Whether to order by it; else the request stands by its arrival.
        scale: Who says what is a middle and a long answer.
        ranker, score, first_tokens: Who said it, in its own scale and in tokens, of the first
            prompt; None: nobody.
        guess: Of the ranker that learns, used or not.
    """

    reason: str
    tokens: list[float]
    is_ordered: bool
    scale: Calibration | OnlineRanker
    ranker: str | None = None
    score: float | None = None
    first_tokens: float | None = None
    guess: Guess | None = None


class Predictor:
    """
    The rankers of one server process. On one event loop.

    Args:
        ranker: Instead of the one that `settings` name.

    Attributes:
        offline: The one that learns nothing.
        learner: The one that learns; None: none does.
    """

    def __init__(
        self, settings: Settings, metrics: ServeMetrics, ranker: LiveRanker | None = None
    ) -> None:
        self.offline = AskedRanker(settings, metrics, ranker)
        self.learner: Learner | None = None
        if settings.learn == "on":
            self.learner = Learner(
                settings.state_folder,
                LearnMetrics(metrics.registry),
                begins_ordered=self._begins_ordered(),
            )

    @property
    def observers(self) -> list[Callable[[Outcome], None]]:
        """Of each outcome."""
        return self.offline.observers

    @property
    def can_order(self) -> bool:
        """Whether requests are ordered, or will be by themselves."""
        return self.learner is not None or self.offline.live.is_loaded

    @property
    def tau_b(self) -> float:
        """Between what was predicted lately and what came; nan: not known."""
        if self.learner is not None:
            return self.learner.ranker.gauge.tau_b.value
        told = self.offline.tau_b
        return math.nan if told is None else told

    async def predict(self, asked: Asked, *, is_trusted: bool = False) -> Prediction:
        """
        What is expected of the request's answers. Never raises: scoring is a favour.

        Args:
            is_trusted: Its place is told by somebody whose word counts; no ranker is asked.
        """
        expectations: list[Expectation] = []
        reason = "trusted" if is_trusted else asked.problem
        if not reason and self._offline_share > 0:
            reason, expectations = await self.offline.ask(asked.texts)
        reason = reason or "scored"
        learner = self.learner
        guess = None if learner is None else self._guess(learner, asked, expectations)
        orders_alone = self.offline.is_there and (learner is None or self.offline.is_own)
        if learner is not None and (learner.is_ready or not orders_alone):
            return _by_learner(learner, asked, reason, guess)
        return self._by_offline(asked, reason, expectations, guess)

    def learn(self, guess: Guess | None, outcome: Outcome) -> None:
        """An answer is known, of which `guess` was expected."""
        if self.learner is not None and guess is not None:
            self.learner.learn(guess, outcome)

    def start(self) -> list[Coroutine[Any, Any, None]]:
        """Begin to score; what is to run beside the server, until cancelled."""
        upkeep = self.offline.start()
        return upkeep if self.learner is None else [*upkeep, self.learner.keep_learning()]

    async def close(self, max_s: float) -> None:
        """Score no longer, and keep what was learned; a scorer that hangs is left after `max_s`."""
        await self.offline.close(max_s)
        if self.learner is not None:
            await asyncio.to_thread(self.learner.close)

    def _begins_ordered(self) -> bool | None:
        """A user's own ranker orders until the other is proven; without any, memory is enough."""
        return not self.offline.is_own if self.offline.is_there else None

    @property
    def _offline_share(self) -> float:
        """What the offline ranker's word counts for; 0: it is not asked."""
        if not self.offline.is_there:
            return 0.0
        if self.learner is None or self.offline.is_own:
            return 1.0
        return self.learner.ranker.bundled_share

    def _guess(
        self, learner: Learner, asked: Asked, expectations: list[Expectation]
    ) -> Guess | None:
        if asked.signals is None:
            return None
        try:
            word = expectations[0].standard if expectations else 0.0
            return learner.ranker.expect(asked.signals, word * self._offline_share)
        except Exception as error:
            self.offline.warn(error)
            return None

    def _by_offline(
        self, asked: Asked, reason: str, expectations: list[Expectation], guess: Guess | None
    ) -> Prediction:
        scale, is_ordered = self.offline.live.calibration, reason != "drifted"
        tokens = _spread(asked, expectations, scale.neutral_tokens)
        if not expectations:
            return Prediction(reason, tokens, is_ordered, scale, guess=guess)
        first = expectations[0]
        told = (first.ranker, first.score, first.tokens)
        return Prediction(reason, tokens, is_ordered, scale, *told, guess)


def _by_learner(learner: Learner, asked: Asked, reason: str, guess: Guess | None) -> Prediction:
    is_ready, scale = learner.is_ready, learner.ranker
    if guess is not None and reason != "trusted" and (is_ready or reason == "drifted"):
        reason = "scored"
    if reason in ("scored", "no_text") and not is_ready:
        reason = "learning"
    num_prompts = len(asked.request.prompts)
    if guess is None:
        return Prediction(reason, [scale.neutral_tokens] * num_prompts, is_ready, scale)
    told = (ONLINE, guess.log_tokens, guess.tokens)
    return Prediction(reason, [guess.tokens] * num_prompts, is_ready, scale, *told, guess)


def _spread(asked: Asked, expectations: list[Expectation], neutral_tokens: float) -> list[float]:
    """Of each prompt: texts beyond those scored get the mean of these, others a middle answer."""
    tokens = [it.tokens for it in expectations]
    rest = sum(tokens) / len(tokens) if tokens else neutral_tokens
    scored = iter(tokens)
    return [next(scored, rest) if it.text else neutral_tokens for it in asked.request.prompts]
