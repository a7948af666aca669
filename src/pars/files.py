"""Output files appear whole or not at all: written under a temporary name, then moved."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pars.errors import ParsError


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """
    A binary file that takes the name `path` when the block ends well, and vanishes otherwise.

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
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        with suppress(OSError):
            Path(temporary).unlink()
        if isinstance(error, OSError):
            raise ParsError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


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
