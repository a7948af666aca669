"""What the pages tell one to type is typed here, a page after the other, from top to bottom."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from own_traffic import terse_stories, traffic, write, write_log
from test_docs import ROOT, blocks

from rankers import lite_ranker

PATIENCE_S = 300.0  # for one command, beside other tests
SERVERS = ("gateway", "serve", "fake-engine")
ENGINE_HOSTS = re.compile(r"http://localhost:(8000|8001|8080|11434)\b|\bURL\b")
FAKE_ENGINE = "pars fake-engine --engine h100-8b --policy priority --speed 20 --model NAME"
# What takes long is typed with a smaller number.
SHORTER = {
    "--window-s 600 --blocks 12": "--window-s 1 --blocks 1",
    "--rates 0.5x,1x,1.5x": "--rates 1x",
    "--rate 20 ": "--rate 200 ",
    "--max-tokens 2048": "--max-tokens 64",
    "/var/lib/pars/": "",
    "/var/log/": "",
    "log-*.jsonl.gz more.parquet": "log.jsonl",
    "log-1.jsonl.gz": "log.jsonl",
    "0 3 * * *  ": "",
}
# What cannot be typed here, and where it is tried.
ELSEWHERE = {
    "pip install": "make demo and make test install it",
    "vllm serve": "tests/test_vllm_middleware.py",
    "make ": "test_docs.py holds the targets' names",
    "pars data get": "asks the Hugging Face Hub; from files in tests/test_public_data.py",
    "pars leaderboard --records": "wants the user's module; in tests/test_leaderboard.py",
    "pars reproduce": "trains for minutes; tests/test_reproduce.py",
    "pars train --preset base": "weights from the Hub, and a GPU: ready and not run",
    "pars prepare alpaca": "asks the Hugging Face Hub; from files in tests/test_sources.py",
    "--train-file data/train_pairs": "goes by what the Hub gives; in tests/test_train.py",
    "pars evaluate --ranker run/ranker --data": "the same",
    "pars serve --ranker run/ranker": "the same",
    "--input answers.jsonl": "a stand-in's answers have one length; in tests/test_collect.py",
    "pars export --checkpoint": "weights from the Hub; in tests/test_train.py",
    "docker ": "tests/test_deploy.py",
    "pars ext-proc": "tests/test_envoy.py, before a real Envoy",
    "--ray ": "tests/test_ray.py",
    "helm ": "tests/test_deploy.py",
    "PREDICTOR_MODEL_PATH=DIR uvicorn": "tests/test_server.py",
}


def typed(page: Path) -> list[str]:
    """The command lines of a page's blocks, in their order."""
    lines: list[str] = []
    for block in blocks(page.read_text()):
        if block.startswith("pars "):  # named in a sentence
            continue
        open_line = ""
        for line in block.replace("\\\n", " ").splitlines():
            open_line = f"{open_line}\n{line}" if open_line else line.strip()
            try:
                shlex.split(open_line, comments=True)
            except ValueError:  # a quotation goes on
                continue
            if re.match(r"(\w+=\S+ |0 3 \* )*.*\b(pars|curl|vllm|make|pip|uvicorn) ", open_line):
                lines.append(open_line)
            open_line = ""
    return [line for line in lines if not line.startswith(("#", "└", "├", "ranker"))]


class Desk:
    """A folder with a log in it, an engine, and a shell where `pars` is this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exit = ExitStack()
        tools = folder / "tools"
        tools.mkdir()
        (tools / "pars").write_text(f'#!/bin/sh\nexec {sys.executable} -m pars "$@"\n')
        (tools / "pars").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PARS_")}
        self._environment = kept | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
            "PARS_ADMIN_KEY": "sesame",
            "PARS_TRUSTED_SECRET": "open",
        }
        self._urls: dict[str, str] = {}

    def __enter__(self) -> "Desk":
        self.type(FAKE_ENGINE)
        self._second_engine = self._urls["fake-engine"]
        self.type(FAKE_ENGINE)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def type(self, line: str) -> None:
        """Carry out a command line; a server goes on until the desk is left."""
        for written, shorter in SHORTER.items():
            line = line.replace(written, shorter)
        line = ENGINE_HOSTS.sub(self._urls.get("fake-engine", ""), line)
        line = line.replace("http://localhost:8002", getattr(self, "_second_engine", ""))
        line = line.replace("http://localhost:8100", self._urls.get("gateway", ""))
        line = line.replace("localhost:8000/", self._urls.get("serve", "") + "/")
        line = re.sub(r"\.\.\.|--port \d+", "", line.replace("=... ", "=open "))
        line = line.replace("DIR", "outcomes" if "outcomes" in line else "ranker")
        server = re.search(rf"\bpars ({'|'.join(SERVERS)})\b", line)
        if server is None:
            self._run(line)
        else:
            self._urls[server[1]] = self._serve(re.sub(r"\s#.*", "", line) + " --port 0")

    def _run(self, line: str) -> None:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        # A doctor that finds something to change says so by 1.
        assert done.returncode == 0 or (done.returncode == 1 and "doctor" in line), (
            f"{line}\n{done.stdout}\n{done.stderr}"
        )

    def _serve(self, line: str) -> str:
        log = self._exit.enter_context((self.folder / "server.log").open("w+"))
        process = self._exit.enter_context(
            subprocess.Popen(
                ["bash", "-c", f"exec env {line}"],
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
        self._exit.callback(process.terminate)
        assert process.stdout is not None
        for said in process.stdout:
            if found := re.search(r"http://[\d.]+:\d+(?=[,\s]|$)", said.split(" served at ")[-1]):
                return found[0]
        log.seek(0)
        raise AssertionError(f"{line}\n{log.read()}")


PAGES = [
    "README.md",
    *(
        f"docs/{it}.md"
        for it in ("deploy", "learning", "operating", "proving", "scoring", "serving")
    ),
]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    write_log(tmp_path / "log.jsonl", num_rows=400)
    write_log(tmp_path / "prompts.jsonl", num_rows=50)
    write(tmp_path / "outcomes", traffic(400, terse_stories))
    with Desk(tmp_path) as desk:
        yield desk


@pytest.mark.torch
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_can_be_typed_from_its_top_to_its_end(desk: Desk, page: str) -> None:
    """Each command ends well, or serves."""
    if page not in ("README.md", "docs/learning.md"):  # they go on from these
        lite_ranker(desk.folder / "run/ranker")
        (desk.folder / "ranker").symlink_to("run/ranker")
    for line in typed(ROOT / page):
        if not any(place in line for place in ELSEWHERE):
            desk.type(line)


def test_what_is_tried_elsewhere_still_stands_on_a_page() -> None:
    """Otherwise the table above would hide what it should not."""
    everything = "\n".join(line for page in ROOT.glob("**/*.md") for line in typed(page))
    assert [place for place in ELSEWHERE if place not in everything] == []
