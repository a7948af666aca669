"""
The file that `pars collect` fills: one whole line an answer, and beside it FILE.meta.json.

    with AnswerFile.open(path, settings) as answers:
        answers.asked_already(prompts)            # {(prompt index, sample)}
        answers.add(record)                       # a whole line of the file when this returns

Settings stand in a side file and not in a first line, so that every line is a record and the file
goes into `pars prepare records` (and jq, and pandas) as it is. A line that was cut short is taken
off at the next start, and its answer is asked for again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pars.errors import DataError, ParsError
from pars.files import utf8, write_json
from pars.learn.collect.prompts import Prompt
from pars.learn.collect.reply import Reply

FORMAT = "pars-collect-1"


def record_of(prompt: Prompt, sample: int, reply: Reply, *, keep_text: bool) -> dict[str, Any]:
    """The line of an answer."""
    record: dict[str, Any] = {
        "index": prompt.index,
        "sample": sample,
        "prompt": prompt.text,
        "prompt_sha256": prompt.checksum,
        "answer_tokens": reply.answer_tokens,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "seconds": reply.seconds,
    }
    if reply.thinking_tokens is not None:
        record["thinking_tokens"] = reply.thinking_tokens
    if reply.problem:
        record["usage_problem"] = reply.problem
    if keep_text:
        record["answer"] = reply.text
        if reply.thinking:
            record["thinking"] = reply.thinking
    return record


def meta_path(path: Path) -> Path:
    """Where the settings of an answer file stand."""
    return path.with_name(f"{path.name}.meta.json")


@dataclass(eq=False)
class AnswerFile:
    """
    Answers collected so far, and those that come.

    Attributes:
        records: (index, checksum, sample, answer tokens or None) of each line when it was opened.
        num_bytes_cut: Taken off the end when it was opened.
    """

    path: Path
    records: list[tuple[int, str, int, int | None]] = field(default_factory=list)
    num_bytes_cut: int = 0
    _handle: int = -1
    _size: int = 0

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Self:
        """
        The file with its settings: made, or gone on with.

        Raises:
            ParsError: it is not ours, was collected with other settings, is in use by another
                process, or cannot be written.
        """
        answers = cls(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            answers._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            answers._take_lock()
            answers._check(settings)
            answers._read()
        except BaseException:
            answers.close()
            raise
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Bring what was added to the disk itself, and close."""
        if self._handle >= 0:
            with suppress(OSError):
                os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1

    def asked_already(self, prompts: Sequence[Prompt]) -> set[tuple[int, int]]:
        """
        (prompt index, sample) of every answer that is there.

        Raises:
            DataError: an answer is to a prompt that the file of prompts does not have there.
        """
        for number, (index, checksum, *_) in enumerate(self.records, 1):
            if index >= len(prompts) or prompts[index].checksum != checksum:
                problem = (
                    f"answers row {index + 1} of other prompts than these: give the same file"
                    " (prompts may be added at its end only), or another --output"
                )
                raise DataError.at(self.path, problem, row=number)
        return {(index, sample) for index, _, sample, _ in self.records}

    def add(self, record: Mapping[str, Any]) -> None:
        """
        Append one line in one write; kill -9 after this leaves it whole.

        Raises:
            ParsError: it cannot be written; what was written of it is taken back.
        """
        line = utf8(json.dumps(record, ensure_ascii=False, allow_nan=False)) + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise _unwritable(self.path, error) from error
        self._size += len(line)

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ParsError(f"{self.path}: another `pars collect` is filling this file") from error

    def _check(self, settings: Mapping[str, Any]) -> None:
        meta = meta_path(self.path)
        if not meta.exists():
            if os.fstat(self._handle).st_size:
                problem = f"exists and has no {meta.name}: not a file of `pars collect`"
                raise ParsError(f"{self.path}: {problem}; give another --output")
            write_json(meta, {"format": FORMAT, **settings})
            return
        try:
            known = json.loads(meta.read_text(encoding="utf-8"))
            is_ours = known.pop("format") == FORMAT
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise DataError.at(
                meta, f"is not the settings of a {FORMAT} file; give another --output"
            )
        for name in sorted(known.keys() | settings.keys()):
            before, now = known.get(name), settings.get(name)
            if before != now:
                raise ParsError(
                    f"{self.path}: was collected with {name} {_told(before)}, not {_told(now)}:"
                    f" give the same --{name.replace('_', '-')}, or another --output"
                )

    def _read(self) -> None:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self._cut(len(line))
                    break
                self.records.append(_key(line, self.path, number))
                self._size += len(line)

    def _cut(self, num_bytes: int) -> None:
        self.num_bytes_cut = num_bytes
        try:
            os.ftruncate(self._handle, self._size)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _key(line: bytes, path: Path, number: int) -> tuple[int, str, int, int | None]:
    try:
        row = json.loads(line)
        index, checksum, sample = row["index"], row["prompt_sha256"], row["sample"]
        if type(index) is int and index >= 0 and type(sample) is int and type(checksum) is str:
            return index, checksum, sample, row["answer_tokens"]
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    problem = "is not a line of `pars collect`: remove it, and its answer is asked again"
    raise DataError.at(path, problem, row=number)


def _told(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def _unwritable(path: Path, error: OSError) -> ParsError:
    return ParsError(f"{path}: cannot be written: {error.strerror or error}")
