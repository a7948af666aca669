"""
A part's scores: what each process and each of Ray's actors does.

    score = PartScorer("run/ranker")
    score(part)                       # a ScoredPart, with its file's content
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pars.files import utf8
from pars.learn.scoring.folder import ScoredPart
from pars.learn.scoring.parts import Part
from pars.ranking.ranker import Scorer
from pars.ranking.scorers import load_scorer, own_calibration, scored_offline, tells_tokens
from pars.request.conversation import checksum_of

PROMPTS_A_CALL = 256


class PartScorer:
    """Scores parts with one ranker, loaded once."""

    def __init__(self, ranker: str) -> None:
        self._name = ranker
        self._scorer: Scorer = load_scorer(ranker)

    def __call__(self, part: Part) -> ScoredPart:
        """
        Scores, and expected tokens where the ranker has them.

        Raises:
            RankerError: the ranker fails, or gives no finite number.
        """
        return ScoredPart.of(part, b"".join(self._lines(part)))

    def _lines(self, part: Part) -> Iterator[bytes]:
        for first in range(0, len(part.prompts), PROMPTS_A_CALL):
            prompts = part.prompts[first : first + PROMPTS_A_CALL]
            scores = scored_offline(self._scorer, prompts, self._name, only_scores=True).tolist()
            tokens = self._tokens(prompts, scores)
            for place, prompt in enumerate(prompts):
                row: dict[str, Any] = {
                    "id": part.ids[first + place],
                    "text_sha256": checksum_of(prompt),
                    "score": scores[place],
                }
                if tokens is not None:
                    row["expected_tokens"] = round(tokens[place], 1)
                yield utf8(json.dumps(row, ensure_ascii=False)) + b"\n"

    def _tokens(self, prompts: list[str], scores: list[float]) -> list[float] | None:
        if tells_tokens(self._scorer):
            told: list[float] = scored_offline(self._scorer, prompts, self._name).tolist()
            return told
        info = getattr(self._scorer, "info", None)
        calibration = own_calibration(self._scorer)
        if calibration is None or not (info and info.score_quantiles and info.expected_tokens):
            return None
        return list(map(calibration.expected_tokens, scores))


@lru_cache(maxsize=1)
def _loaded(ranker: str) -> PartScorer:
    return PartScorer(ranker)


def scored_part(ranker: str, part: Part) -> ScoredPart:
    """`PartScorer(ranker)(part)`; a process loads the ranker with its first part."""
    return _loaded(ranker)(part)
