"""What a pair of prompts costs that is in the wrong order."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def margin_loss(longer: Tensor, shorter: Tensor, certainty: Tensor, margin: float) -> Tensor:
    """MarginRankingLoss of PARS: mean of max(0, margin - (longer - shorter)), both [num_pairs]."""
    return torch.relu(margin - (longer - shorter)).mean()


def logistic_loss(longer: Tensor, shorter: Tensor, certainty: Tensor, margin: float) -> Tensor:
    """RankNet (Burges et al. 2005): cross entropy of sigmoid(longer - shorter) and certainty."""
    return nn.functional.binary_cross_entropy_with_logits(longer - shorter, certainty)


LOSS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "margin": margin_loss,
    "logistic": logistic_loss,
}
