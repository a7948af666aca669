"""
Scores large logs in bounded memory: a part is read, scored and written, then the next.

    report = score(ScorePlan(files=(Path("log.parquet"),), output=Path("scores"), ranker=DIR))

Reading is one process's work, scoring that of many; `on_ray` has both done by a cluster. Whoever
scores, this process writes, so that a part is there whole or not at all. A run that was stopped
goes on where it was.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from pars.errors import ParsError
from pars.learn.scoring.folder import ScoredPart, ScoreFolder
from pars.learn.scoring.parts import Log, Part, Reading, parts_of
from pars.learn.scoring.scorer import scored_part
from pars.processes import spread
from pars.ranking.live_ranker import fingerprint_of
from pars.ranking.scorers import is_object_name, load_for_serving


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePlan:
    """
    What is scored, by whom, and into which folder.

    Attributes:
        ranker: A ranker folder, or module:object.
        num_processes: None: one a core.
        ray: The address of a Ray cluster, "local" for one of this machine; None: processes here.
    """

    files: tuple[Path, ...]
    output: Path
    ranker: str
    reading: Reading = field(default_factory=Reading)
    num_processes: int | None = None
    ray: str | None = None

    def settings(self) -> dict[str, str | int | None]:
        """What decides the scores and the parts, and so must stay the same in one folder."""
        name = self.ranker
        return {
            "ranker": name if is_object_name(name) else fingerprint_of(Path(name)),
            "prompt_field": self.reading.prompt_field,
            "id_field": self.reading.id_field,
            "rows_a_part": self.reading.rows_a_part,
        }


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """
    Counts of a run.

    Attributes:
        num_rows: With a score, those that were there among them.
        num_before: Of these, those that were there.
    """

    output: Path
    num_rows: int
    num_before: int
    num_left_out: int
    seconds: float
    is_whole: bool

    def render(self) -> str:
        """What a person reads at the end."""
        num_new = self.num_rows - self.num_before
        told = f"{num_new:,} prompts scored in {self.seconds:,.1f} s"
        told += f" ({num_new / self.seconds:,.0f} a second)" if self.seconds else ""
        told += f"; {self.num_before:,} were there" if self.num_before else ""
        told += (
            f"; {self.num_left_out:,} rows without a prompt left out" if self.num_left_out else ""
        )
        if not self.is_whole:
            return f"{told}\nStopped: the same command again goes on where it was"
        return f"{told}\nScores: {self.output} (try: pars simulate --scores mine={self.output} …)"


def score(plan: ScorePlan, progress: TextIO = sys.stderr) -> ScoreReport:
    """
    Score what has no score yet. Ctrl-C ends it, and loses the parts that are being scored.

    Raises:
        ParsError: a file, the ranker or the folder is not what it must be, or a process was killed.
    """
    load_for_serving(plan.ranker)  # before anything is made
    folder = ScoreFolder(plan.output, plan.settings(), plan.files)
    there = folder.names()
    num_before = sum(it.num_rows for it in folder.files)
    line = _Progress(progress, len(plan.files))
    try:
        for part in _scored(plan, folder.to_do(), there):
            folder.add(part)
            num_before += part.num_rows if part.content is None else 0
            line.show(folder, num_before)
    except KeyboardInterrupt:
        pass
    except BrokenProcessPool:
        hint = "the same command goes on; with fewer --num-processes it takes less memory"
        raise ParsError(f"a process that scored was killed (out of memory?): {hint}") from None
    finally:
        line.end()
    return ScoreReport(
        plan.output,
        num_rows=sum(it.num_rows for it in folder.files),
        num_before=num_before,
        num_left_out=sum(it.num_left_out for it in folder.files),
        seconds=line.seconds,
        is_whole=all(it.num_parts is not None for it in folder.files),
    )


def _scored(plan: ScorePlan, logs: list[Log], there: frozenset[str]) -> Iterator[ScoredPart]:
    """Every part of the logs, as it is done; those that are there with no content."""
    if plan.ray is not None:
        from pars.learn.scoring.on_ray import scored_on_ray

        yield from scored_on_ray(plan.ray, plan.ranker, logs, plan.reading, there)
        return
    known: list[ScoredPart] = []

    def missing() -> Iterator[Part]:
        for log in logs:
            for part in parts_of(log, plan.reading):
                if part.name in there:
                    known.append(ScoredPart.of(part))
                else:
                    yield part

    for done in spread(partial(scored_part, plan.ranker), missing(), plan.num_processes):
        yield done
        while known:
            yield known.pop()
    yield from known


class _Progress:
    """One line: rewritten on a terminal, now and then in a file."""

    def __init__(self, stream: TextIO, num_files: int) -> None:
        self._stream = stream
        self._num_files = num_files
        self._every_s = 0.5 if stream.isatty() else 10.0
        self._began_s = self._shown_s = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def show(self, folder: ScoreFolder, num_before: int) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < self._every_s:
            return
        self._shown_s = now_s
        num_rows = sum(it.num_rows for it in folder.files)
        num_done = sum(it.num_parts is not None for it in folder.files)
        speed = (num_rows - num_before) / (now_s - self._began_s)
        told = f"score: {num_rows:,} prompts, {speed:,.0f} a second"
        told += f", {num_done} of {self._num_files} files done"
        self._stream.write(f"\r\x1b[K{told}" if self._stream.isatty() else f"{told}\n")
        self._stream.flush()

    def end(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()
