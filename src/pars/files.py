"""
Files that are safe to write and to open: whole or not at all, and only regular ones.

Output is written under a temporary name, then moved. In a folder that others may write to, a name
may lead elsewhere (a symbolic link) or never end (a pipe): what is kept there is opened so that
neither does harm.
"""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pars.errors import ParsError


@contextmanager
def written_whole(path: Path, *, is_private: bool = False) -> Iterator[IO[bytes]]:
    """
    A binary file that takes the name `path` when the block ends well, and vanishes otherwise.

    Args:
        is_private: For its owner's eyes only.

    Raises:
        ParsError: the file cannot be written (full disk, no permission, no such folder).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ParsError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        if not is_private:  # which is how it was made
            Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        with suppress(OSError):
            Path(temporary).unlink()
        if isinstance(error, OSError):
            raise ParsError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def opened_regular(path: Path, mode: str) -> IO[bytes]:
    """
    The file at `path`, for its owner only where it is made; no pipe or device is waited for.

    Args:
        mode: "rb" to read, "r+b" to change what is there, "ab" to append, "wb" to write from its
            start on. What is written to is no symbolic link.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    flags = {
        "rb": os.O_RDONLY,
        "r+b": os.O_RDWR | os.O_NOFOLLOW,
        "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW,
        "wb": os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW,  # cut below, once it is known to be ours
    }[mode]
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if mode == "wb":
            os.ftruncate(handle, 0)
        return os.fdopen(handle, mode)
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path) -> bytes:
    """
    The bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is none.
    """
    with opened_regular(path, "rb") as file:
        return file.read()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with written_whole(path) as file:
        file.write(utf8(json.dumps(value, indent=2, ensure_ascii=False)) + b"\n")


def utf8(json_text: str) -> bytes:
    """Half a surrogate pair has no UTF-8 form; its backslash form is the JSON escape."""
    return json_text.encode("utf-8", "backslashreplace")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
