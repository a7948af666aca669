"""
Wipes one caller's part of what was learned, on disk and in the processes that run.

His answers in the logs are overwritten, and his weights in the snapshot: of his name, and of his
name with the first words of those answers. What his answers have taught the weights that all share
cannot be told apart from the others' any more, and stays. The slots are noted in the folder, where
processes that run find them and wipe their own.
"""

import fcntl
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pars.errors import ParsError
from pars.files import opened_regular, read_regular, written_whole
from pars.ranking.online.model import OnlineModel
from pars.ranking.online.reading import NUM_DENSE, slots_of_facts
from pars.ranking.online.state import FORGOTTEN, HEAD, SECRET_BYTES, records_in

NAMES = ("key", "user")  # of facts that say who asks


def forget_caller(folder: Path, caller: str) -> int:
    """
    Wipe what was learned from the caller of that API key, or of that user field.

    Returns how many of his answers were in the logs.

    Raises:
        ParsError: nothing was learned in the folder, or a file cannot be written.
    """
    try:
        secret = read_regular(folder / "secret")
        if len(secret) < SECRET_BYTES:
            raise FileNotFoundError
        his = slots_of_facts(secret, [f"{name}={caller}" for name in NAMES])
        with opened_regular(folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wiped, num_answers = set(his), 0
            for log in folder.glob("learned-*.log"):
                num_answers += _wipe_log(log, set(his), wiped)
            with opened_regular(folder / FORGOTTEN, "ab") as file:
                file.write(np.array(sorted(wiped), "<u4").tobytes())
            _wipe_snapshot(folder, wiped)
    except FileNotFoundError:
        raise ParsError(f"--state {folder}: nothing was learned there") from None
    except OSError as error:
        raise ParsError(f"--state {folder}: {error.strerror or error}") from error
    return num_answers


def _wipe_log(log: Path, his: set[int], wiped: set[int]) -> int:
    """Overwrite his records with zeros, which are no record; a server may append meanwhile."""
    num_answers = 0
    with opened_regular(log, "r+b") as file:
        for learned, end in records_in(file.read()):
            reading = learned.reading
            facts_end = reading.num_text + reading.num_facts
            if his.isdisjoint(reading.ids[reading.num_text : facts_end].tolist()):
                continue
            wiped.update(reading.ids[facts_end:].tolist())
            num_bytes = HEAD.size + 4 * (len(reading.ids) + NUM_DENSE)
            file.seek(end - num_bytes)
            file.write(bytes(num_bytes))
            num_answers += 1
    return num_answers


def _wipe_snapshot(folder: Path, slots: Iterable[int]) -> None:
    path = folder / "model.npz"
    if not path.exists():
        return
    try:
        stored = np.load(io.BytesIO(read_regular(path)), allow_pickle=False)
        note = json.loads(stored["note"].tobytes())
        model = OnlineModel.of({name: stored[name] for name in stored.files if name != "note"})
    except Exception:  # damaged or of another version: nobody loads it, and his part goes with it
        path.unlink()
        return
    model.forget(np.fromiter(slots, np.int64))
    note["forgotten"] = (folder / FORGOTTEN).stat().st_size
    told = np.frombuffer(json.dumps(note).encode(), np.uint8)
    with written_whole(path, is_private=True) as file:
        np.savez(file, note=told, **model.arrays())  # type: ignore[arg-type]
