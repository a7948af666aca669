"""
A linear model of log answer tokens that takes one step for each finished request. numpy only.

    wide    a weight for each hashed feature and how unsure it is: a Kalman filter of weights that
            are taken for independent (AROW: Crammer, Kulesza, Dredze 2009, NIPS 22)
    dense   weights of the short vector, recursive least squares (Plackett 1950, Biometrika 37:149)

Both go for the same error, of the standardised log(1 + tokens). An answer that was cut short is
longer than its length: it is learned from only where more was not expected already (the hinge of
a one-sided Tobit loss, Tobin 1958).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pars.ranking.online.reading import NUM_DENSE, NUM_SLOTS, Reading

# Variance of a weight before any answer, in that of an answer; and at least, so that weights of
# words that all have heard a thousand times still follow a change.
FIRST_VARIANCE, LEAST_VARIANCE = 1.5, 0.03
FACT_SCALE, CROSSED_SCALE = 1.4, 0.5  # of the values of who asks, and of words with who asks
STACKED_WEIGHT = 0.3  # of an offline ranker's word before any answer: a tau-b of about 0.2
PRIOR = 2.0  # ridge of the dense weights, in requests
MAX_ERROR = 2.0  # standard deviations that one answer counts for (Huber 1964): one caller's
# odd answers move the weights that others share only so far
NUM_CALLERS = 1 << 12  # told apart; more share
MEMORY = 0.02  # of a caller's answers, so about the last fifty
CALLER_PRIOR = 2.0  # a caller is taken at his word until his own answers outweigh this
ENOUGH_SLOPE = 2.0  # answers count in full from a slope of one half on
FIRST_MEAN, FIRST_DEVIATION = math.log1p(128.0), 1.0  # of log tokens, before there are answers
LEAST_DEVIATION = 0.1  # of log tokens; equal answers have none


class Callers:
    """
    How far what all callers' answers say holds for each caller, by his own answers.

    That is the slope of his answers on what the shared weights expected of them, both from his own
    mean: 1 where it holds, 0 where it says nothing, below where he gets the opposite. By it his
    answers count for the weights that others share. A caller whose answers turn the others' round
    moves only his own weights.

    Attributes:
        sums: [NUM_CALLERS, 4] of each caller: mean expected, mean came, their covariance, and the
            variance of the first, both summed over his last answers.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((NUM_CALLERS, 4), dtype=np.float32)

    def trust(self, caller: int, expected: float, came: float) -> float:
        """What his answer counts for, 0 to 1, by those before it; and take it down."""
        row = self.sums[caller % NUM_CALLERS]
        mean_expected, mean_came, covariance, variance = map(float, row)
        slope = (covariance + CALLER_PRIOR) / (variance + CALLER_PRIOR)
        at, off = expected - mean_expected, min(max(came - mean_came, -MAX_ERROR), MAX_ERROR)
        row[:] = (
            mean_expected + at * MEMORY,
            mean_came + off * MEMORY,
            (1 - MEMORY) * covariance + at * off,
            (1 - MEMORY) * variance + at * at,
        )
        return min(max(ENOUGH_SLOPE * slope, 0.0), 1.0)


