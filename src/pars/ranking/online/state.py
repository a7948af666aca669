"""
Where what was learned lies on disk, so that it outlives a restart and is shared by processes.

    folder/
    ├── secret            32 random bytes, for the owner only; features are hashed under it
    ├── model.npz         a snapshot, and how far each log is in it
    ├── forgotten        slots of callers that were wiped (`forgetting.py`)
    ├── lock              held while one of the processes writes the snapshot
    └── learned-*.log     each process's own answers since, as hashed features and a length

No text and no name is kept, and nothing that could be looked up without the secret. Every process
appends to a log of its own and follows those of the others, so none waits for another; whoever gets
the lock writes the snapshot. A log is deleted once the snapshot holds it. A damaged file costs what
it held: a record has a checksum, and a snapshot that cannot be read is left aside.
"""

import fcntl
import json
import math
import os
import secrets
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pars.errors import ParsError
from pars.files import opened_regular, read_regular, written_whole
from pars.ranking.online.model import OnlineModel
from pars.ranking.online.reading import NUM_DENSE, NUM_SLOTS, Reading

SECRET_BYTES = 32
FORGOTTEN = "forgotten"
FORMAT = 4
HEAD = struct.Struct("<2sHHHfBI")  # mark, ids, of text, of facts, log tokens, bound, checksum
MARK = b"P4"
MAX_IDS = 2048
MAX_RECORD_BYTES = HEAD.size + 4 * (MAX_IDS + NUM_DENSE)
MOST_DAMAGED = 1000  # false beginnings of records, passed over one by one
MAX_LOG_BYTES = 4 << 20  # then a process begins a new log
MAX_FOLDER_BYTES = 64 << 20  # of all logs; beyond it the oldest go, learned by all or not
SETTLED_S = 60.0  # a log that nobody has written to for so long is followed by all


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """One answer as it lies in a log."""

    reading: Reading
    log_tokens: float
    is_lower_bound: bool


def default_folder() -> Path:
    """
    The user's own state folder (XDG Base Directory Specification: $XDG_STATE_HOME/pars).

    Raises:
        ParsError: the user has no home.
    """
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    except RuntimeError as error:
        raise ParsError(f"no home folder for what is learned: {error}; give --state DIR") from None
    return Path(base) / "pars"


