"""The key that stands for prompts in a folder of outcomes."""

import logging
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from pars.files import read_regular
from pars.outcomes.records import KEY_FILE

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own


def folder_key(folder: Path) -> bytes:
    """
    The key of the hash that stands for prompts, made once per folder.

    Without it a hash gives a short or common prompt away to whoever tries a list of them. Where it
    cannot be kept, it is good for this process only.
    """
    path = folder / KEY_FILE
    new = path.with_name(f".{KEY_FILE}-{secrets.token_hex(8)}")
    try:
        if not path.exists():
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with suppress(FileExistsError):  # another process was faster
                path.hardlink_to(new)
        key = bytes.fromhex(read_regular(path).decode("ascii"))
        if len(key) == 32:
            return key
        problem = "is not 64 hexadecimal digits"
    except (OSError, ValueError) as error:
        problem = str(error)
    finally:
        with suppress(OSError):
            new.unlink()
    log.warning("%s: %s: equal prompts get another key after a restart", path, problem)
    return secrets.token_bytes(32)
