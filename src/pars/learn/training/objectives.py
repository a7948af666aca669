"""
What a training asks of a network: seven objectives, each a loss over one batch, with its source.

    wanted = Objective.of(config, lengths)
    loss = wanted.loss(network.outputs(**inputs), targets)
    scores = wanted.readout.score(outputs)            # higher for a longer answer

Those of single prompts see log lengths in standard deviations of the training's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from pars.learn.training.batches import Batch
from pars.learn.training.config import PAIRWISE, TrainConfig
from pars.learn.training.data import Validation
from pars.learn.training.networks import Readout

NUM_CLASSES = 10
QUANTILES = tuple(tenth / 10 for tenth in range(1, 10))
FREEDOM = 4.0  # degrees of freedom of log-t
LEAST_SPREAD = 0.05  # of log-t, or a batch of equal lengths would drive it to 0
READOUTS = {
    "classes": Readout(NUM_CLASSES, None),
    "log-t": Readout(2),
    "quantiles": Readout(len(QUANTILES), len(QUANTILES) // 2),
}


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """
    What became of a batch's prompts.

    Attributes:
        longer, shorter: [num_pairs], places of prompts in the batch.
        certainty: [num_pairs], probability that another answer to each would say so too.
        logs: [num_prompts], log lengths in standard deviations; empty from a pair file.
        is_censored: [num_prompts], whether the answer was cut short, so that it is longer.
    """

    longer: Tensor
    shorter: Tensor
    certainty: Tensor
    logs: Tensor
    is_censored: Tensor


Loss = Callable[[Tensor, Targets], Tensor]  # of outputs [num_prompts, num_outputs]


@dataclass(frozen=True, slots=True)
class LogScale:
    """Log lengths in standard deviations from their mean, over the training's answers."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, lengths: ArrayLike) -> "LogScale":
        """Of answer lengths [num_answers], in any unit."""
        logs = np.log1p(np.asarray(lengths, dtype=np.float64))
        return cls(float(logs.mean()), float(logs.std()) or 1.0) if len(logs) else cls(0.0, 1.0)

    def logs(self, lengths: ArrayLike) -> Tensor:
        """[num_answers], of their lengths."""
        logs = (np.log1p(np.asarray(lengths, dtype=np.float64)) - self.mean) / self.deviation
        return torch.from_numpy(logs.astype(np.float32))

    def lengths(self, logs: Tensor) -> Tensor:
        """`logs` undone."""
        return torch.expm1(logs * self.deviation + self.mean)


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss, how the network's outputs become a score, and the scale of the lengths it sees."""

    loss: Loss
    readout: Readout
    scale: LogScale
    is_pairwise: bool

    @classmethod
    def of(cls, config: TrainConfig, lengths: ArrayLike) -> "Objective":
        """What `config` asks for; `lengths` [num_answers] are the training's, or none of pairs."""
        scale = LogScale.of(lengths)
        name = config.objective
        readout = READOUTS.get(name, Readout())
        return cls(_loss(config, scale.logs(lengths)), readout, scale, name in PAIRWISE)

    def targets(self, batch: Batch, device: torch.device) -> Targets:
        """The batch's pairs and lengths as tensors."""
        lengths = batch.lengths if batch.lengths is not None else np.empty(0)
        censored = batch.is_censored if batch.is_censored is not None else np.zeros(0, dtype=bool)
        return Targets(
            torch.from_numpy(batch.longer).to(device),
            torch.from_numpy(batch.shorter).to(device),
            torch.from_numpy(batch.certainty).to(device),
            self.scale.logs(lengths).to(device),
            torch.from_numpy(censored).to(device),
        )

    def validation_loss(self, outputs: Tensor, held_out: Validation) -> float:
        """Of outputs [num_prompts, num_outputs], over the pairs or else over the rows held out."""
        certainty = np.ones(len(held_out.longer), dtype=np.float32)
        rows = held_out.of_rows
        pairs = held_out.longer, held_out.shorter, certainty
        batch = Batch(rows, *pairs, held_out.lengths, held_out.is_censored)
        seen = outputs if self.is_pairwise else outputs[torch.from_numpy(rows)]
        return float(self.loss(seen.float(), self.targets(batch, outputs.device)).item())


def _loss(config: TrainConfig, logs: Tensor) -> Loss:
    match config.objective:
        case "pairwise-margin":
            return pairwise_margin(config.margin)
        case "classes":
            return classes(class_edges(logs))
        case name:
            return _WITHOUT_OPTIONS[name]


