"""
Whether the ranker still orders: a rolling Kendall tau-b between what it predicted and what came.

    drift = Drift(DriftSettings())
    drift.observe(expected_tokens=120.0, answer_tokens=97, is_censored=False)   # as each ends
    drift.judge()                            # some milliseconds, off the event loop
    drift.is_useful, drift.tau_b             # True, 0.412 [0.371, 0.453]

Traffic changes, and an order by a prediction that is wrong is worse than the order of arrival. So
the ranker is disabled while the 95% interval of tau-b lies below `limit` as a whole, and enabled
again when it lies above as a whole; the interval's own width keeps the two apart. Whoever asks for
priorities goes on scoring meanwhile, or nothing could tell that the ranker is useful again.

What is seen are answers that ended, in the order in which they did. In a steady state these are as
good a sample as those that began. While a queue grows they are not: what is predicted long still
waits, what is long still runs, and among those that end early the ones predicted long are short in
truth. That pulls tau-b down, for a useful ranker not below 0: in tests/test_drift.py eight slots
serve the shortest predicted first, without a bound on overtaking, from an idle start at twice
their load, and a true 0.51 reads as 0.40 at the lowest. In an order by arrival the prediction has
no part in who is seen; so a disabled ranker comes back by an honest figure.
"""

import logging
import math
import sys
import threading
from collections import deque
from dataclasses import dataclass

from pars.errors import ParsError
from pars.ranking.intervals import Estimate, tau_b_interval
from pars.ranking.order_metrics import pair_sums

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

MOST_ANSWERS = 20_000  # a judgement of so many takes 0.1 s

OUT_OF_USE = (
    "the ranker is worse than useless; first come, first served until it is useful again:"
    " tau-b %s over %d answers (%d cut short) is below %g"
)
BACK_IN_USE = (
    "the ranker is useful again and orders the queue:"
    " tau-b %s over %d answers (%d cut short) is above %g"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """
    When a ranker counts as worse than useless.

    Attributes:
        limit: Tau-b below which an order by the ranker does harm. At 0 it is as good as chance,
            and an order by chance has the mean wait of the order of arrival; below, the long go
            first. -1: never disable it, only measure.
        window: The last so many answers are compared.
        min_answers: No judgement before there are as many.
        judge_every: A judgement is due after so many more.
    """

    limit: float = 0.0
    window: int = 1000
    min_answers: int = 200
    judge_every: int = 50

    def __post_init__(self) -> None:
        if not -1 <= self.limit < 1:
            raise ParsError(f"limit: must be from -1 to less than 1, not {self.limit}")
        if not 3 <= self.window <= MOST_ANSWERS:
            raise ParsError(f"window: must be from 3 to {MOST_ANSWERS}, not {self.window}")
        if not 3 <= self.min_answers <= self.window:
            raise ParsError(
                f"min_answers: must be from 3 to window ({self.window}), not {self.min_answers}"
            )
        if self.judge_every < 1:
            raise ParsError(f"judge_every: must be at least 1, not {self.judge_every}")


class Drift:
    """
    Judges one ranker at a time by the answers it predicted. Thread-safe.

    Attributes:
        is_useful: Whether to order by the ranker; True until it is proved to do harm.
        tau_b: Over the window, with its 95% interval; None before the first judgement, and where
            the window has no two scores or no two lengths.
        num_answers, num_censored: Over which that is; 0 before it.
    """

    def __init__(self, settings: DriftSettings | None = None) -> None:
        self.settings = settings or DriftSettings()
        self.is_useful = True
        self.tau_b: Estimate | None = None
        self.num_answers = self.num_censored = 0
        self._answers: deque[tuple[float, float, bool]] = deque(maxlen=self.settings.window)
        self._num_new = 0  # since the last judgement
        self._era = 0  # which ranker; a judgement of the one before must not come through
        self._lock = threading.Lock()

    def observe(
        self, expected_tokens: float, answer_tokens: float, is_censored: bool = False
    ) -> None:
        """
        An answer ended. O(1), never raises, and leaves out what is no length.

        Args:
            expected_tokens: What the ranker in use predicted, before limits of the request; a raw
                score does as well, since only the order counts. What a ranker before it predicted
                is no answer to whether this one is useful: leave it out.
            answer_tokens: What came, in tokens.
            is_censored: It was cut short (by a limit, by the client, by an error), and would have
                become at least as long.
        """
        if not (math.isfinite(expected_tokens) and 0 <= answer_tokens < math.inf):
            return
        with self._lock:
            self._answers.append((expected_tokens, answer_tokens, is_censored))
            self._num_new += 1

    @property
    def is_due(self) -> bool:
        """Whether there is enough that is new for another judgement."""
        return (
            self._num_new >= self.settings.judge_every
            and len(self._answers) >= self.settings.min_answers
        )

    def judge(self) -> bool:
        """
        Compare all pairs of the window and decide; whether the decision changed. Blocks.

        10 ms at the default window. Does nothing before there are `min_answers`.
        """
        with self._lock:
            answers, era = list(self._answers), self._era
            self._num_new = 0
        if len(answers) < self.settings.min_answers:
            return False
        expected, came, is_censored = zip(*answers, strict=True)
        tau_b = tau_b_interval(pair_sums(expected, came, is_censored=is_censored))
        with self._lock:
            if era != self._era:
                return False
            self.tau_b = None if math.isnan(tau_b.low) else tau_b
            self.num_answers, self.num_censored = len(answers), sum(is_censored)
            is_useful = self._verdict()
            has_changed = is_useful != self.is_useful
            self.is_useful = is_useful
        if has_changed:
            figures = tau_b, len(answers), sum(is_censored), self.settings.limit
            log.warning(BACK_IN_USE if is_useful else OUT_OF_USE, *figures)
        return has_changed

    def reset(self) -> None:
        """Another ranker is in use: forget what the one before predicted, and trust this one."""
        with self._lock:
            was_useful, self.is_useful = self.is_useful, True
            self.tau_b = None
            self.num_answers = self.num_censored = 0
            self._answers.clear()
            self._num_new = 0
            self._era += 1
        if not was_useful:
            log.warning("a newly loaded ranker is in use; the one before was not")

    def _verdict(self) -> bool:
        """Whether the ranker is useful; as before where the interval holds the limit."""
        if self.tau_b is None:
            return self.is_useful
        if self.is_useful:
            return self.tau_b.high >= self.settings.limit
        return self.tau_b.low > self.settings.limit
