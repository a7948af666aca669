"""
How long answers are expected to be: by a ranker, by the one that learns, whichever is worth it.

A ranker that the user gave is asked for each request, and what it says is one signal more for the
ranker that learns. Without one the bundled ranker orders, until enough is learned to order better
than chance without it. A ranker that does harm is disabled meanwhile, and the queue is first
come, first served.
"""

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pars.errors import one_line
from pars.outcomes.learner import Learner
from pars.outcomes.metrics import DriftMetrics, LearnMetrics, ServeMetrics
from pars.outcomes.ranker_judge import RankerJudge
from pars.outcomes.records import Outcome
from pars.ranking.batching import Batcher, QueueFull
from pars.ranking.live_ranker import Expectation, LiveRanker, keep_fresh
from pars.ranking.online.ranker import Guess, OnlineRanker
from pars.ranking.ranker import bundled_ranker
from pars.ranking.scorers import is_object_name
from pars.scheduling.demand import Calibration
from pars.serving.asked import Asked
from pars.serving.settings import Settings

# vLLM shows what its own loggers say, so that is where to speak inside it.
log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")

ONLINE = "online"  # the ranker that learns, as outcomes name it
SECONDS_BETWEEN_WARNINGS = 60.0


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
        ranker: The one that is asked; it may hold none.
        learner: The one that learns; None: none does.
        observers: Of each outcome.
    """

    def __init__(
        self, settings: Settings, metrics: ServeMetrics, ranker: LiveRanker | None = None
    ) -> None:
        self.ranker = ranker or LiveRanker(settings.ranker_folder)
        self.learner: Learner | None = None
        self.observers: list[Callable[[Outcome], None]] = []
        self._metrics = metrics
        self._settings = settings
        self._is_own_ranker = ranker is not None or settings.ranker not in ("", "none")
        self._has_ranker = settings.ranker != "none" or settings.learn == "off"
        self._judge: RankerJudge | None = None
        self._quiet_until_s = 0.0
        self._batcher = Batcher(
            self.ranker.expect,
            max_batch_s=settings.budget_ms / 2000,  # so that `_scored` sees the scorer get on
            max_queued_prompts=settings.max_queued_prompts,
        )
        if self._has_ranker:
            self._first_load()
        if settings.learn == "on":
            self.learner = Learner(settings.state_folder, LearnMetrics(metrics.registry))
        if settings.drift and self._has_ranker:
            shown = DriftMetrics(metrics.registry)
            self._judge = RankerJudge(self.ranker, settings.drift_settings(), shown)
            self.observers.append(self._judge.observe)

    @property
    def has_ranker(self) -> bool:
        """Whether a ranker is asked, beside the one that learns."""
        return self._has_ranker

    @property
    def can_order(self) -> bool:
        """Whether requests are ordered, or will be by themselves."""
        return self.learner is not None or self.ranker.is_loaded

    @property
    def tau_b(self) -> float:
        """Between what was predicted lately and what came; nan: not known."""
        if self.learner is not None:
            return self.learner.ranker.gauge.tau_b.value
        estimate = None if self._judge is None else self._judge.drift.tau_b
        return math.nan if estimate is None else estimate.value

    async def predict(self, asked: Asked, *, is_trusted: bool = False) -> Prediction:
        """
        What is expected of the request's answers. Never raises: scoring is a favour.

        Args:
            is_trusted: Its place is told by somebody whose word counts; no ranker is asked.
        """
        expectations: list[Expectation] = []
        reason = "trusted" if is_trusted else asked.problem
        is_ready = self.learner is not None and self.learner.is_ready
        if not reason and (self._is_own_ranker or (self._has_ranker and not is_ready)):
            reason, expectations = await self._ask_ranker(asked.texts)
        reason = reason or "scored"
        guess = self._guess(asked, expectations)
        if is_ready and guess is not None and not is_trusted:
            reason = "scored"
        is_ordered = is_ready or (self._has_ranker and reason != "drifted")
        if reason in ("scored", "no_text") and not is_ordered:
            reason = "learning"
        if self.learner is None or not is_ready:
            scale: Calibration | OnlineRanker = self.ranker.calibration
        else:
            scale = self.learner.ranker
            if guess is not None:
                tokens = [guess.tokens] * len(asked.request.prompts)
                told = (ONLINE, guess.log_tokens, guess.tokens)
                return Prediction(reason, tokens, is_ordered, scale, *told, guess)
        tokens = _spread(asked, expectations, scale.neutral_tokens)
        if not expectations:
            return Prediction(reason, tokens, is_ordered, scale, guess=guess)
        first = expectations[0]
        told = (first.ranker, first.score, first.tokens)
        return Prediction(reason, tokens, is_ordered, scale, *told, guess)

    def load(self, name: str) -> None:
        """
        Ask another ranker from now on: a folder, module:object, or "" for the bundled one. Blocks.

        Raises:
            RankerError: it cannot be loaded; the one before stays.
        """
        self.ranker.load_from(Path(name) if name not in ("", "none") else bundled_ranker())
        self._is_own_ranker = name not in ("", "none")
        self._show_ranker()
        if self._judge is not None:
            self._judge.start_afresh()

    async def load_again(self) -> str:
        """
        Load the ranker's folder once more, changed or not; what it is now, for people. An object
        of the user's stays: Python imports a module once.

        Raises:
            RankerError: it cannot be loaded; the one before stays.
        """
        if is_object_name(str(self.ranker.folder)):
            return f"{self.ranker.folder} is code, and stays until a restart"
        try:
            await asyncio.to_thread(self.ranker.refresh, again=True)
        except Exception:
            self._on_load("failed")
            raise
        self._on_load("loaded")
        ranker = self.ranker
        return f"{ranker.model_name} {ranker.fingerprint} in {ranker.folder}"

    def learn(self, guess: Guess | None, outcome: Outcome) -> None:
        """An answer is known, of which `guess` was expected."""
        if self.learner is not None and guess is not None:
            self.learner.learn(guess, outcome)

    def warn(self, error: Exception) -> None:
        """Say now and then why requests go on unscored."""
        now_s = time.monotonic()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + SECONDS_BETWEEN_WARNINGS
            told = one_line(error)
            log.warning("requests go on unscored: %s: %s", type(error).__name__, told)

    def start(self) -> list[Coroutine[Any, Any, None]]:
        """Begin to score; what is to run beside the server, until cancelled."""
        self._batcher.start()
        upkeep = []
        if self._has_ranker:
            upkeep.append(keep_fresh(self.ranker, self._settings.reload_s, self._on_load))
        if self.learner is not None:
            upkeep.append(self.learner.keep_learning())
        if self._judge is not None:
            upkeep.append(self._judge.keep_judging())
        return upkeep

    async def close(self, max_s: float) -> None:
        """Score no longer, and keep what was learned; a scorer that hangs is left after `max_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._batcher.close(), max_s)
        if self.learner is not None:
            await asyncio.to_thread(self.learner.close)

    async def _ask_ranker(self, texts: list[str]) -> tuple[str, list[Expectation]]:
        """
        What the ranker expects of the first `max_prompts` texts, within the bounds on time and
        work; or why it says nothing.

        It is shown whole texts, as in training: it reads a bounded part of one by itself.
        """
        try:
            asked = self._batcher.submit(texts[: self._settings.max_prompts])
            expectations = await self._scored(asked)
        except TimeoutError:
            return "over_budget", []
        except QueueFull:
            return "queue_full", []
        except Exception as error:
            self.warn(error)
            return ("scorer_failed" if self.ranker.is_loaded else "no_ranker"), []
        is_useful = self._judge is None or self._judge.is_useful
        return ("scored" if is_useful else "drifted"), expectations

    async def _scored(self, scores: asyncio.Future[list[Expectation]]) -> list[Expectation]:
        """
        The scores, waited for while the scorer gets on: not beyond a budget without a batch done.

        A burst that takes the scorer longer than the budget is when the order matters most, and
        the engine's queue is long then; so a scorer that works is waited for, up to max_wait_ms.
        """
        budget_s = self._settings.budget_ms / 1000
        left_s = max(budget_s, self._settings.max_wait_ms / 1000)
        num_batches = -1
        try:
            while left_s > 0 and self.ranker.num_batches != num_batches:
                num_batches = self.ranker.num_batches
                await asyncio.wait((scores,), timeout=min(budget_s, left_s))
                if scores.done():
                    return scores.result()
                left_s -= budget_s
            raise TimeoutError
        finally:
            scores.cancel()  # drops what is still queued; nothing if they are there

    def _guess(self, asked: Asked, expectations: list[Expectation]) -> Guess | None:
        if self.learner is None or asked.signals is None:
            return None
        try:
            score = expectations[0].score if expectations else None
            return self.learner.expect(asked.signals, score)
        except Exception as error:
            self.warn(error)
            return None

    def _first_load(self) -> None:
        try:
            self.ranker.refresh()
            self._show_ranker()
        except Exception as error:  # serving goes on; keep_fresh picks the ranker up when it comes
            log.error("no request is scored until the ranker loads: %s", error)
            self._metrics.reloads.labels("failed").inc()

    def _on_load(self, result: str) -> None:
        self._metrics.reloads.labels(result).inc()
        if result == "loaded":
            self._show_ranker()
            if self._judge is not None:
                self._judge.start_afresh()

    def _show_ranker(self) -> None:
        if self.ranker.is_loaded:
            self._metrics.serve(self.ranker.model_name, self.ranker.fingerprint)


def _spread(asked: Asked, expectations: list[Expectation], neutral_tokens: float) -> list[float]:
    """Of each prompt: texts beyond those scored get the mean of these, others a middle answer."""
    tokens = [it.tokens for it in expectations]
    rest = sum(tokens) / len(tokens) if tokens else neutral_tokens
    scored = iter(tokens)
    return [next(scored, rest) if it.text else neutral_tokens for it in asked.request.prompts]
