"""
Versions of a ranker: the folder that serves is a link to one of them, and moves in one step.

    ranker -> ranker.versions/0002      what a gateway watches
    ranker.versions/
    ├── 0001/    what the folder held at first
    ├── 0002/    a ranker folder, and learn.json: what it was trained on, and how it was judged
    └── lock     held by the `pars learn` that is at work

A version never changes once it has its number. Whoever reads through the link sees one version, and
a process killed at any moment leaves the link where it was or where it should be.
"""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pars.errors import ParsError
from pars.files import write_json
from pars.learn.evaluation.tables import table
from pars.ranking.ranker_info import RankerInfo

LEARN_FILE = "learn.json"
NUM_KEPT = 20  # versions, at some 5 MB; the one that serves and the one before it always stay
STAGING = ".candidate."
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


class Versions:
    """The versions of the ranker folder `served`, which may not be there yet."""

    def __init__(self, served: Path) -> None:
        self.served = Path.cwd() / served  # and not resolved: it is a link
        self.folder = self.served.with_name(f"{self.served.name}.versions")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        The right to change anything here; what a killed process left half-made is removed.

        Raises:
            ParsError: another process has it, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            _lock(handle, self.served)
            for left in self.folder.glob(f"{STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(handle)

    def numbers(self) -> list[int]:
        """Of all versions that are kept, oldest first."""
        with suppress(OSError):
            return sorted(int(it.name) for it in self.folder.iterdir() if it.name.isdecimal())
        return []

    def path(self, number: int) -> Path:
        """The folder of a version."""
        return self.folder / f"{number:04}"

    def served_number(self) -> int | None:
        """The version that serves; None where the folder is no link to one yet."""
        with suppress(OSError):
            target = self.served.parent / self.served.readlink()
            if target.parent == self.folder and target.name.isdecimal() and target.is_dir():
                return int(target.name)
        return None

    def note(self, number: int) -> dict[str, Any]:
        """learn.json of a version; empty for one that was not learned."""
        with suppress(OSError, ValueError):
            note = json.loads((self.path(number) / LEARN_FILE).read_text(encoding="utf-8"))
            return note if isinstance(note, dict) else {}
        return {}

    def start(self, default: Path) -> int:
        """
        Make the folder a link to a version, unless it is one; the version that serves.

        What it holds becomes a version as it is. A folder that is not there gets a copy of
        `default`, or the newest version where there are some.

        Raises:
            ParsError: the folder holds something that is no ranker, or cannot be written.
        """
        number = self.served_number()
        if number is not None:
            return number
        if not os.path.lexists(self.served) and self.numbers():
            self._point_to(self.numbers()[-1])
            return self.numbers()[-1]
        source = self.served if os.path.lexists(self.served) else default
        RankerInfo.read(source)
        with self.staging() as staging:
            try:
                shutil.copytree(source, staging, dirs_exist_ok=True)
            except (OSError, shutil.Error) as error:
                raise ParsError(f"{source}: cannot be copied to {self.folder}: {error}") from error
            number = self._number(staging)
        self._point_to(number)
        return number

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder beside the versions; gone afterwards, unless it was promoted."""
        try:
            staging = Path(tempfile.mkdtemp(dir=self.folder, prefix=STAGING))
            staging.chmod(0o755)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def promote(self, ranker: Path, note: dict[str, Any]) -> int:
        """
        Make a ranker folder below `staging` the newest version and let it serve; its number.

        Args:
            note: for learn.json; the version, and the one before it, are added.
        """
        number, parent = self._next_number(), self.served_number()
        write_json(ranker / LEARN_FILE, {"version": number, "parent": parent, **note})
        self._number(ranker)
        self._point_to(number)
        self._prune()
        return number

    def roll_back(self) -> tuple[int, int]:
        """
        Let the version serve that did before the present one; both numbers, old and new.

        Raises:
            ParsError: there is none.
        """
        number = self.served_number()
        if number is None:
            raise ParsError(f"{self.served}: is no link to a version: `pars learn` makes it one")
        parent = self.note(number).get("parent")
        if parent not in self.numbers():
            raise ParsError(f"{self.served}: version {number} serves, and none is kept before it")
        self._point_to(parent)
        return number, parent

    def history(self) -> list[dict[str, Any]]:
        """Of each version kept, oldest first: its number, whether it serves, and its learn.json."""
        serving = self.served_number()
        return [
            {**self.note(number), "version": number, "is_serving": number == serving}
            for number in self.numbers()
        ]

    def _next_number(self) -> int:
        return max(self.numbers(), default=0) + 1

    def _number(self, ranker: Path) -> int:
        number = self._next_number()
        try:
            ranker.rename(self.path(number))
        except OSError as error:
            raise _unwritable(self.path(number), error) from error
        return number

    def _point_to(self, number: int) -> None:
        link = self.served.with_name(f".{self.served.name}.link")
        old = self.served.with_name(f".{self.served.name}.old")
        try:
            _remove(link)
            link.symlink_to(Path(self.folder.name) / self.path(number).name)
            if self.served.is_dir() and not self.served.is_symlink():
                # A link cannot replace a folder; the two change names, and the folder goes.
                if not _exchange(link, self.served):
                    _remove(old)
                    self.served.rename(old)
                    link.replace(self.served)
                _remove(link)
                _remove(old)
            else:
                link.replace(self.served)
        except OSError as error:
            raise _unwritable(self.served, error) from error

    def _prune(self) -> None:
        serving = self.served_number()
        kept = {serving, self.note(serving or 0).get("parent"), *self.numbers()[-NUM_KEPT:]}
        for number in set(self.numbers()) - kept:
            shutil.rmtree(self.path(number), ignore_errors=True)


def render_history(versions: list[dict[str, Any]]) -> str:
    """A table of `Versions.history` for people."""
    body = []
    for it in versions:
        tau_b, trained_on = it.get("tau_b") or {}, it.get("trained_on") or {}
        gain = (tau_b.get("difference") or {}).get("value")
        body.append(
            (
                f"{it['version']}{' (serves)' if it['is_serving'] else ''}",
                str(it.get("parent") or "-"),
                str(it.get("learned_at", "-")),
                str(trained_on.get("num_requests", "-")),
                "-" if gain is None else f"{gain:+.3f}",
            )
        )
    if not body:
        return "no versions yet: `pars learn --outcomes` makes the first"
    head = ("version", "after", "learned", "requests", "tau-b gained")
    return "\n".join(table(head, body))


def _lock(handle: int, served: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such lock on Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ParsError(f"{served}: another `pars learn` is at work on it") from error
    except OSError as error:
        raise ParsError(f"{served}: cannot be locked: {error.strerror or error}") from error


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step, where the system can."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):  # not Linux
        return False
    names = (AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b))
    return bool(renameat2(*names, RENAME_EXCHANGE) == 0)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _unwritable(path: Path, error: OSError) -> ParsError:
    return ParsError(f"{path}: cannot be written: {error.strerror or error}")
