"""
Writes outcomes to their folder, in a thread of its own: whatever a disk does, no request waits.

    put() ─► queue (bounded) ─► thread: redact, append a line, rotate, make room, drop old prompts

A line is written whole or taken back, so that a kill cuts the last line at most. Lines go to the
kernel and not to the platter: they outlive the process, not a power failure.
"""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from queue import Empty, SimpleQueue

from pars.errors import ParsError
from pars.outcomes.appender import Appender, began_s
from pars.outcomes.folder_key import folder_key
from pars.outcomes.limits import OutcomeLimits
from pars.outcomes.metrics import OutcomeMetrics
from pars.outcomes.records import OUTCOMES, PROMPTS, Outcome, json_line, segments
from pars.request.conversation import message_of, with_message

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

MAX_QUEUED = 4096
RETENTION_PARTS = 10  # prompts of a tenth of the retention time are dropped together
UPKEEP_S = 60.0
LINGER_S = 0.05  # so that a thousand a second wake the thread twenty times; a kill costs as much
SECONDS_BETWEEN_WARNINGS = 60.0
# A disk, a quota or a file that takes no more, as against a disk that is broken or gone.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        self._outcomes = Appender(folder, OUTCOMES, limits.segment_bytes, clock)
        self._prompts = Appender(
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

    def _append(self, appender: "Appender", line: bytes) -> str | None:
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
            if abs(now_s - began_s(path, now_s)) > self.limits.retention_s:
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
