"""
The ranker that learns while it serves: expected tokens now, and the truth when it comes.

    ranker = OnlineRanker()
    guess = ranker.expect(signals)               # before the answer: tokens, and an 80% interval
    ranker.learn(guess, answer_tokens)           # after it

What it predicted before an answer is held against the answer (prequential evaluation, Dawid 1984,
doi:10.2307/2981683): that tells how well it orders, and whether to order by it at all. Nothing is
split off for testing, and no text is kept.
"""

import math
import secrets
from collections import deque
from typing import NamedTuple

from pars.ranking.intervals import Estimate, tau_b_interval
from pars.ranking.online.model import FIRST_DEVIATION, FIRST_MEAN, STACKED_WEIGHT, OnlineModel
from pars.ranking.online.reading import Reader, Reading
from pars.ranking.order_metrics import pair_sums
from pars.request.features import Signals

COVERAGE = 0.8
STEP = 0.02  # of the interval's width, in its logarithm, for an answer outside
FIRST_WIDTH = 1.3  # of log tokens to either side
WINDOW = 1000  # answers that the gauge looks back
FEWEST = 12  # answers before the order can count as better than chance
JUDGE_EVERY = 5  # answers, at first; a tenth of the window later on
LONG_DEVIATIONS = 1.2816  # the 0.9 quantile of a normal distribution
# The bundled ranker's word stands alone up to so many answers, each of which changes a young model
# much, so that requests in one queue would be told by different measures.
BUNDLED_ALONE = 30
BUNDLED_COUNTS = (300, 1_000)  # answers up to which it counts in full, and after which not at all
TRIAL = 200  # answers in which an order that began with some knowledge need not be proven
MAX_LOG_TOKENS = math.log1p(1 << 24)


class Guess(NamedTuple):
    """
    What was expected of an answer before it came.

    Attributes:
        tokens: The middle of what is expected.
        low_tokens, high_tokens: Eight of ten answers are between them.
        log_tokens: log(1 + tokens): what the ranker orders by.
        reading: What it was told from.
    """

    tokens: float
    low_tokens: float
    high_tokens: float
    log_tokens: float
    reading: Reading


