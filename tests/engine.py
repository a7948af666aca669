"""
Real engines for tests: one server per set of options and environment, kept until the session ends.

    def test_something(vllm):
        engine = vllm("--scheduling-policy", "priority", PARS_RANKER=str(folder))
        with engine.held():                  # every slot is busy ...
            ...                              # ... so whatever comes now waits
            engine.wait_for(waiting=12)

engine/serve.sh runs it; `sglang` is the same for SGLang, with its options. The model is
engine/tiny_llama.py's, named MODEL: an answer is `max_tokens` long, one printable character a
token, some 150 tokens/s in one slot. A start takes 10-20 s and the server 2.1 GB (SGLang: 30 s
and 3 GB), so tests share options where they can; one slot, the default here, makes the order in
which requests begin exact.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

MODEL = "tiny-llama"
ROOT = Path(__file__).parent.parent
START_S = 240  # 60 on an idle machine


@dataclass(frozen=True)
class Kind:
    """Of engine: where it is installed, what runs it, and how it calls things."""

    name: str
    folder: Path
    script: str
    slots_option: str
    running: str
    waiting: str
    stops_s: float = 20.0  # after SIGTERM; then it is killed
    is_alone: bool = False  # an idle server takes half a core: one at a time


VLLM = Kind(
    "vLLM",
    ROOT / ".engine",
    "engine/serve.sh",
    "--max-num-seqs",
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
)
SGLANG = Kind(
    "SGLang",
    ROOT / ".sglang",
    "engine/sglang/serve.sh",
    "--max-running-requests",
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    stops_s=5.0,
    is_alone=True,
)


@dataclass(frozen=True)
class Engine:
    """A running server; `num_slots` requests run at a time."""

    url: str
    log: Path
    num_slots: int
    kind: Kind = VLLM

    def metric(self, name: str) -> float:
        """
        The sum of a gauge or counter of /metrics over its labels, 0.0 if it has no sample.

        SGLang's samples of one priority only are left out: the sum of all has priority "".
        """
        # Polled often: httpx.get builds a TLS context each time, 34 ms of CPU that vLLM needs.
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        samples = re.findall(rf"^{re.escape(name)}({{.*}})? (\S+)$", text, re.MULTILINE)
        of_one = re.compile(r'priority="[^"]+"')
        return sum(float(value) for labels, value in samples if not of_one.search(labels))

    def wait_for(self, **num_requests: int) -> None:
        """Until it has these numbers of requests, e.g. `running=0, waiting=3`."""

        def seen() -> dict[str, int]:
            return {it: int(self.metric(getattr(self.kind, it))) for it in num_requests}

        wait_until(lambda: seen() == num_requests, f"{num_requests} requests in the engine", 60)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """All slots are taken, by answers of minutes, until the block ends."""
        body = {"model": MODEL, "prompt": "x", "max_tokens": 60_000, "stream": True}
        with contextlib.ExitStack() as stack:
            open_streams = []  # httpx closes an answer whose iterator is gone
            for _ in range(self.num_slots):
                answer = httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60)
                open_streams.append(stack.enter_context(answer).iter_lines())
                next(open_streams[-1])
            yield


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"no {what} within {deadline_s} s"
        time.sleep(0.02)


Started = tuple[Engine, subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Engines:
    """Starts servers on demand; `logs` is the folder that gets their output."""

    logs: Path
    started: dict[object, Started]
    kind: Kind = VLLM

    def __call__(self, *options: str, **environment: str) -> Engine:
        """The server with these options of its own and variables, started if need be."""
        key = options, *sorted(environment.items())
        if key not in self.started:
            if self.kind.is_alone:
                self.stop()
            self.started[key] = self.start(options, environment)
        return self.started[key][0]

    def start(self, options: tuple[str, ...], environment: dict[str, str]) -> Started:
        port = free_port()
        slots_option, name = self.kind.slots_option, self.kind.name
        words = ["--port", str(port), slots_option, "1", *options]  # a later one overrides
        num_slots = int(words[-words[::-1].index(slots_option)])
        log = self.logs / f"{name}-{port}.log"
        engine = Engine(f"http://127.0.0.1:{port}", log, num_slots, self.kind)
        process = launch(words, environment, log, self.kind)
        try:
            wait_until(lambda: is_up(engine, process), f"answer of {name} ({log})", START_S)
        except BaseException:
            stop(process, self.kind)
            raise
        return engine, process

    def stop(self) -> None:
        while self.started:
            _, (_, process) = self.started.popitem()
            stop(process, self.kind)


def free_port() -> int:
    """
    A port for a server that binds it in a minute.

    Below 32768, where Linux takes the ports of connections from: one of those, made meanwhile,
    would have the port.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def launch(
    options: list[str], environment: dict[str, str], log: Path, kind: Kind = VLLM
) -> subprocess.Popen[bytes]:
    """The engine in a process group of its own; should pytest be killed, the server goes too."""
    command = ["setpriv", "--pdeathsig", "TERM", "bash", ROOT / kind.script]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARS_")}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=kept | environment,
            start_new_session=True,
        )


def is_up(engine: Engine, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        tail = engine.log.read_text(errors="replace").splitlines()[-40:]
        pytest.fail("\n".join([f"{engine.kind.name} ended with code {process.returncode}:", *tail]))
    try:
        with urllib.request.urlopen(f"{engine.url}/health", timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes], kind: Kind) -> None:
    """SIGTERM to the parent, which ends its children; after some seconds an end to all of them."""
    process.terminate()
    try:
        process.wait(kind.stops_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def engines(kind: Kind, target: str, logs: Path) -> Iterator[Engines]:
    if not (kind.folder / f"{MODEL}.stamp").exists():
        pytest.skip(f"needs the real {kind.name} in {kind.folder.name}/: run `make {target}`")
    started = Engines(logs, {}, kind)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Call it with options of `vllm serve` and environment variables to get an Engine."""
    yield from engines(VLLM, "engine", tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def sglang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Call it with options of SGLang's server and environment variables to get an Engine."""
    yield from engines(SGLANG, "sglang", tmp_path_factory.mktemp("sglang"))
