"""Score with a PyTorch checkpoint as it is, PARS's or ours. Needs the `train` extra."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pars.errors import RankerError
from pars.learn.training.models import PromptModel, load_encoder, load_weights
from pars.learn.training.objectives import READOUTS
from pars.ranking.ranker import PROMPTS_PER_PASS
from pars.ranking.ranker_info import RankerInfo
from pars.request.conversation import as_read


class CheckpointRanker:
    """A `best_model.pt` as a scorer, on a CPU or a GPU."""

    def __init__(
        self,
        path: Path,
        model: PromptModel,
        model_name: str,
        device: str,
        reads_notes: bool = False,
    ) -> None:
        self.folder = path
        self.info = RankerInfo(
            kind=model.kind,
            model_name=model_name,
            max_length=model.max_length,
            reads_notes=reads_notes,
        )
        self.model, self.device = model, device
        self._device = torch.device(device)
        self._network = model.network.to(self._device).eval()

    @classmethod
    def load(
        cls,
        path: Path,
        model_name: str,
        max_length: int = 128,
        device: str = "cpu",
        reads_notes: bool = False,
        pooling: str = "auto",
        objective: str = "pairwise-margin",
    ) -> "CheckpointRanker":
        """
        Load the encoder `model_name` and the checkpoint's weights into it.

        Args:
            reads_notes: whether it was trained with notes of conversations, which PARS's were not.
            pooling, objective: what it was trained with.

        Raises:
            RankerError: the encoder or the checkpoint cannot be loaded, or there is no such device.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise RankerError(f"device {device!r}: {str(error).splitlines()[0]}") from error
        model = load_encoder(model_name, max_length, pooling, READOUTS.get(objective))
        load_weights(model.network, path)
        return cls(path, model, model_name, device, reads_notes)

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [num_prompts], higher for a longer expected answer."""
        encoded = self.model.encode(as_read(prompts, self.info.reads_notes))
        lengths = [self.model.num_tokens(row) for row in encoded]
        order = sorted(range(len(encoded)), key=lengths.__getitem__)
        scores = np.empty(len(encoded), dtype=np.float32)
        per_pass = PROMPTS_PER_PASS[self.info.kind]
        with torch.inference_mode():
            for start in range(0, len(order), per_pass):
                rows = order[start : start + per_pass]
                inputs = self.model.collate([encoded[row] for row in rows], self._device)
                scores[rows] = self._network(**inputs).float().cpu().numpy()
        return scores
