"""Lines to the newest of a series of files, which begins anew at a size or an age."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pars.outcomes.records import SUFFIX

RETRY_S = 1.0  # after a failure: meanwhile outcomes are dropped without a try
TIME_FORMAT = "%Y%m%dT%H%M%SZ"


class Appender:
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


def began_s(path: Path, default_s: float) -> float:
    """When the file was begun, by its name; `default_s` if it is named like none of ours."""
    try:
        start = datetime.strptime(path.name.split("-")[1], TIME_FORMAT)
        return start.replace(tzinfo=UTC).timestamp()
    except (IndexError, ValueError):
        return default_s