def pairwise_margin(margin: float) -> Loss:
    """PARS (arXiv 2510.03243): MarginRankingLoss, mean of max(0, margin - (longer - shorter))."""

    def loss(outputs: Tensor, targets: Targets) -> Tensor:
        scores = outputs[:, 0]
        gap = scores[targets.longer] - scores[targets.shorter]
        return torch.relu(margin - gap).mean()

    return loss


def pairwise_logistic(outputs: Tensor, targets: Targets) -> Tensor:
    """RankNet (Burges et al. 2005): cross entropy of sigmoid(longer - shorter) and certainty."""
    scores = outputs[:, 0]
    gap = scores[targets.longer] - scores[targets.shorter]
    return F.binary_cross_entropy_with_logits(gap, targets.certainty)


def pointwise(outputs: Tensor, targets: Targets) -> Tensor:
    """
    Squared error on the log length.

    The regression that PARS and vllm-ltr compare with; SSJF (arXiv 2404.08509) regresses too, on
    the plain token count.
    """
    return F.mse_loss(outputs[:, 0], _or_more(targets, outputs[:, 0]))


def listmle(outputs: Tensor, targets: Targets) -> Tensor:
    """
    The likelihood of the batch's whole order, longest first (Xia et al. 2008, ICML).

    What vllm-ltr (arXiv 2408.15792) trains with. An answer that was cut short stands where it was
    cut, since the likelihood is of one whole order.
    """
    scores = outputs[torch.argsort(targets.logs, descending=True), 0]
    rest = torch.logcumsumexp(scores.flip(0), 0).flip(0)
    return (rest - scores).mean()


def class_edges(logs: Tensor) -> Tensor:
    """The nine lengths that part the training's answers into ten classes of like number."""
    if not len(logs):
        return torch.empty(0)
    tenths = np.linspace(0, 1, NUM_CLASSES + 1)[1:-1]
    return torch.from_numpy(np.quantile(logs.numpy(), tenths).astype(np.float32))


def classes(edges: Tensor) -> Loss:
    """
    Cross entropy on tenths of the training's lengths; the score is the expected tenth.

    Length classes as S3 (arXiv 2306.06000) and vllm-ltr's classifier have them, whose buckets are
    of equal width; of an answer that was cut short, its class or any longer one is right.
    """

    def loss(outputs: Tensor, targets: Targets) -> Tensor:
        logits = outputs.log_softmax(1)
        own = torch.bucketize(targets.logs, edges.to(outputs.device))
        places = torch.arange(NUM_CLASSES, device=outputs.device)
        is_longer = targets.is_censored[:, None] & (places > own[:, None])
        is_right = (places == own[:, None]) | is_longer
        return -logits.masked_fill(~is_right, -math.inf).logsumexp(1).mean()

    return loss


def log_t(outputs: Tensor, targets: Targets) -> Tensor:
    """
    Student's t of the log length, by mean and spread, whose tails forgive outliers.

    As TIE (arXiv 2604.00499) describes its predictor, with four degrees of freedom, which is our
    choice; the score is the mean.
    """
    spread = spread_of(outputs)
    far = ((_or_more(targets, outputs[:, 0]) - outputs[:, 0]) / spread) ** 2
    return (spread.log() + (FREEDOM + 1) / 2 * torch.log1p(far / FREEDOM)).mean()


def spread_of(outputs: Tensor) -> Tensor:
    """The spread [num_prompts] that log-t's second output stands for."""
    return F.softplus(outputs[:, 1]) + LEAST_SPREAD


def quantiles(outputs: Tensor, targets: Targets) -> Tensor:
    """
    Pinball loss on nine quantiles of the log length; the score is the median.

    Quantile regression (Koenker, Bassett 1978); JITServe (NSDI'26) has a quantile forest.
    """
    shares = torch.tensor(QUANTILES, device=outputs.device)
    wanted = targets.logs[:, None].expand_as(outputs)
    is_enough = targets.is_censored[:, None] & (outputs > wanted)
    miss = torch.where(is_enough, 0.0, wanted - outputs)
    return torch.maximum(shares * miss, (shares - 1) * miss).mean()


def _or_more(targets: Targets, expected: Tensor) -> Tensor:
    """The log lengths; of an answer that was cut short, what is expected if that is longer."""
    is_enough = targets.is_censored & (expected > targets.logs)
    return torch.where(is_enough, expected.detach(), targets.logs)


_WITHOUT_OPTIONS: dict[str, Loss] = {
    "pairwise-logistic": pairwise_logistic,
    "pointwise": pointwise,
    "listmle": listmle,
    "log-t": log_t,
    "quantiles": quantiles,
}
