"""A line on stderr for somebody who waits: what runs, how far it is, and how long it will take."""

import sys
import time
from typing import TextIO

EVERY_S = 0.5


class Progress:
    """
    Over turns of equal numbers of requests; the time left is what the past ones took.

    On a terminal one line is rewritten; into a file goes one line a turn.
    """

    def __init__(self, num_turns: int, stream: TextIO | None = None) -> None:
        self._num_turns = num_turns
        self._stream = stream or sys.stderr
        self._began_s = time.monotonic()
        self._num_ended_turns = 0
        self._shown_s = 0.0
        self._name = ""
        self._num = self._num_done = self._num_failed = 0

    def begin(self, name: str, num_requests: int) -> None:
        self._name, self._num = name, max(1, num_requests)
        self._num_done = self._num_failed = 0
        self._turn_began_s = time.monotonic()

    def step(self, *, failed: bool) -> None:
        self._num_done += 1
        self._num_failed += failed
        now_s = time.monotonic()
        if self._stream.isatty() and now_s - self._shown_s > EVERY_S:
            self._shown_s = now_s
            self._stream.write(f"\r\x1b[K{self._line(now_s)}{self._left(now_s)}")
            self._stream.flush()

    def end(self, is_whole: bool) -> None:
        now_s = time.monotonic()
        self._num_ended_turns += 1
        start = "\r\x1b[K" if self._stream.isatty() else ""
        told = self._line(now_s) + ("" if is_whole else ", INTERRUPTED")
        self._num_done = 0
        self._stream.write(f"{start}{told}{self._left(now_s)}\n")
        self._stream.flush()

    def _line(self, now_s: float) -> str:
        turn = min(self._num_ended_turns + (self._num_done < self._num), self._num_turns)
        failed = f", {self._num_failed} FAILED" if self._num_failed else ""
        return (
            f"[{turn}/{self._num_turns}] {self._name}: {self._num_done} of"
            f" {self._num} answers{failed}, {now_s - self._turn_began_s:.0f} s"
        )

    def _left(self, now_s: float) -> str:
        done = self._num_ended_turns + self._num_done / self._num
        if done <= 0 or done >= self._num_turns:
            return ""
        left_s = (now_s - self._began_s) * (self._num_turns - done) / done
        return (
            f"; about {left_s:.0f} s left"
            if left_s < 120
            else f"; about {left_s / 60:.0f} min left"
        )
