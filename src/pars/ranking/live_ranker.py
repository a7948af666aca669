"""
A ranker that can be replaced on disk while it serves, giving expected answer tokens.

Score, calibration and fingerprint come from one ranker: all are taken from the same snapshot, in
the worker thread, so a request is never scored by one ranker and calibrated by another.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from pars.errors import RankerError, one_line
from pars.ranking.ranker import Scorer
from pars.ranking.scorers import Scale, is_object_name, load_for_serving, scored
from pars.scheduling.demand import Calibration

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Expectation:
    """
    What a ranker expects of a prompt's answer.

    Attributes:
        score: The ranker's own.
        tokens: What that is in tokens, by the ranker's calibration.
        standard: The score in standard deviations, by the same.
        ranker: Which ranker: the fingerprint of its folder.
    """

    score: float
    tokens: float
    standard: float
    ranker: str


@dataclass(frozen=True, slots=True)
class _Snapshot:
    ranker: Scorer | None
    scale: Scale
    fingerprint: str


class LiveRanker:
    """
    Expected answer tokens from the newest whole ranker in `folder`.

    Thread-safe. A folder that is missing or damaged leaves the ranker before it in place; with none
    before it, `expect` raises and the calibration is the assumed one.

    Args:
        folder: Or the name of an object, module:object, which is loaded once.
    """

    def __init__(self, folder: Path, *, load: Callable[[Path], Scorer] = load_for_serving) -> None:
        self.folder = folder
        self._load = load
        self._signature: Signature | None = None
        self._snapshot = _Snapshot(None, Scale(None), "")
        self._loading = threading.Lock()  # who asked first is loaded first
        self.num_batches = 0  # scored so far; shows that the scorer is alive

    @property
    def is_loaded(self) -> bool:
        """Whether any ranker has been loaded."""
        return self._snapshot.ranker is not None

    @property
    def model_name(self) -> str:
        """What the ranker in use says it is; empty without one."""
        ranker = self._snapshot.ranker
        own = "" if ranker is None else type(ranker).__name__
        return str(getattr(getattr(ranker, "info", None), "model_name", own))

    @property
    def calibration(self) -> Calibration:
        """The calibration of the ranker in use."""
        return self._snapshot.scale.calibration

    @property
    def fingerprint(self) -> str:
        """Of the ranker in use: 12 hexadecimal digits, which change with any byte of its folder."""
        return self._snapshot.fingerprint

    def expect(self, prompts: Sequence[str]) -> list[Expectation]:
        """
        What the ranker in use expects of each prompt. Blocks.

        Raises:
            RankerError: no ranker has been loaded yet, or it gave a score that is not finite.
        """
        snapshot = self._snapshot
        if snapshot.ranker is None:
            raise RankerError(f"{self.folder}: no ranker is loaded")
        scores = scored(snapshot.ranker, prompts, str(self.folder)).tolist()
        self.num_batches += 1
        snapshot.scale.see(scores)
        known, name = snapshot.scale.calibration, snapshot.fingerprint
        return [
            Expectation(score, known.expected_tokens(score), known.standard(score), name)
            for score in scores
        ]

    def load_from(self, folder: Path) -> None:
        """
        Take another ranker's folder from now on. Blocks.

        Raises:
            RankerError: it cannot be loaded; all stays as it is.
        """
        with self._loading:
            other = LiveRanker(folder, load=self._load)
            other.refresh()
            if not other.is_loaded:
                raise RankerError(f"{folder}: there is no ranker")
            self.folder = folder
            self._signature, self._snapshot = other._signature, other._snapshot

    def refresh(self, *, again: bool = False) -> bool:
        """
        Load the folder if it changed since the last look; whether it did. Blocks.

        Args:
            again: Also if it did not change, such as one that could not be loaded. (An object is
                loaded once all the same: Python imports a module once.)

        Raises:
            RankerError: it changed and cannot be loaded; not tried again until it changes again.
        """
        with self._loading:
            return self._refresh(again=again)

    def _refresh(self, *, again: bool) -> bool:
        if is_object_name(str(self.folder)):
            return self._load_object()
        # Where it is a link (`pars learn` makes it one), that may move on meanwhile: it is followed
        # once, so that all is read from one ranker.
        folder = Path(os.path.realpath(self.folder))
        signature = _look(folder)
        if signature == self._signature and not again:
            return False
        self._signature = signature
        ranker = self._load(folder)
        self._snapshot = _Snapshot(ranker, Scale(ranker), fingerprint_of(folder))
        return True

    def _load_object(self) -> bool:
        if self._signature is not None:
            return False
        self._signature = ()
        ranker = self._load(self.folder)
        name = blake2b(str(self.folder).encode(), digest_size=6).hexdigest()
        self._snapshot = _Snapshot(ranker, Scale(ranker), name)
        return True


def _look(folder: Path) -> Signature:
    try:
        files = [(str(file), file.stat()) for file in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in files))


def fingerprint_of(folder: Path) -> str:
    """
    Twelve hexadecimal digits that stand for the names and bytes of a folder's files.

    Raises:
        RankerError: a file cannot be read.
    """
    digest = blake2b(digest_size=6)
    try:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            with path.open("rb") as file:
                content = file_digest(file, blake2b)
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0" + content.digest())
    except OSError as error:
        raise RankerError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


async def keep_fresh(ranker: LiveRanker, every_s: float, on_result: Callable[[str], None]) -> None:
    """Look at the folder every so often (0: never); `on_result` hears "loaded" or "failed"."""
    while every_s:
        await asyncio.sleep(every_s)
        try:
            if await asyncio.to_thread(ranker.refresh):
                log.info("loaded the ranker in %s", ranker.folder)
                on_result("loaded")
        except Exception as error:  # a reload must never end the loop that would repair it
            log.error("the ranker stays as it is: %s", one_line(error))
            on_result("failed")
