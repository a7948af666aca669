"""
Writes outcomes to their folder, in a thread of its own: whatever a disk does, no request waits.

    put() ─► queue (bounded) ─► thread: redact, append a line, rotate, make room, drop old prompts

A line is written whole or taken back, so that a kill cuts the last line at most. Lines go to the
kernel and not to the platter: they outlive the process, not a power failure.
"""

import errno
import importlib
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from queue import Empty, SimpleQueue

from pars.errors import ParsError
from pars.outcomes.metrics import OutcomeMetrics
from pars.outcomes.records import KEY_FILE, OUTCOMES, PROMPTS, SUFFIX, Outcome, json_line, segments
from pars.request.conversation import message_of, with_message

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

MAX_QUEUED = 4096
MOST_SEGMENT_BYTES = 16 << 20
SEGMENTS_IN_ALL = 8  # at least, so that making room drops no more than an eighth
LEAST_BYTES = SEGMENTS_IN_ALL * 4096
RETENTION_PARTS = 10  # prompts of a tenth of the retention time are dropped together
UPKEEP_S = 60.0
LINGER_S = 0.05  # so that a thousand a second wake the thread twenty times; a kill costs as much
RETRY_S = 1.0  # after a failure: meanwhile outcomes are dropped without a try
SECONDS_BETWEEN_WARNINGS = 60.0
# A disk, a quota or a file that takes no more, as against a disk that is broken or gone.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TIME_FORMAT = "%Y%m%dT%H%M%SZ"

