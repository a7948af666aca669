"""
Lets the online ranker of a server learn from the answers that pass, and keeps what it learned.

On the event loop, but for the disk and the judging, which are done in a thread. Whatever fails
here costs what was to be learned, and no request.
"""

import asyncio
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

from pars.errors import ParsError, one_line
from pars.outcomes.metrics import LearnMetrics
from pars.outcomes.records import Outcome
from pars.ranking.online.ranker import Gauge, Guess, OnlineRanker
from pars.ranking.online.state import State

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

FLUSH_EVERY_S = 1.0  # what a kill -9 may cost
SNAPSHOT_EVERY_S = 60.0
MOST_MODELS, MAX_MODEL_CHARS, OTHER_MODELS = 16, 256, "other models"  # on the health page
MODEL_WINDOW = 300  # answers of one model that its gauge looks back
MOST_AT_ONCE = 200  # of the others' answers, between two turns of the event loop


class Learner:
    """
    One server process's ranker that learns.

    Args:
        folder: Where what is learned is kept, and shared with other processes; None: nowhere.
        begins_ordered: As `OnlineRanker` has it.

    Attributes:
        folder: The same; None too where it cannot be used, which is logged.
        is_paused: It learns nothing for now; what it knows stays in use.
    """

    def __init__(
        self, folder: Path | None, metrics: LearnMetrics, *, begins_ordered: bool | None = None
    ) -> None:
        self._metrics = metrics
        self._begins_ordered = begins_ordered
        self.is_paused = self._is_failing = False
        self._state: State | None = None
        self.folder: Path | None = None
        self._by_model: dict[str, Gauge] = {}
        self.ranker = OnlineRanker(begins_ordered=begins_ordered)
        if folder is not None:
            self._open(folder)
        self._show()

    @property
    def is_ready(self) -> bool:
        """Whether to order by it."""
        return self.ranker.is_useful

    def as_json(self) -> dict[str, Any]:
        """What it knows by now, for a health page."""
        return {
            "folder": None if self.folder is None else str(self.folder),
            "num_learned": self.ranker.model.num_learned,
            "in_use": self.is_ready,
            "tau_b": self.ranker.gauge.tau_b.as_json(),
            "tau_b_by_model": {
                model: {"num_answers": gauge.num_seen, **gauge.tau_b.as_json()}
                for model, gauge in self._by_model.items()
            },
        }

    def learn(self, guess: Guess, outcome: Outcome) -> None:
        """
        The request ended.

        Several prompts and answers share their length evenly. A request that failed tells nothing.
        """
        if self.is_paused:
            return
        failed = outcome.status is not None and outcome.status >= 400
        if failed or outcome.answer_tokens is None:
            return
        tokens = outcome.answer_tokens / max(1, outcome.num_prompts * outcome.num_answers)
        log_tokens = math.log1p(tokens)
        expected = self.ranker.learn(guess, tokens, is_lower_bound=outcome.is_censored)
        gauge = self._gauge_of(outcome.model)
        gauge.observe(expected, log_tokens, is_lower_bound=outcome.is_censored)
        self._metrics.learned.inc()
        if self._state is not None:
            self._state.keep(guess.reading, log_tokens, is_lower_bound=outcome.is_censored)

    async def keep_learning(self, every_s: float = FLUSH_EVERY_S) -> None:
        """Judge, write and follow the other processes, until cancelled."""
        snapshot_at_s = time.monotonic() + SNAPSHOT_EVERY_S
        while True:
            await asyncio.sleep(every_s)
            try:
                for gauge in (self.ranker.gauge, *self._by_model.values()):
                    if gauge.is_due:
                        await asyncio.to_thread(gauge.judge)
                self._show()
                if self._state is not None:
                    await self._keep_up(self._state)
                    if time.monotonic() >= snapshot_at_s:
                        snapshot_at_s = time.monotonic() + SNAPSHOT_EVERY_S
                        await asyncio.to_thread(self._state.snapshot, self.ranker.model)
            except Exception as error:  # a full disk, say: learning goes on in memory
                self._metrics.failures.inc()
                if not self._is_failing:
                    self._is_failing = True
                    log.warning("what was learned is not kept: %s", one_line(error))

    def _gauge_of(self, model: str | None) -> Gauge:
        """Of the model's answers; clients name models, so only so many are told apart."""
        name = (model or "")[:MAX_MODEL_CHARS]
        if name not in self._by_model and len(self._by_model) >= MOST_MODELS:
            name = OTHER_MODELS
        return self._by_model.setdefault(name, Gauge(MODEL_WINDOW))

    def close(self) -> None:
        """Keep what was learned last."""
        if self._state is None:
            return
        try:
            self._state.flush()
            self._state.snapshot(self.ranker.model)
        except Exception as error:
            log.warning("what was learned last is not kept: %s", one_line(error))

    def _open(self, folder: Path) -> None:
        try:
            self._state = State(folder)
            self.ranker = OnlineRanker(
                self._state.secret, self._state.load(), begins_ordered=self._begins_ordered
            )
            self.folder = folder
            if self._state.is_open_to_others:
                log.warning("%s: others may write there, and so spoil what is learned", folder)
        except (ParsError, OSError) as error:
            self._state = None
            self._metrics.failures.inc()
            log.error("learning goes on in memory only: %s", error)

    async def _keep_up(self, state: State) -> None:
        if state.is_forgotten():
            log.warning("%s was wiped: learning begins anew", state.folder)
            self._by_model.clear()
            await asyncio.to_thread(self._open, state.folder)
            return
        self.ranker.model.forget(await asyncio.to_thread(state.forgotten_slots))
        if await asyncio.to_thread(state.flush) and self._is_failing:
            self._is_failing = False
            log.warning("what is learned is kept again")
        news = await asyncio.to_thread(list, state.news())  # others' files may be damaged, and long
        for number, learned in enumerate(news, 1):
            self.ranker.model.learn(
                learned.reading, learned.log_tokens, is_lower_bound=learned.is_lower_bound
            )
            if number % MOST_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _show(self) -> None:
        ranker = self.ranker
        coverage = ranker.num_inside / ranker.num_told if ranker.num_told else math.nan
        self._metrics.show(ranker.gauge.tau_b, coverage, is_in_use=self.is_ready)
