"""
TIE (arXiv 2604.00499): a log-t distribution of the length, ordered by its mean and its tail.

The score is E[X] + beta · CVaR(X), "tail inflated expectation". The mean of exp of a Student's t is
infinite, so lengths end at the longest answer seen, as an engine's limit ends them.
"""

from collections.abc import Sequence

import numpy as np

from pars.prove.rivals.network import LITE, TrainedNetwork
from pars.prove.rivals.predictor import Answered, FloatArray, Predicted

NUM_POINTS = 199  # of the quantile function
TAIL = 0.9  # CVaR is the mean of the longest tenth
BETA = 0.5


class TIE(TrainedNetwork):
    """Mean and spread of the log length by the network, and what follows from both."""

    source = "TIE, arXiv 2604.00499 (abstract, and notes of others: not the whole paper)"
    differs = (
        "the lite network instead of DeBERTa-v3; one answer a prompt instead of twenty; beta 0.5,"
        " tail 0.9 and four degrees of freedom are ours, and beta does not follow the load"
    )

    def __init__(self, network: str = LITE) -> None:
        super().__init__("log-t", network)
        if network != LITE:
            self.differs = self.differs.replace("the lite network", network)
        self._longest = 1.0

    def fit(self, requests: Sequence[Answered]) -> None:
        """As the network, and the longest answer."""
        super().fit(requests)
        self._longest = max(request.tokens for request in requests)

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """From the distribution itself; nothing is calibrated."""
        shares = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
        lengths = self._quantiles(requests, shares)
        mean = lengths.mean(axis=1)
        tail = lengths[:, shares > TAIL].mean(axis=1)
        low, high = self._quantiles(requests, np.array([0.1, 0.9])).T
        return Predicted(mean + BETA * tail, mean, low, high)

    def _quantiles(self, requests: Sequence[Answered], shares: FloatArray) -> FloatArray:
        """[num_requests, num_shares], in tokens."""
        import torch
        from scipy.stats import t

        from pars.learn.training.objectives import FREEDOM, spread_of

        outputs = torch.from_numpy(self.outputs(requests))
        center, spread = outputs[:, 0].numpy(), spread_of(outputs).numpy()
        mean, deviation = self.log_scale
        logs = mean + deviation * (center[:, None] + spread[:, None] * t.ppf(shares, FREEDOM))
        most = np.log1p(self._longest)
        found: FloatArray = np.expm1(np.clip(logs, 0.0, most))
        return found