Redact = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeLimits:
    """
    What may be kept.

    Attributes:
        max_bytes: Of all files together; beyond it the oldest outcomes go.
        keeps_prompts: Whether scored texts are written at all.
        retention_s: After which a text is dropped.
        redact: Called with each text before it is written, in the writer's thread; what it
            returns is written, None leaves the text out.
    """

    max_bytes: int = 256 << 20
    keeps_prompts: bool = False
    retention_s: float = 7 * 86_400.0
    redact: Redact | None = None

    def __post_init__(self) -> None:
        if self.max_bytes < LEAST_BYTES:
            raise ParsError(f"outcome_max_bytes: must be at least {LEAST_BYTES}: {self.max_bytes}")
        if not 0 < self.retention_s <= 1e9:
            raise ParsError(
                f"outcome_retention_s: must be more than 0, up to 1e9: {self.retention_s}"
            )

    @property
    def segment_bytes(self) -> int:
        """At which a new file is begun."""
        return min(MOST_SEGMENT_BYTES, self.max_bytes // SEGMENTS_IN_ALL)


def load_redact(name: str) -> Redact:
    """
    The function called `package.module:function`.

    Raises:
        ParsError: there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ParsError(f"outcome_redact: {name!r} is not package.module:function: {error}") from (
            error
        )
    if not callable(function):
        raise ParsError(f"outcome_redact: {name!r} cannot be called")
    return function  # type: ignore[no-any-return]


class OutcomeWriter:
    """
    Appends outcomes to files in `folder`, from one thread; makes the folder if need be.

    Raises:
        ParsError: the folder cannot be made or written to. A disk that is full is no such error.
    """

    def __init__(
        self,
        folder: Path,
        limits: OutcomeLimits,
        metrics: OutcomeMetrics,
        *,
        clock: Callable[[], float] = time.time,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self.folder = folder
        self.limits = limits
        _make_folder(folder)
        self._metrics = metrics
        self._clock = clock
        self._key = folder_key(folder)
        self._outcomes = _Appender(folder, OUTCOMES, limits.segment_bytes, clock)
        self._prompts = _Appender(
            folder, PROMPTS, limits.segment_bytes, clock, limits.retention_s / RETENTION_PARTS
        )
        self._queue: SimpleQueue[Outcome | None] = SimpleQueue()
        self._max_queued = max_queued
        self._quiet_until_s = 0.0
        self._thread: threading.Thread | None = None

    def key_of(self, text: str) -> str:
        """What stands for a text, 16 hexadecimal digits: the same for all writers of the folder."""
        data = text.encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=8, key=self._key).hexdigest()

    def put(self, outcome: Outcome) -> None:
        """Have an outcome written. Never blocks, never raises; dropped if too many wait."""
        if self._queue.qsize() >= self._max_queued:
            self._metrics.dropped("queue_full")
        else:
            self._queue.put(outcome)

    def start(self) -> None:
        """Start the thread; what was put before is written then."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="pars-outcomes", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Write what waits, for so long at most. Blocks."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)
        with suppress(Empty):
            while True:
                if self._queue.get_nowait() is not None:
                    self._metrics.dropped("shutdown")

    # In the thread

    def _work(self) -> None:
        upkeep_s = min(UPKEEP_S, self.limits.retention_s / RETENTION_PARTS)
        due_s = 0.0
        while True:
            if time.monotonic() >= due_s:
                self._keep_house()
                due_s = time.monotonic() + upkeep_s
            with suppress(Empty):
                outcome = self._queue.get(timeout=max(0.0, due_s - time.monotonic()))
                if outcome is None:
                    break
                self._write(outcome)
                if self._queue.empty():
                    time.sleep(LINGER_S)
        self._outcomes.close()
        self._prompts.close()

    def _write(self, outcome: Outcome) -> None:
        if outcome.prompt is not None and self.limits.keeps_prompts:
            problem = self._write_prompt(outcome)
            if problem:
                self._metrics.dropped_prompt(problem)
        problem = self._append(self._outcomes, outcome.to_line())
        if problem:
            self._metrics.dropped(problem)
        else:
            self._metrics.written.inc()

    def _write_prompt(self, outcome: Outcome) -> str | None:
        """Redact and append the text; why it could not be, or None."""
        text = outcome.prompt
        if self.limits.redact is not None and text is not None:
            try:
                text = self.limits.redact(message_of(text))
            except Exception as error:  # somebody else's code; its message may quote the prompt
                self._warn(f"a prompt is left out, redaction raised {type(error).__name__}")
                return "redact_failed"
        if text is None:
            return "redacted"
        if not isinstance(text, str):
            self._warn(f"a prompt is left out, redaction gave a {type(text).__name__}")
            return "redact_failed"
        # The hook saw the message alone: a rule for numbers, say, would spoil the note before it.
        text = with_message(outcome.prompt or "", text)
        line = json_line({"prompt_key": outcome.prompt_key, "prompt": text})
        return self._append(self._prompts, line)

    def _append(self, appender: "_Appender", line: bytes) -> str | None:
        try:
            if appender.append(line):
                self._keep_house()
        except OSError as error:
            self._warn(f"outcomes are dropped: {appender.place}: {error.strerror or error}")
            return "disk_full" if error.errno in NO_ROOM else "write_failed"
        return None

    def _keep_house(self) -> None:
        """Drop prompts that are too old, and the oldest files beyond the bound on size."""
        try:
            self._outcomes.let_go()
            self._prompts.let_go()
            self._drop_old_prompts()
            self._make_room()
        except OSError as error:
            self._warn(f"old outcomes stay: {self.folder}: {error.strerror or error}")

    def _drop_old_prompts(self) -> None:
        now_s = self._clock()
        for path in segments(self.folder, PROMPTS):
            # One from the future was written by a clock that was wrong: how old is it? Too old.
            if abs(now_s - _start_s(path, now_s)) > self.limits.retention_s:
                self._prompts.forget(path)
                path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        files = segments(self.folder, OUTCOMES) + segments(self.folder, PROMPTS)
        files.sort(key=lambda path: path.name.partition("-")[2])
        sizes = {path: _size(path) for path in files}
        in_use = {self._outcomes.path, self._prompts.path}
        # What may yet be added to the files in use counts as if it were there.
        most = self.limits.max_bytes - 2 * self.limits.segment_bytes
        total = sum(size for path, size in sizes.items() if path not in in_use)
        for path in files:
            if total <= most:
                return
            if path not in in_use:
                path.unlink(missing_ok=True)
                total -= sizes[path]

    def _warn(self, problem: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + SECONDS_BETWEEN_WARNINGS
            log.warning("%s", problem)


class _Appender:
    """Lines to the newest of a series of files: each line whole, or not there."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        max_bytes: int,
        clock: Callable[[], float],
        max_age_s: float | None = None,
    ) -> None:
        self.path: Path | None = None
        self._folder = folder
        self._kind = kind
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._handle = -1
        self._num_bytes = 0
        self._number = 0
        self._began_s = 0.0
        self._failure: OSError | None = None
        self._retry_s = 0.0

    @property
    def place(self) -> Path:
        return self.path or self._folder

    def append(self, line: bytes) -> bool:
        """
        Append a line; whether a new file was begun for it.

        Raises:
            OSError: it could not be written, or another just before it could not.
        """
        if self._failure is not None and time.monotonic() < self._retry_s:
            raise self._failure
        try:
            is_new = not self._has_room(line)
            if is_new:
                self._begin()
            self._write(line)
        except OSError as error:
            self._failure, self._retry_s = error, time.monotonic() + RETRY_S
            raise
        self._failure = None
        return is_new

    def let_go(self) -> None:
        """Close a file that somebody removed: its bytes are on the disk until then."""
        if self._handle >= 0 and os.fstat(self._handle).st_nlink == 0:
            self.close()

    def forget(self, path: Path) -> None:
        """Begin another file if `path` is the one in use."""
        if path == self.path:
            self.close()

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self.path = -1, None

    def _has_room(self, line: bytes) -> bool:
        if self._handle < 0 or os.fstat(self._handle).st_nlink == 0:  # somebody removed it
            return False
        if self._max_age_s is not None and time.monotonic() - self._began_s >= self._max_age_s:
            return False
        return self._num_bytes == 0 or self._num_bytes + len(line) <= self._max_bytes

    def _begin(self) -> None:
        self.close()
        start = datetime.fromtimestamp(self._clock(), UTC).strftime(TIME_FORMAT)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        while self._handle < 0:
            self._number += 1
            path = self._folder / f"{self._kind}{start}-{os.getpid()}-{self._number:06}{SUFFIX}"
            with suppress(FileExistsError):  # of another host's process with this number
                self._handle = os.open(path, flags, 0o600)
                self.path = path
        self._num_bytes = 0
        self._began_s = time.monotonic()

    def _write(self, line: bytes) -> None:
        num_written = 0
        try:
            while num_written < len(line):
                num_written += os.write(self._handle, line[num_written:])
        except OSError:
            self._take_back(num_written)
            raise
        self._num_bytes += num_written

    def _take_back(self, num_written: int) -> None:
        """No half line stays, or at least nothing follows it."""
        if num_written:
            try:
                os.ftruncate(self._handle, self._num_bytes)
            except OSError:
                self.close()


def folder_key(folder: Path) -> bytes:
    """
    The key of the hash that stands for prompts, made once per folder.

    Without it a hash gives a short or common prompt away to whoever tries a list of them. Where it
    cannot be kept, it is good for this process only.
    """
    path = folder / KEY_FILE
    new = path.with_name(f".{KEY_FILE}-{secrets.token_hex(8)}")
    try:
        if not path.exists():
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with suppress(FileExistsError):  # another process was faster
                path.hardlink_to(new)
        key = bytes.fromhex(path.read_text())
        if len(key) == 32:
            return key
        problem = "is not 64 hexadecimal digits"
    except (OSError, ValueError) as error:
        problem = str(error)
    finally:
        with suppress(OSError):
            new.unlink()
    log.warning("%s: %s: equal prompts get another key after a restart", path, problem)
    return secrets.token_bytes(32)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise ParsError(
                f"outcomes: {folder} cannot be made: {error.strerror or error}"
            ) from error
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise ParsError(f"outcomes: {folder} cannot be written to")


def _start_s(path: Path, default_s: float) -> float:
    """When the file was begun, by its name; `default_s` if it is named like none of ours."""
    try:
        start = datetime.strptime(path.name.split("-")[1], TIME_FORMAT)
        return start.replace(tzinfo=UTC).timestamp()
    except (IndexError, ValueError):
        return default_s


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
