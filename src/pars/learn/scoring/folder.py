"""
The folder that `pars score` fills: a file of scores for each part, and score.json beside them.

    out/
    ├── score.json           by whom, of which files, and which of those are done
    └── 0000-00000.jsonl     of the first file the first part: {"id", "text_sha256", "score"}

A part's file is there whole or not at all. No prompt is kept; a checksum stands for each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pars.errors import DataError, ParsError
from pars.files import write_json, written_whole
from pars.learn.scoring.parts import Log, Part

FORMAT = "pars-score-1"
META_FILE = "score.json"


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """
    What came of a part.

    Attributes:
        content: Of its file; None where that was there.
        num_rows: With a score.
    """

    file: int
    number: int
    name: str
    content: bytes | None
    num_rows: int
    num_left_out: int
    is_last: bool

    @classmethod
    def of(cls, part: Part, content: bytes | None = None) -> "ScoredPart":
        """The part with what its file is to hold; None: it is there."""
        num_rows = len(part.prompts)
        return cls(
            part.file, part.number, part.name, content, num_rows, part.num_left_out, part.is_last
        )


@dataclass(slots=True)
class FileState:
    """
    A log, and how much of it is there.

    Attributes:
        num_parts: None until it is known, which is when all of them are there.
    """

    name: str
    num_bytes: int
    num_parts: int | None = None
    num_rows: int = 0
    num_left_out: int = 0


class ScoreFolder:
    """Parts that are there, and those that come."""

    def __init__(self, path: Path, settings: Mapping[str, Any], logs: Sequence[Path]) -> None:
        """
        Made, or gone on with.

        Raises:
            ParsError: it was filled with other settings or of other files, a log is missing, or the
                folder cannot be written.
        """
        self.path = path
        self._logs = logs
        self._settings = {"format": FORMAT, **settings}
        self.files = [FileState(it.name, _size(it)) for it in logs]
        self._seen = [0] * len(logs)
        self._last: list[int | None] = [None] * len(logs)
        self._go_on()
        self._write()

    def to_do(self) -> list[Log]:
        """The logs of which a part may be missing."""
        return [
            Log(index, path)
            for index, path in enumerate(self._logs)
            if self.files[index].num_parts is None
        ]

    def names(self) -> frozenset[str]:
        """Of the parts that are there."""
        return frozenset(it.name for it in self.path.glob("[0-9]*.jsonl"))

    def add(self, part: ScoredPart) -> None:
        """
        Write a part's file; note when it was the last that its log lacked.

        Raises:
            ParsError: it cannot be written.
        """
        if part.content is not None:
            with written_whole(self.path / part.name) as file:
                file.write(part.content)
        state = self.files[part.file]
        state.num_rows += part.num_rows
        state.num_left_out += part.num_left_out
        self._seen[part.file] += 1
        if part.is_last:
            self._last[part.file] = part.number
        if self._last[part.file] == self._seen[part.file] - 1:
            state.num_parts = self._seen[part.file]
            self._write()

    def _go_on(self) -> None:
        meta = self.path / META_FILE
        if not meta.exists():
            if self.names():
                problem = f"holds parts and no {META_FILE}; give another --output"
                raise DataError.at(self.path, problem)
            return
        try:
            known = json.loads(meta.read_text(encoding="utf-8"))
            files = [FileState(**it) for it in known.pop("files")]
            is_ours = known["format"] == FORMAT
        except (OSError, ValueError, AttributeError, LookupError, TypeError):
            is_ours = False
        if not is_ours:
            raise DataError.at(meta, "is not what `pars score` writes; give another --output")
        for name in sorted(known.keys() | self._settings.keys()):
            before, now = known.get(name), self._settings.get(name)
            if before != now:
                told = f"was scored with {name} {json.dumps(before)}, not {json.dumps(now)}"
                raise ParsError(f"{self.path}: {told}; give another --output")
        self._take(files)

    def _take(self, known: Sequence[FileState]) -> None:
        """Those that are done; more files may follow the known ones."""
        for place, before in enumerate(known):
            now = self.files[place] if place < len(self.files) else None
            if now is None or (now.name, now.num_bytes) != (before.name, before.num_bytes):
                told = f"file {place + 1} was {before.name} of {before.num_bytes:,} bytes"
                told += f", not {now.name} of {now.num_bytes:,}" if now else ", which is not given"
                hint = "give the same files (more may follow them), or another --output"
                raise ParsError(f"{self.path}: {told}: {hint}")
            if before.num_parts is not None:
                self.files[place] = before

    def _write(self) -> None:
        files = [
            asdict(it if it.num_parts is not None else FileState(it.name, it.num_bytes))
            for it in self.files
        ]
        write_json(self.path / META_FILE, {**self._settings, "files": files})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError.at(path, f"cannot be read: {error.strerror or error}") from error
