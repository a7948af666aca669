"""
A real vLLM for tests: one server per set of options and environment, kept until the session ends.

    def test_something(vllm):
        engine = vllm("--scheduling-policy", "priority", PARS_RANKER=str(folder))
        with engine.held():                  # every slot is busy ...
            ...                              # ... so whatever comes now waits
            engine.wait_for(waiting=12)

engine/serve.sh runs it. The model is engine/tiny_llama.py's, named MODEL: an answer is `max_tokens`
long, one printable character a token, some 150 tokens/s in one slot. A start takes 10-20 s and the
server 2.1 GB, so tests share options where they can; one slot, the default here, makes the order in
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
FOLDER = Path(__file__).parent.parent / ".engine"
START_S = 240  # 60 on an idle machine


@dataclass(frozen=True)
class Engine:
    """A running server; `num_slots` requests run at a time."""

    url: str
    log: Path
    num_slots: int

    def metric(self, name: str) -> float:
        """The sum of a gauge or counter of /metrics over its labels, 0.0 if it has no sample."""
        # Polled often: httpx.get builds a TLS context each time, 34 ms of CPU that vLLM needs.
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        samples = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, samples))

    def wait_for(self, **num_requests: int) -> None:
        """Until vLLM has these numbers of requests, e.g. `running=0, waiting=3`."""

        def seen() -> dict[str, int]:
            return {state: int(self.metric(f"vllm:num_requests_{state}")) for state in num_requests}

        wait_until(lambda: seen() == num_requests, f"{num_requests} requests in vLLM", 60)

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

    def __call__(self, *options: str, **environment: str) -> Engine:
        """The server with these options of `vllm serve` and variables, started if need be."""
        key = options, *sorted(environment.items())
        if key not in self.started:
            self.started[key] = self.start(options, environment)
        return self.started[key][0]

    def start(self, options: tuple[str, ...], environment: dict[str, str]) -> Started:
        port = free_port()
        words = ["--port", str(port), "--max-num-seqs", "1", *options]  # a later one overrides
        num_slots = int(words[-words[::-1].index("--max-num-seqs")])
        engine = Engine(f"http://127.0.0.1:{port}", self.logs / f"vllm-{port}.log", num_slots)
        process = launch(words, environment, engine.log)
        try:
            wait_until(lambda: is_up(engine, process), f"answer of vLLM ({engine.log})", START_S)
        except BaseException:
            stop(process)
            raise
        return engine, process

    def stop(self) -> None:
        for _, process in self.started.values():
            stop(process)


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


def launch(options: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """`vllm serve` in a process group of its own; should pytest be killed, the server goes too."""
    command = ["setpriv", "--pdeathsig", "TERM", "bash", FOLDER.parent / "engine/serve.sh"]
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
        pytest.fail("\n".join([f"vLLM ended with code {process.returncode}:", *tail]))
    try:
        with urllib.request.urlopen(f"{engine.url}/health", timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the parent, which ends its children; after 20 s an end to all of them."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Call it with options of `vllm serve` and environment variables to get an Engine."""
    if not (FOLDER / f"{MODEL}.stamp").exists():
        pytest.skip("needs the real vLLM in .engine/: run `make engine`")
    engines = Engines(tmp_path_factory.mktemp("vllm"), {})
    yield engines
    engines.stop()
