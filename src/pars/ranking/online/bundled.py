"""
What the bundled ranker says of prompts, which the ranker that learns hears at first.

    bundled = BundledWord()
    guess = ranker.expect(signals, bundled.for_now(ranker, signals))

The gateway asks it beside the event loop; this is for replays and simulations.
"""

from collections.abc import Sequence

from pars.ranking.online.ranker import OnlineRanker
from pars.ranking.ranker import Ranker
from pars.request.features import Signals
from pars.scheduling.demand import Calibration


class BundledWord:
    """
    The bundled ranker, loaded.

    Raises:
        RankerError: it cannot be loaded.
    """

    def __init__(self) -> None:
        self._ranker = Ranker.load()
        self._calibration = Calibration.of(self._ranker.info)

    def of_all(self, texts: Sequence[str]) -> list[float]:
        """Its scores in standard deviations, [num_texts]; 0 where there is no text."""
        scores = self._ranker.score([text or " " for text in texts]).tolist()
        return [
            self._calibration.standard(score) if text else 0.0
            for text, score in zip(texts, scores, strict=True)
        ]

    def for_now(self, ranker: OnlineRanker, signals: Signals) -> float:
        """What `ranker.expect` is to hear of it by now."""
        share = ranker.bundled_share
        return share * self.of_all([signals.text])[0] if share else 0.0
