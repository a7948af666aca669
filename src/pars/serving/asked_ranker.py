"""
The offline ranker of one server process: loaded, loaded again, judged, and asked within bounds.

It is a folder of the user's, an object of theirs, or the bundled one. What it says is counted by
how it came about, as in pars_decisions_total; that it says nothing costs no request anything.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from pars.errors import one_line
from pars.outcomes.metrics import DriftMetrics, ServeMetrics
from pars.outcomes.ranker_judge import RankerJudge
from pars.outcomes.records import Outcome
from pars.ranking.batching import Batcher, QueueFull
from pars.ranking.live_ranker import Expectation, LiveRanker, keep_fresh
from pars.ranking.ranker import bundled_ranker
from pars.ranking.scorers import is_object_name
from pars.serving.settings import Settings

# vLLM shows what its own loggers say, so that is where to speak inside it.
log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")

SECONDS_BETWEEN_WARNINGS = 60.0


class AskedRanker:
    """
    On one event loop.

    Args:
        ranker: Instead of the one that `settings` name.

    Attributes:
        live: What is loaded; it may hold none.
        is_there: Whether one is to be asked.
        is_own: It is the user's, not the bundled one.
        observers: Of each outcome.
    """

    def __init__(
        self, settings: Settings, metrics: ServeMetrics, ranker: LiveRanker | None = None
    ) -> None:
        self.live = ranker or LiveRanker(settings.ranker_folder)
        self.is_own = ranker is not None or settings.ranker not in ("", "none")
        self.is_there = settings.ranker != "none" or settings.learn == "off"
        self.observers: list[Callable[[Outcome], None]] = []
        self._settings = settings
        self._metrics = metrics
        self._judge: RankerJudge | None = None
        self._quiet_until_s = 0.0
        self._batcher = Batcher(
            self.live.expect,
            max_batch_s=settings.budget_ms / 2000,  # so that `_scored` sees the scorer get on
            max_queued_prompts=settings.max_queued_prompts,
        )
        if self.is_there:
            self._first_load()
            if settings.drift:
                shown = DriftMetrics(metrics.registry)
                self._judge = RankerJudge(self.live, settings.drift_settings(), shown)
                self.observers.append(self._judge.observe)

    @property
    def tau_b(self) -> float | None:
        """Between what it said lately and what came; None: it is not judged."""
        estimate = None if self._judge is None else self._judge.drift.tau_b
        return None if estimate is None else estimate.value

    async def ask(self, texts: list[str]) -> tuple[str, list[Expectation]]:
        """
        What it expects of the first `max_prompts` texts, within the bounds on time and work; or
        why it says nothing. Never raises.

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
            return ("scorer_failed" if self.live.is_loaded else "no_ranker"), []
        is_useful = self._judge is None or self._judge.is_useful
        return ("scored" if is_useful else "drifted"), expectations

    def load(self, name: str) -> None:
        """
        Ask another one from now on: a folder, module:object, or "" for the bundled one. Blocks.

        Raises:
            RankerError: it cannot be loaded; the one before stays.
        """
        is_own = name not in ("", "none")
        self.live.load_from(Path(name) if is_own else bundled_ranker())
        self.is_own = is_own
        self._show()
        if self._judge is not None:
            self._judge.start_afresh()

    async def load_again(self) -> str:
        """
        Load its folder once more, changed or not; what it is now, for people. An object of the
        user's stays: Python imports a module once.

        Raises:
            RankerError: it cannot be loaded; the one before stays.
        """
        live = self.live
        if is_object_name(str(live.folder)):
            return f"{live.folder} is code, and stays until a restart"
        try:
            await asyncio.to_thread(live.refresh, again=True)
        except Exception:
            self._on_load("failed")
            raise
        self._on_load("loaded")
        return f"{live.model_name} {live.fingerprint} in {live.folder}"

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
        upkeep: list[Coroutine[Any, Any, None]] = []
        if self.is_there:
            upkeep.append(keep_fresh(self.live, self._settings.reload_s, self._on_load))
        if self._judge is not None:
            upkeep.append(self._judge.keep_judging())
        return upkeep

    async def close(self, max_s: float) -> None:
        """Score no longer; a scorer that hangs is left after `max_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._batcher.close(), max_s)

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
            while left_s > 0 and self.live.num_batches != num_batches:
                num_batches = self.live.num_batches
                await asyncio.wait((scores,), timeout=min(budget_s, left_s))
                if scores.done():
                    return scores.result()
                left_s -= budget_s
            raise TimeoutError
        finally:
            scores.cancel()  # drops what is still queued; nothing if they are there

    def _first_load(self) -> None:
        try:
            self.live.refresh()
            self._show()
        except Exception as error:  # serving goes on; keep_fresh picks the ranker up when it comes
            log.error("no request is scored until the ranker loads: %s", error)
            self._metrics.reloads.labels("failed").inc()

    def _on_load(self, result: str) -> None:
        self._metrics.reloads.labels(result).inc()
        if result == "loaded":
            self._show()
            if self._judge is not None:
                self._judge.start_afresh()

    def _show(self) -> None:
        if self.live.is_loaded:
            self._metrics.serve(self.live.model_name, self.live.fingerprint)
