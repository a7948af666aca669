"""
Clairvoyant (arXiv 2606.07248): 19 lexical features of the prompt, boosted trees, three classes.

Six numbers (tokens of the prompt; words of code; a limit on length; ends with a question; words of
format; clauses) and thirteen instruction verbs. The score is the probability of a long answer.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pars.prove.rivals.predictor import Answered, FloatArray, Predicted
from pars.request.conversation import message_of

EDGES = (200, 800)  # tokens: short below, long from the second on
LEAST_SHARE = 0.01  # of a class, or nothing is learned of it
CODE = re.compile(
    r"\b(code|function|class|script|program|implement|algorithm|debug|refactor|sql|regex|api)\b"
)
LIMIT = re.compile(
    r"\b(in|under|at most|no more than) \d+\b|\b(briefly|concisely|shortly|one[ -]liner|tl;?dr)\b"
)
FORMAT = re.compile(r"\b(json|table|csv|markdown|bullets?|bullet points?|xml|yaml|html)\b")
CLAUSE = re.compile(r"[,;:]|\b(and|or|but|then|because|which|that)\b")
VERBS = (
    *("summari[sz]e", "explain", "compare", "generate", "implement", "list", "write", "describe"),
    *("define", "what", "how", "why"),
)
VERB_PATTERNS = [re.compile(rf"\b{verb}") for verb in VERBS]
NUM_FEATURES = 6 + len(VERBS) + 1


def features(prompt: str) -> list[float]:
    """The 19 numbers; the first verb of the list that stands in the prompt counts, else `other`."""
    text = message_of(prompt)
    lower = text.lower()
    verb = next((i for i, it in enumerate(VERB_PATTERNS) if it.search(lower)), len(VERBS))
    return [
        len(text) // 4,
        float(bool(CODE.search(lower))),
        float(bool(LIMIT.search(lower))),
        float(text.rstrip().endswith("?")),
        float(bool(FORMAT.search(lower))),
        float(len(CLAUSE.findall(lower))),
        *(float(place == verb) for place in range(len(VERBS) + 1)),
    ]


class Clairvoyant:
    """Gradient-boosted trees on the features."""

    source = "Clairvoyant, arXiv 2606.07248, and its repository's training script"
    differs = (
        "scikit-learn's boosted trees instead of XGBoost (300 of depth 6 at 0.1, as there); its"
        " lists of words are ours; classes of fewer than an answer in a hundred become thirds"
    )

    def __init__(self) -> None:
        self._trees: Any = None
        self._middles: FloatArray = np.zeros(3)

    def fit(self, requests: Sequence[Answered]) -> None:
        """Three classes of length."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        tokens = np.array([request.tokens for request in requests])
        classes = np.searchsorted(EDGES, tokens, side="right")
        shares = np.bincount(classes, minlength=len(EDGES) + 1) / len(classes)
        if shares.min() < LEAST_SHARE:
            classes = np.searchsorted(np.quantile(tokens, [1 / 3, 2 / 3]), tokens, side="right")
        self._trees = HistGradientBoostingClassifier(
            max_iter=300, max_depth=6, learning_rate=0.1, random_state=42
        ).fit(self._columns(requests), classes)
        self._middles = np.array([tokens[classes == it].mean() for it in self._trees.classes_])

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """The probability of the longest class, and the classes' mean tokens by probability."""
        shares = self._trees.predict_proba(self._columns(requests))
        return Predicted(shares[:, -1], shares @ self._middles)

    @staticmethod
    def _columns(requests: Sequence[Answered]) -> FloatArray:
        return np.array([features(request.prompt) for request in requests])
