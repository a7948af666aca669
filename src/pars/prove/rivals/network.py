"""
A network trained by one of the objectives of `pars train`: what the neural rivals are made of.

By default it is the lite network, which a CPU trains in seconds, so that rivals differ by what
their loss asks for and by nothing else. With a Hugging Face folder it is that encoder or decoder.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pars.prove.rivals.predictor import Answered, FloatArray, Predicted, held_back

if TYPE_CHECKING:
    from pars.learn.training.train import Training

LITE = "lite"


class TrainedNetwork:
    """
    One objective's ranker; tokens and interval are calibrated on a held-back tenth.

    Args:
        objective: one of `pars train --objective`.
        network: "lite", or a folder or Hub name for `pars train --model-name`.
        options: of `TrainConfig`, in place of the preset's.
    """

    source = "`pars train`"
    differs = ""

    def __init__(self, objective: str, network: str = LITE, **options: Any) -> None:
        self.objective, self.network, self.options = objective, network, options
        self._training: Training | None = None
        self._calibration: Any = None

    def fit(self, requests: Sequence[Answered]) -> None:
        """As `pars train` with the preset lite or small."""
        from pars.learn.training.calibration import calibrate

        kept, apart = held_back(requests)
        if not apart:
            kept = apart = list(range(len(requests)))
        validation = [requests[i] for i in apart]
        self._training = self._trained([requests[i] for i in kept], validation)
        lengths = [it.tokens for it in validation]
        self._calibration = calibrate(self._scores(validation), lengths, "tokens")

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """Scores, and what is expected at each."""
        scores, known = self._scores(requests), self._calibration
        low, high = (
            np.interp(scores, known.score_quantiles, known.token_quantiles[share])
            for share in ("0.1", "0.9")
        )
        tokens = np.interp(scores, known.score_quantiles, known.expected_tokens)
        return Predicted(scores, tokens, low, high)

    def outputs(self, requests: Sequence[Answered]) -> FloatArray:
        """What the objective is about, [num_requests, num_outputs]."""
        assert self._training is not None  # fit came before
        outputs: FloatArray = self._training.outputs([it.prompt for it in requests]).numpy()
        return outputs

    @property
    def log_scale(self) -> tuple[float, float]:
        """Mean and deviation of log(1 + tokens) that the outputs are relative to."""
        assert self._training is not None
        scale = self._training.objective.scale
        return scale.mean, scale.deviation

    def held_bytes(self) -> int:
        """Of the weights, as they are held in float32."""
        assert self._training is not None
        return sum(4 * it.numel() for it in self._training.network.parameters())

    def _scores(self, requests: Sequence[Answered]) -> FloatArray:
        assert self._training is not None
        return self._training.score([it.prompt for it in requests])

    def _trained(self, train: Sequence[Answered], validation: Sequence[Answered]) -> "Training":
        """A training that went to its end."""
        import torch

        from pars.learn.data.records import Row
        from pars.learn.training.config import (
            LITE_DEFAULTS,
            SMALL_DEFAULTS,
            TrainConfig,
            with_epochs,
        )
        from pars.learn.training.data import training_data
        from pars.learn.training.models import new_model
        from pars.learn.training.processes import joined_processes
        from pars.learn.training.train import Training

        rows, val_rows = (
            [
                Row(
                    number, it.prompt, it.tokens, finish_reason="length" if it.is_censored else None
                )
                for number, it in enumerate(part)
            ]
            for part in (train, validation)
        )
        is_lite = self.network == LITE
        settings = {"model": "lite", **LITE_DEFAULTS} if is_lite else dict(SMALL_DEFAULTS)
        settings |= {} if is_lite else {"model_name": self.network}
        with tempfile.TemporaryDirectory() as folder, joined_processes() as processes:
            config = TrainConfig(
                output_dir=Path(folder),
                train_data=Path("the leaderboard's training part"),
                val_data=Path("the leaderboard's training part"),
                **{**settings, "objective": self.objective, **self.options},
            )
            torch.manual_seed(config.seed)
            data = training_data(rows, val_rows, config)
            config = with_epochs(config, len(data.batches) * config.batch_size)
            training = Training(config, data, new_model(config, data.prompts), processes)
            training.fit()
        return training