class State:
    """
    The folder of one process. Not thread-safe; what touches the disk may run in another thread.

    Raises:
        ParsError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.secret = _secret_of(folder / "secret")
        except OSError as error:
            raise ParsError(f"--state {folder}: {error.strerror or error}") from error
        self._read: dict[str, int] = {}  # bytes of each log that the model has learned
        self._pending: list[bytes] = []
        self._num_forgotten_bytes = 0  # of the file, as far as the model knows
        self._begin_log()

    @property
    def is_open_to_others(self) -> bool:
        """Whether users other than the owner may write to the folder."""
        return bool(self.folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))

    def load(self) -> OnlineModel:
        """The snapshot and all logs since. Whatever is damaged is left out."""
        model = OnlineModel()
        try:
            with opened_regular(self.folder / "model.npz", "rb") as file:
                stored = np.load(file, allow_pickle=False)
                arrays = {name: stored[name] for name in stored.files if name != "note"}
                note = json.loads(stored["note"].tobytes())
            if note["format"] == FORMAT:
                model = OnlineModel.of(arrays)
                self._read = {str(name): int(at) for name, at in note["read"].items()}
                self._num_forgotten_bytes = int(note.get("forgotten", 0))
        except FileNotFoundError:
            pass
        except Exception:  # whatever is wrong with it: the logs are still there
            self._read = {}
        model.forget(self.forgotten_slots())
        for learned in self.news():
            model.learn(learned.reading, learned.log_tokens, is_lower_bound=learned.is_lower_bound)
        return model

    def keep(self, reading: Reading, log_tokens: float, *, is_lower_bound: bool) -> None:
        """Have an answer written by the next `flush`."""
        self._pending.append(_record(reading, log_tokens, is_lower_bound))

    def flush(self) -> bool:
        """
        Write what is kept; whether there was anything.

        Raises:
            OSError: it cannot be written; it is dropped.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return False
        data = b"".join(pending)
        with opened_regular(self._log, "ab") as file:
            file.write(data)
        self._read[self._log.name] = self._read.get(self._log.name, 0) + len(data)
        if self._read[self._log.name] > MAX_LOG_BYTES:
            self._begin_log()
        return True

    def news(self) -> Iterator[Learned]:
        """What the other processes have learned since the last look. Takes its time."""
        for log in sorted(self.folder.glob("learned-*.log")):
            if log == self._log:
                continue
            try:
                with opened_regular(log, "rb") as file:
                    file.seek(self._read.get(log.name, 0))
                    data = file.read(MAX_LOG_BYTES * 2)
            except OSError:
                continue
            begin = self._read.get(log.name, 0)
            for learned, num_bytes in records_in(data):
                self._read[log.name] = begin + num_bytes
                yield learned
            # Of what is damaged only the end may yet become a record: the rest is not read again.
            passed = begin + max(0, len(data) - MAX_RECORD_BYTES + 1)
            self._read[log.name] = max(self._read.get(log.name, 0), passed)

    def is_forgotten(self) -> bool:
        """Whether somebody has wiped the folder since."""
        try:
            return read_regular(self.folder / "secret") != self.secret
        except FileNotFoundError:
            return True
        except OSError:  # out of open files, say: that tells nothing
            return False

    def forgotten_slots(self) -> NDArray[np.int64]:
        """Those of callers that were wiped since the last look."""
        try:
            with opened_regular(self.folder / FORGOTTEN, "rb") as file:
                file.seek(self._num_forgotten_bytes)
                data = file.read()
        except OSError:
            return np.empty(0, np.int64)
        data = data[: len(data) // 4 * 4]
        self._num_forgotten_bytes += len(data)
        return np.frombuffer(data, "<u4").astype(np.int64) % NUM_SLOTS

    def snapshot(self, model: OnlineModel) -> bool:
        """
        Write the model if no other process is at it; whether it was.

        Raises:
            OSError: it cannot be written.
        """
        with opened_regular(self.folder / "lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            read = dict(self._read)
            told = {"format": FORMAT, "read": read, "forgotten": self._num_forgotten_bytes}
            note = json.dumps(told).encode()
            with written_whole(self.folder / "model.npz", is_private=True) as file:
                np.savez(file, note=np.frombuffer(note, np.uint8), **model.arrays())  # type: ignore[arg-type]
            self._drop_logs(read)
        return True

    def _drop_logs(self, read: dict[str, int]) -> None:
        """Delete what the snapshot holds and nobody writes to, and what is too much."""
        sizes = []
        for log in self.folder.glob("learned-*.log"):
            about = log.stat()
            is_settled = time.time() - about.st_mtime > SETTLED_S
            left = about.st_size - read.get(log.name, 0)  # at most the start of a record
            if log != self._log and is_settled and left < MAX_RECORD_BYTES:
                log.unlink(missing_ok=True)
                self._read.pop(log.name, None)
            else:
                sizes.append((about.st_mtime, about.st_size, log))
        total = sum(size for _, size, _ in sizes)
        for _, size, log in sorted(sizes):
            if total > MAX_FOLDER_BYTES and log != self._log:
                log.unlink(missing_ok=True)
                total -= size

    def _begin_log(self) -> None:
        self._log = self.folder / f"learned-{os.getpid()}-{secrets.token_hex(4)}.log"


def forget(folder: Path) -> int:
    """
    Delete all that was learned, and the secret with it; how many files went.

    Raises:
        ParsError: a file cannot be deleted.
    """
    names = ("secret", "model.npz", "lock", FORGOTTEN)
    files = [*(folder / name for name in names), *folder.glob("learned-*.log")]
    found = [file for file in files if file.exists()]
    for file in found:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise ParsError(f"{file}: {error.strerror or error}") from error
    return len(found)


def _secret_of(path: Path) -> bytes:
    """The folder's secret; made once, whoever comes first."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
    except FileExistsError:
        pass
    secret = read_regular(path)
    if len(secret) < SECRET_BYTES:  # cut by a crash: what was hashed under it is lost
        path.unlink()
        return _secret_of(path)
    return secret


def _record(reading: Reading, log_tokens: float, is_lower_bound: bool) -> bytes:
    ids = reading.ids[:MAX_IDS]
    counts = (len(ids), reading.num_text, reading.num_facts)
    body = ids.astype("<u4").tobytes() + reading.dense.astype("<f4").tobytes()
    told = struct.pack("<HHHfB", *counts, log_tokens, is_lower_bound)
    head = HEAD.pack(MARK, *counts, log_tokens, is_lower_bound, zlib.crc32(told + body))
    return head + body


def records_in(data: bytes) -> Iterator[tuple[Learned, int]]:
    """
    Each whole record, with the bytes up to its end; a damaged stretch is passed over.

    It takes time linear in the data: after `MOST_DAMAGED` false beginnings the rest is.
    """
    at = num_damaged = 0
    while (at := data.find(MARK, at)) >= 0 and num_damaged < MOST_DAMAGED:
        found = _record_at(data, at)
        if found is None:
            at += 1
            num_damaged += 1
            continue
        learned, at = found
        yield learned, at


def _record_at(data: bytes, at: int) -> tuple[Learned, int] | None:
    if at + HEAD.size > len(data):
        return None
    _, *counts, log_tokens, is_lower_bound, checksum = HEAD.unpack_from(data, at)
    num_ids, num_text, num_facts = counts
    if num_ids > MAX_IDS or not math.isfinite(log_tokens):
        return None
    start = at + HEAD.size
    rest = start + 4 * num_ids
    end = rest + 4 * NUM_DENSE
    told = struct.pack("<HHHfB", *counts, log_tokens, is_lower_bound)
    if end > len(data) or zlib.crc32(told + data[start:end]) != checksum:
        return None
    reading = Reading(
        np.frombuffer(data[start:rest], "<u4").astype(np.int64) % NUM_SLOTS,
        num_text,
        num_facts,
        np.frombuffer(data[rest:end], "<f4").astype(np.float64),
    )
    return Learned(reading, log_tokens, bool(is_lower_bound)), end
