"""`pars gateway` as a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving import DEADLINE_S


@dataclass
class Started:
    """A gateway that listens at `url`; `log` and `greeting` have what it said once it has ended."""

    url: str
    process: subprocess.Popen[str]
    file: Path
    greeting: str
    log: str = ""

    def has_said(self, text: str) -> bool:
        """Whether that stands in its log by now."""
        return text in self.file.read_text()


@contextmanager
def started(
    folder: Path, *options: str, before: str = "true", **environment: str
) -> Iterator[Started]:
    """A process of `pars gateway`, after the shell's command `before`."""
    command = [sys.executable, "-m", "pars", "gateway", "--port", "0", *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARS_")}
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", f'{before} && exec "$@"', "bash", *command],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=kept | {"PARS_ENGINE": "vllm"} | environment,
        )
    with process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            found = re.search(r"served at (\S+),", greeting)
            assert found, (folder / "stderr").read_text()
            gateway = Started(found[1], process, folder / "stderr", greeting)
            yield gateway
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
    gateway.log = (folder / "stderr").read_text()
