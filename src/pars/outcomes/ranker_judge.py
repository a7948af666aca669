"""Compares a serving ranker with the answers that come, and disables it while it does harm."""

import asyncio
import logging
import sys

from pars.outcomes.drift import Drift, DriftSettings
from pars.outcomes.metrics import DriftMetrics
from pars.outcomes.records import Outcome
from pars.ranking.live_ranker import LiveRanker

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

LOOK_EVERY_S = 1.0


class RankerJudge:
    """
    One ranker's `Drift`, fed with outcomes and shown as metrics.

    What another ranker predicted does not count, nor a request with several prompts or answers, of
    which only the sum is known.
    """

    def __init__(self, ranker: LiveRanker, settings: DriftSettings, metrics: DriftMetrics) -> None:
        self.drift = Drift(settings)
        self._ranker = ranker
        self._metrics = metrics
        self._show()

    @property
    def is_useful(self) -> bool:
        """Whether to order by the ranker."""
        return self.drift.is_useful

    def observe(self, outcome: Outcome) -> None:
        """A request is finished."""
        if (
            outcome.expected_tokens is not None
            and outcome.answer_tokens is not None
            and outcome.ranker == self._ranker.fingerprint
            and outcome.num_prompts == outcome.num_answers == 1
            and (outcome.status or 0) < 400
        ):
            self.drift.observe(outcome.expected_tokens, outcome.answer_tokens, outcome.is_censored)

    def start_afresh(self) -> None:
        """Another ranker is loaded."""
        self.drift.reset()
        self._show()

    async def keep_judging(self, every_s: float = LOOK_EVERY_S) -> None:
        """Judge in a thread whenever there is enough that is new."""
        while True:
            await asyncio.sleep(every_s)
            if self.drift.is_due:
                try:
                    await asyncio.to_thread(self.drift.judge)
                except Exception as error:  # the ranker goes on as it is
                    log.error("the ranker cannot be judged: %s: %s", type(error).__name__, error)
                self._show()

    def _show(self) -> None:
        is_in_use = self.drift.is_useful and self._ranker.is_loaded
        self._metrics.show(self.drift.tau_b, is_in_use=is_in_use)
