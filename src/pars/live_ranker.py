"""
A ranker that can be replaced on disk while it serves, giving expected answer tokens.

Score and calibration come from one ranker at a time: both are taken from the same snapshot, in the
worker thread, so a request is never scored by one ranker and calibrated by another.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pars.errors import RankerError
from pars.priority import Calibration
from pars.ranker import Ranker

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

Signature = tuple[tuple[str, int, int], ...]


class LoadedRanker(Protocol):
    """What `Ranker.load` gives, as far as it is used here."""

    @property
    def info(self) -> Any: ...

    def score(self, prompts: Sequence[str], /) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class _Snapshot:
    ranker: LoadedRanker | None
    calibration: Calibration


class LiveRanker:
    """
    Expected answer tokens from the newest whole ranker in `folder`.

    Thread-safe. A folder that is missing or damaged leaves the ranker before it in place; with none
    before it, `score` raises and the calibration is the assumed one.
    """

    def __init__(self, folder: Path, *, load: Callable[[Path], LoadedRanker] = Ranker.load) -> None:
        self.folder = folder
        self._load = load
        self._signature: Signature | None = None
        self._snapshot = _Snapshot(None, Calibration())
        self.num_batches = 0  # scored so far; shows that the scorer is alive

    @property
    def is_loaded(self) -> bool:
        """Whether any ranker has been loaded."""
        return self._snapshot.ranker is not None

    @property
    def calibration(self) -> Calibration:
        """The calibration of the ranker in use."""
        return self._snapshot.calibration

    def score(self, prompts: Sequence[str], /) -> NDArray[np.float32]:
        """
        Expected answer tokens [num_prompts]. Blocks.

        Raises:
            RankerError: no ranker has been loaded yet, or it gave a score that is not finite.
        """
        snapshot = self._snapshot
        if snapshot.ranker is None:
            raise RankerError(f"{self.folder}: no ranker is loaded")
        scores = np.asarray(snapshot.ranker.score(prompts))
        if not np.isfinite(scores).all():
            raise RankerError(f"{self.folder}: the ranker gave a score that is no finite number")
        self.num_batches += 1
        tokens = [snapshot.calibration.expected_tokens(score) for score in scores.tolist()]
        return np.array(tokens, dtype=np.float32)

    def refresh(self) -> bool:
        """
        Load the folder if it changed since the last look; whether it did. Blocks.

        Raises:
            RankerError: it changed and cannot be loaded; not tried again until it changes again.
        """
        signature = self._look()
        if signature == self._signature:
            return False
        self._signature = signature
        ranker = self._load(self.folder)
        self._snapshot = _Snapshot(ranker, Calibration.of(ranker.info))
        return True

    def _look(self) -> Signature:
        try:
            files = [(file.name, file.stat()) for file in self.folder.iterdir()]
        except OSError:
            return ()
        return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in files))


async def keep_fresh(ranker: LiveRanker, every_s: float, on_result: Callable[[str], None]) -> None:
    """Look at the folder every so often (0: never); `on_result` hears "loaded" or "failed"."""
    while every_s:
        await asyncio.sleep(every_s)
        try:
            if await asyncio.to_thread(ranker.refresh):
                log.info("loaded the ranker in %s", ranker.folder)
                on_result("loaded")
        except Exception as error:  # a reload must never end the loop that would repair it
            log.error("the ranker stays as it is: %s", error)
            on_result("failed")
