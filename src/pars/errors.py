"""
The exceptions that people see, as one small tree.

    ParsError            anything `pars` says in one clear line; the command line exits with 2
    ├── DataError        a file, row or field is not what it must be
    ├── RankerError      a ranker folder or checkpoint is missing, damaged or of the wrong kind
    └── MissingExtra     the command needs an optional dependency that is not installed
"""

from pathlib import Path

INTERRUPTED = 130  # exit code of what Ctrl-C ended, as shells report it: 128 + SIGINT


class ParsError(Exception):
    """One clear line for a person: what is wrong, where, and what would be right."""

    exit_code = 2


class DataError(ParsError):
    """Input data is not what it must be."""

    @classmethod
    def at(cls, path: Path | str, problem: str, *, row: int | None = None) -> "DataError":
        """An error that names its place: `FILE, row 3: PROBLEM` (rows count from 1)."""
        place = f"{path}" if row is None else f"{path}, row {row}"
        return cls(f"{place}: {problem}")


class RankerError(ParsError):
    """A ranker cannot be loaded or scored with."""


def one_line(text: object, max_chars: int = 500) -> str:
    """
    `text` as it may stand in a log: short, and without characters that could forge a line of it.

    Whatever a client sent may be in an exception's text, line breaks and escape sequences too.
    """
    cut = str(text)[:max_chars]
    return "".join(it if it.isprintable() else ascii(it)[1:-1] for it in cut)


class MissingExtra(ParsError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the '{extra}' extra: pip install 'pars-llm[{extra}]'")
