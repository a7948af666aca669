"""
A linear model of log answer tokens that takes one step for each finished request. numpy only.

    wide    a weight for each hashed feature, AdaGrad (Duchi, Hazan, Singer 2011, JMLR 12:2121)
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

RATE = 0.2
FIRST_SQUARES = 1e-2  # of AdaGrad
PRIOR = 5.0  # ridge of the dense weights, in requests
MAX_ERROR = 3.0  # standard deviations that one answer counts for (Huber 1964): one caller's
# odd answers move the weights that others share only so far
LEAST_DEVIATION = 0.1  # of log tokens; equal answers have none


class OnlineModel:
    """
    Predicts log(1 + tokens), and learns it. On one thread.

    Attributes:
        num_learned: Answers so far.
    """

    def __init__(self) -> None:
        self.weights = np.zeros(NUM_SLOTS, dtype=np.float32)
        self.squares = np.full(NUM_SLOTS, FIRST_SQUARES, dtype=np.float32)
        self.dense = np.zeros(NUM_DENSE)
        self.covariance = np.eye(NUM_DENSE) / PRIOR
        self._change = np.empty_like(self.covariance)
        self.num_learned = 0
        self.mean = math.log1p(128.0)
        self.squared_deviation = 0.0

    @property
    def deviation(self) -> float:
        """Of log tokens, so far."""
        return max(LEAST_DEVIATION, math.sqrt(self.squared_deviation / max(1, self.num_learned)))

    def predict(self, reading: Reading) -> float:
        """The expected log(1 + tokens)."""
        return self.mean + self.deviation * self._standard(reading)

    def learn(self, reading: Reading, log_tokens: float, *, is_lower_bound: bool = False) -> float:
        """One step towards an answer of that log(1 + tokens); what was expected before it."""
        standard = self._standard(reading)
        expected = self.mean + self.deviation * standard
        if is_lower_bound and log_tokens <= expected:
            return expected
        self._count(log_tokens)
        error = (log_tokens - self.mean) / self.deviation - standard
        error = min(max(error, -MAX_ERROR), MAX_ERROR)
        self._step(reading, error)
        seen = self.covariance @ reading.dense
        gain = seen / (1.0 + reading.dense @ seen)
        self.dense += gain * error
        np.multiply(gain[:, None], seen, out=self._change)
        self.covariance -= self._change
        return expected

    def _standard(self, reading: Reading) -> float:
        told, num_text = self.weights.take(reading.ids), reading.num_text
        text, fact = _scales(reading)
        return float(
            self.dense @ reading.dense
            + text * np.add.reduce(told[:num_text])
            + fact * np.add.reduce(told[num_text:])
        )

    def _step(self, reading: Reading, error: float) -> None:
        """AdaGrad, of all slots at once; each kind of feature has the same length, one."""
        ids, num_text = reading.ids, reading.num_text
        text, fact = _scales(reading)
        squares = self.squares.take(ids)
        squares[:num_text] += (text * error) ** 2
        squares[num_text:] += (fact * error) ** 2
        self.squares[ids] = squares
        steps = np.sqrt(squares, out=squares)
        np.divide(RATE * error, steps, out=steps)
        steps[:num_text] *= text
        steps[num_text:] *= fact
        steps += self.weights.take(ids)
        self.weights[ids] = steps

    def _count(self, log_tokens: float) -> None:
        """Welford's running mean and deviation (1962, Technometrics 4:419)."""
        self.num_learned += 1
        difference = log_tokens - self.mean
        self.mean += difference / self.num_learned
        self.squared_deviation += difference * (log_tokens - self.mean)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that was learned."""
        scalars = np.array([self.num_learned, self.mean, self.squared_deviation])
        return {
            "weights": self.weights,
            "squares": self.squares,
            "dense": self.dense,
            "covariance": self.covariance,
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
        model.weights = arrays["weights"].astype(np.float32)
        model.squares = np.maximum(arrays["squares"].astype(np.float32), FIRST_SQUARES)
        model.dense, model.covariance = arrays["dense"].copy(), arrays["covariance"].copy()
        num_learned, model.mean, model.squared_deviation = arrays["scalars"].tolist()
        model.num_learned = int(num_learned)
        return model


def _scales(reading: Reading) -> tuple[float, float]:
    """What a feature of each kind counts for: with them all vectors are of length one."""
    num_text = reading.num_text
    return 1 / math.sqrt(num_text or 1), 1 / math.sqrt(len(reading.ids) - num_text or 1)
