"""
What a server says of itself: lines for people, or JSON objects for programs, one a line.

    say = set_up_logs("json")
    say("served at http://localhost:8100")

    {"time": "2026-11-27T02:03:04.567Z", "level": "info", "logger": "pars", "message": "…"}

A message that quotes a client is one line all the same: no text can forge another.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType

import click

from pars.errors import ParsError, one_line

log = logging.getLogger("pars")

MAX_MESSAGE_CHARS = 8192
Say = Callable[[str], None]


class TextLine(logging.Formatter):
    """`WARNING pars: what happened`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message as one line; a traceback follows on lines of its own."""
        record.message = one_line(record.message, MAX_MESSAGE_CHARS)
        return super().formatMessage(record)


class JsonLine(logging.Formatter):
    """An object of time, level, logger, message and, where there was one, exception."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE_CHARS],
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)  # ASCII, so no character of it ends a line for anybody


def set_up_logs(log_format: str) -> Say:
    """
    Have all loggers of this process write to stderr, as `text` or as `json`.

    Returns:
        How to say on stdout what stands for itself, such as where the port is.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if log_format == "json" else TextLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if log_format != "json":
        return click.echo
    logging.captureWarnings(True)
    warnings.simplefilter("once")
    sys.excepthook = _log_the_end
    form = JsonLine()
    return lambda text: click.echo(
        form.format(log.makeRecord("pars", logging.INFO, "", 0, text, (), None))
    )


@contextmanager
def told_in_log(log_format: str) -> Iterator[None]:
    """Where the log is JSON, the error that ends a command is a line of it; exit code as ever."""
    try:
        yield
    except ParsError as error:
        if log_format != "json":
            raise
        log.critical("%s", error)
        sys.exit(error.exit_code)


def _log_the_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("pars ends: %s", kind.__name__, exc_info=(kind, error, trace))