class Gauge:
    """
    A rolling tau-b of what was predicted and what came.

    Attributes:
        tau_b: With its 95% interval; nan before the first look.
        is_useful: Whether the order is better than chance, beyond doubt.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.tau_b = Estimate(math.nan, math.nan, math.nan)
        self.is_useful = False
        self.num_seen = 0
        self._pairs: deque[tuple[float, float, bool]] = deque(maxlen=window)
        self._num_new = 0

    def observe(self, predicted: float, came: float, *, is_lower_bound: bool) -> None:
        """
        An answer came.

        Args:
            predicted: From all answers but this one and later ones, so by the ranker as it is
                now: what was told when the request came is as old as its answer took.
        """
        self._pairs.append((predicted, came, is_lower_bound))
        self.num_seen += 1
        self._num_new += 1

    @property
    def is_due(self) -> bool:
        """Whether enough is new for another look."""
        return len(self._pairs) >= FEWEST and self._num_new >= max(
            JUDGE_EVERY, len(self._pairs) // 10
        )

    def judge(self) -> None:
        """Look at the answers that came; may run in another thread than the rest."""
        self._num_new = 0
        predicted, came, is_lower_bound = zip(*list(self._pairs), strict=True)
        self.tau_b = tau_b_interval(pair_sums(predicted, came, is_censored=is_lower_bound))
        self.is_useful = self.tau_b.low > 0


class OnlineRanker:
    """
    Expects, and learns. On one thread.

    Args:
        secret: Features are hashed under it; None: one that nobody knows.
        model: What was learned before.
        begins_ordered: Whether to order by it before its answers have proven it: it hears the
            bundled ranker's word, and at first says no other; None: if it has learned before.

    Attributes:
        gauge: How well it has ordered lately.
        num_inside, num_told: Answers inside the interval that was told before, and all of them.
    """

    def __init__(
        self,
        secret: bytes | None = None,
        model: OnlineModel | None = None,
        *,
        begins_ordered: bool | None = None,
    ) -> None:
        self.reader = Reader(secret or secrets.token_bytes(32))
        self.model = model or OnlineModel()
        self.gauge = Gauge()
        self.width = FIRST_WIDTH
        self.num_inside = self.num_told = 0
        has_learned = self.model.num_learned >= FEWEST
        self._begins_ordered = has_learned if begins_ordered is None else begins_ordered

    @property
    def is_useful(self) -> bool:
        """
        Whether to order by it: its order is better than chance, beyond doubt; or it began with some
        knowledge, and the first answers do not speak against it.
        """
        gauge = self.gauge
        is_on_trial = self._begins_ordered and gauge.num_seen < TRIAL
        return gauge.is_useful or (is_on_trial and not gauge.tau_b.value <= 0.0)

    @property
    def bundled_share(self) -> float:
        """What the bundled ranker's word is to be multiplied by for `expect` by now, 1 to 0."""
        full, none = BUNDLED_COUNTS
        return min(1.0, max(0.0, (none - self.model.num_learned) / (none - full)))

    @property
    def neutral_tokens(self) -> float:
        """The middle answer so far."""
        return math.expm1(self._scale[0])

    @property
    def long_tokens(self) -> float:
        """From here on an answer counts as long: nine of ten are shorter."""
        mean, deviation = self._scale
        return max(1.0, math.expm1(min(mean + LONG_DEVIATIONS * deviation, MAX_LOG_TOKENS)))

    def expect(self, signals: Signals, stacked: float = 0.0) -> Guess:
        """
        What is expected of the request's answer.

        Args:
            stacked: What an offline ranker says, standardised (`Calibration.standard`); it counts
                for what it proves to be worth.
        """
        reading = self.reader.read(signals, stacked)
        if self._hears_only:
            log_tokens = FIRST_MEAN + FIRST_DEVIATION * STACKED_WEIGHT * stacked
        else:
            log_tokens = self.model.predict(reading)
        log_tokens = min(max(log_tokens, 0.0), MAX_LOG_TOKENS)
        return Guess(
            tokens=math.expm1(log_tokens),
            low_tokens=math.expm1(max(0.0, log_tokens - self.width)),
            high_tokens=math.expm1(min(log_tokens + self.width, MAX_LOG_TOKENS)),
            log_tokens=log_tokens,
            reading=reading,
        )

    @property
    def _hears_only(self) -> bool:
        """Whether it says what the bundled ranker says, and nothing of its own yet."""
        return self._begins_ordered and self.model.num_learned < BUNDLED_ALONE

    @property
    def _scale(self) -> tuple[float, float]:
        """Mean and deviation of log tokens that it speaks by."""
        if self._hears_only:
            return FIRST_MEAN, FIRST_DEVIATION
        return self.model.mean, self.model.deviation

    def learn(self, guess: Guess, tokens: float, *, is_lower_bound: bool = False) -> float:
        """
        The answer came; the log(1 + tokens) that was expected just before it was learned.

        Args:
            is_lower_bound: It was cut short, and would have been `tokens` long or longer.
        """
        log_tokens = math.log1p(max(tokens, 0.0))
        if not is_lower_bound:
            self._calibrate(abs(log_tokens - guess.log_tokens) <= self.width)
        now = self.model.learn(guess.reading, log_tokens, is_lower_bound=is_lower_bound)
        self.gauge.observe(now, log_tokens, is_lower_bound=is_lower_bound)
        return now

    def _calibrate(self, is_inside: bool) -> None:
        """
        The interval's width follows its coverage: adaptive conformal inference (Gibbs and Candès
        2021, arXiv:2106.00170), on the logarithm of the width.
        """
        self.num_told += 1
        self.num_inside += is_inside
        step = STEP * (1 + 20 / self.num_told)
        self.width *= math.exp(step * ((not is_inside) - (1 - COVERAGE)))
