"""
What a ranker can be trained to say of a prompt, as losses over one batch.

Each objective maps the network's outputs [num_prompts, num_outputs] and the answers' log lengths
[num_prompts] to a loss, and the outputs to one score [num_prompts], higher for a longer answer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_CLASSES = 10
QUANTILES = torch.linspace(0.1, 0.9, 9)
STUDENT_FREEDOM = 4.0  # degrees of freedom of log-t


@dataclass(frozen=True)
class Objective:
    num_outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor], Tensor] = lambda outputs: outputs[:, 0]


def pairs_of(logs: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """All pairs (longer, shorter) of the batch with |a-b| / max(a, b) >= threshold."""
    gap = logs[:, None] - logs[None, :]
    least = -math.log1p(-threshold) if threshold < 1 else math.inf
    return torch.nonzero((gap > 0) & (gap >= least), as_tuple=True)


def margin(threshold: float, size: float = 1.0) -> Objective:
    """PARS: max(0, size - (longer - shorter)) (arXiv 2510.03243)."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        longer, shorter = pairs_of(logs, threshold)
        scores = outputs[:, 0]
        return F.relu(size - (scores[longer] - scores[shorter])).mean()

    return Objective(1, loss)


def logistic(threshold: float, temperature: float = 0.0) -> Objective:
    """RankNet; with a temperature, the label of a pair is how surely it would come again."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        longer, shorter = pairs_of(logs, threshold)
        gap = outputs[longer, 0] - outputs[shorter, 0]
        if not temperature:
            return F.softplus(-gap).mean()
        certainty = torch.sigmoid((logs[longer] - logs[shorter]) / temperature)
        return F.binary_cross_entropy_with_logits(gap, certainty)

    return Objective(1, loss)


def list_mle() -> Objective:
    """The likelihood of the batch's whole order, longest first (Xia et al. 2008; vllm-ltr)."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        scores = outputs[torch.argsort(logs, descending=True), 0]
        rest = torch.logcumsumexp(scores.flip(0), 0).flip(0)
        return (rest - scores).mean()

    return Objective(1, loss)


def regression() -> Objective:
    """Squared error on the log length."""
    return Objective(1, lambda outputs, logs: F.mse_loss(outputs[:, 0], logs))


def classes(edges: Tensor) -> Objective:
    """Cross-entropy on tenths of the training lengths; the score is the expected tenth."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, torch.bucketize(logs, edges))

    places = torch.arange(NUM_CLASSES, dtype=torch.float32)
    return Objective(NUM_CLASSES, loss, lambda outputs: outputs.softmax(1) @ places)


def log_normal() -> Objective:
    """A normal distribution of the log length: its mean and spread; the score is the mean."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        spread = F.softplus(outputs[:, 1]) + 0.05
        return (0.5 * ((logs - outputs[:, 0]) / spread) ** 2 + spread.log()).mean()

    return Objective(2, loss)


def log_t() -> Objective:
    """Student's t of the log length, whose tails forgive outliers (as TIE, arXiv 2604.00499)."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        spread = F.softplus(outputs[:, 1]) + 0.05
        far = ((logs - outputs[:, 0]) / spread) ** 2
        return (
            spread.log() + (STUDENT_FREEDOM + 1) / 2 * torch.log1p(far / STUDENT_FREEDOM)
        ).mean()

    return Objective(2, loss)


def quantiles() -> Objective:
    """Pinball loss on nine quantiles of the log length; the score is the median."""

    def loss(outputs: Tensor, logs: Tensor) -> Tensor:
        miss = logs[:, None] - outputs
        return torch.maximum(QUANTILES * miss, (QUANTILES - 1) * miss).mean()

    return Objective(len(QUANTILES), loss, lambda outputs: outputs[:, len(QUANTILES) // 2])


def objective(name: str, logs: Tensor) -> Objective:
    """By its spelling: NAME or NAME:NUMBER; `logs` are the (standardized) training log lengths."""
    kind, _, number = name.partition(":")
    match kind:
        case "margin":
            return margin(float(number or 0.2))
        case "logistic":
            return logistic(float(number or 0.0))
        case "soft":
            return logistic(0.0, float(number or 0.5))
        case "listmle":
            return list_mle()
        case "regression":
            return regression()
        case "classes":
            return classes(torch.quantile(logs[:100_000], torch.linspace(0, 1, 11)[1:-1]))
        case "lognormal":
            return log_normal()
        case "logt":
            return log_t()
        case "quantiles":
            return quantiles()
    raise SystemExit(f"unknown objective {name}")