class OnlineModel:
    """
    Predicts log(1 + tokens), and learns it. On one thread.

    Attributes:
        num_learned: Answers so far.
        slots: [NUM_SLOTS] of each feature its weight, and as the imaginary part its variance: one
            look finds both.
    """

    def __init__(self) -> None:
        self.slots = np.full(NUM_SLOTS, 1j * FIRST_VARIANCE, dtype=np.complex64)
        self.dense = np.zeros(NUM_DENSE)
        self.dense[-1] = STACKED_WEIGHT
        self.covariance = np.eye(NUM_DENSE) / PRIOR
        self.callers = Callers()
        self._change = np.empty_like(self.covariance)
        self.num_learned = 0
        self.mean = FIRST_MEAN
        self.squared_deviation = 0.0

    @property
    def deviation(self) -> float:
        """Of log tokens, so far."""
        if self.num_learned < 2:
            return FIRST_DEVIATION
        return max(LEAST_DEVIATION, math.sqrt(self.squared_deviation / max(1, self.num_learned)))

    def predict(self, reading: Reading) -> float:
        """The expected log(1 + tokens)."""
        shared, own = self._parts(reading, self.slots.take(reading.ids).real)
        return self.mean + self.deviation * (shared + own)

    def learn(self, reading: Reading, log_tokens: float, *, is_lower_bound: bool = False) -> float:
        """One step towards an answer of that log(1 + tokens); what was expected before it."""
        told = self.slots.take(reading.ids)
        shared, own = self._parts(reading, told.real)
        expected = self.mean + self.deviation * (shared + own)
        if is_lower_bound and log_tokens <= expected:
            return expected
        self._count(log_tokens)
        came = (log_tokens - self.mean) / self.deviation
        error = min(max(came - shared - own, -MAX_ERROR), MAX_ERROR)
        trust = self.callers.trust(reading.caller, shared, came)
        self._step(reading, told, error, trust)
        seen = self.covariance @ reading.dense
        gain = seen * (trust / (1.0 + trust * float(reading.dense @ seen)))
        self.dense += gain * error
        np.multiply(gain[:, None], seen, out=self._change)
        self.covariance -= self._change
        return expected

    def _parts(self, reading: Reading, weights: NDArray[np.float32]) -> tuple[float, float]:
        """What all callers' answers say of the text, and what those of this caller add."""
        num_text = reading.num_text
        end = num_text + reading.num_facts
        text, fact, crossed = _scales(reading)
        shared = self.dense @ reading.dense + text * np.add.reduce(weights[:num_text])
        own = fact * np.add.reduce(weights[num_text:end]) + crossed * np.add.reduce(weights[end:])
        return float(shared), float(own)

    def _step(
        self, reading: Reading, told: NDArray[np.complex64], error: float, trust: float
    ) -> None:
        """One of the Kalman filter, of all slots at once; `told` is what they hold."""
        num_text = reading.num_text
        text, fact, crossed = _scales(reading)
        scales = np.full(len(told), crossed, np.float32)
        scales[:num_text] = text * trust
        scales[num_text : num_text + reading.num_facts] = fact
        weights, variances = told.real, told.imag
        moves = variances * scales
        gains = moves / (1.0 + moves @ scales)
        moves *= gains
        variances -= moves
        np.maximum(variances, LEAST_VARIANCE, out=variances)
        gains *= error
        weights += gains
        self.slots[reading.ids] = told

    def _count(self, log_tokens: float) -> None:
        """Welford's running mean and deviation (1962, Technometrics 4:419)."""
        self.num_learned += 1
        difference = log_tokens - self.mean
        self.mean += difference / self.num_learned
        self.squared_deviation += difference * (log_tokens - self.mean)

    def forget(self, slots: NDArray[np.int64]) -> None:
        """Wipe the weights of these slots, and what callers of such a name are taken for."""
        self.slots[slots] = 1j * FIRST_VARIANCE
        self.callers.sums[slots % NUM_CALLERS] = 0.0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that was learned."""
        scalars = np.array([self.num_learned, self.mean, self.squared_deviation])
        return {
            "weights": self.slots.real,
            "variances": self.slots.imag,
            "dense": self.dense,
            "covariance": self.covariance,
            "callers": self.callers.sums,
            "scalars": scalars,
        }

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]]) -> "OnlineModel":
        """
        What `arrays` gave.

        Raises:
            ValueError: something is missing, of another size, or no finite number.
        """
        model = cls()
        for name, usual in model.arrays().items():
            found = arrays.get(name)
            if found is None or found.shape != usual.shape or not np.isfinite(found).all():
                raise ValueError(f"{name} is missing or damaged")
        model.slots.real = arrays["weights"]
        model.slots.imag = np.clip(arrays["variances"], LEAST_VARIANCE, FIRST_VARIANCE)
        model.dense, model.covariance = arrays["dense"].copy(), arrays["covariance"].copy()
        model.callers.sums = arrays["callers"].copy()
        num_learned, model.mean, model.squared_deviation = arrays["scalars"].tolist()
        model.num_learned = int(num_learned)
        return model


def _scales(reading: Reading) -> tuple[float, float, float]:
    """
    What a feature counts for, of the text, of the facts and of words with who asks: in vectors
    of about the same length, however many they are.
    """
    num_facts = reading.num_facts
    text = 1 / math.sqrt(len(reading.ids) - num_facts or 1)
    return text, FACT_SCALE / math.sqrt(num_facts or 1), CROSSED_SCALE * text
