"""The prompt's length as the answer's: what engines and their pull requests sort by today."""

from collections.abc import Sequence

import numpy as np

from pars.prove.rivals.predictor import Answered, Predicted
from pars.request.conversation import message_of


class PromptLength:
    """The score is the number of characters; nothing is learned."""

    source = "vLLM #29366, #21558, TensorRT-LLM #12423: shortest prompt first"
    differs = ""

    def fit(self, requests: Sequence[Answered]) -> None:
        """Nothing."""

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """By the message alone, without what came before it."""
        lengths = [len(message_of(request.prompt)) for request in requests]
        return Predicted(np.array(lengths, dtype=np.float64))
