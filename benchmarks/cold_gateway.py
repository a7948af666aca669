"""
A real vLLM behind `pars gateway`, nothing trained: the gap to first come, first served opens.

    make engine
    python benchmarks/cold_gateway.py --records log.jsonl        # prompts with answer lengths

The gateway starts with an empty state folder and learns from the answers that pass. Real prompts
come somewhat faster than the engine answers them (`--load` of what it was just seen to get done),
so that a queue grows. The same requests are sent again first come, first served, and by the
oracle, which knows the true lengths; `--policies` names others (`oracle@1.33x`, `ranker:NAME`),
and `--noisy NAME` makes scores for one that is off by a log-normal factor of 0.7. The model is the
tests' tiny one, so tokens mean nothing; each answer is as long as the real one was, and limits,
which impose that, tell the gateway nothing (PARS_OBEY_LIMITS=0). Prints what `pars bench` prints
and draws OUTPUT/gap.svg. The last line of stdout is one JSON document.
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pars.prove.report.latency import figures
from pars.prove.report.pictures import pictures
from pars.prove.report.times import read_result

ROOT = Path(__file__).resolve().parents[1]
NUM_PROBED = 200  # requests at once, to see what the engine gets done
SECRET = "benchmark"
START_S = 240.0
NOISE = 0.7


def main() -> None:
    options = read_options()
    output = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    for made in ("probe", "bench", "state"):  # by the run before
        shutil.rmtree(output / made, ignore_errors=True)
    with vllm(options) as engine_url:
        rate = options.load * capacity_rps(engine_url, options)
        workload = output / "workload.jsonl"
        pars(
            *("workload", *records(options), "--num-requests", options.num_requests),
            *("--rate", f"{rate:.2f}", "--arrivals", "gamma", "--cv", options.cv),
            *("--output", workload),
        )
        scores = [f"--scores={name}={noisy(workload, output, name)}" for name in options.noisy]
        with gateway(engine_url, options) as url:
            pars(
                *("bench", url, "--workload", workload, "--truncate-prompts", *scores),
                *(f"--ranker={ranker}" for ranker in options.ranker),
                *("--policies", options.policies, "--repeats", options.repeats),
                *("--secret-env", "PARS_TRUSTED_SECRET", "--output-dir", output / "bench"),
            )
    draw(output / "bench", options.picture or output / "gap.svg")
    report = json.loads((output / "bench/report.json").read_text())
    kept = {name: report[name] for name in ("verdict", "figures", "gains", "quarters")}
    print(json.dumps({"rate_rps": rate, "num_requests": options.num_requests, **kept}))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--length-field", help="of the records [default: found]")
    parser.add_argument("--num-requests", type=int, default=2000)
    parser.add_argument("--max-output-tokens", type=int, default=400)
    parser.add_argument("--load", type=float, default=1.2, help="of what the engine gets done")
    parser.add_argument("--cv", type=float, default=1.0, help="of the intervals; 1: Poisson")
    parser.add_argument("--num-slots", type=int, default=16)
    parser.add_argument("--policies", default="gateway,fcfs,oracle")
    parser.add_argument("--ranker", action="append", default=[], metavar="[NAME=]FOLDER")
    parser.add_argument("--noisy", action="append", default=[], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="[default: OUTPUT/gap.svg]")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "build/cold_gateway")
    return parser.parse_args()


def pars(*arguments: Any) -> None:
    """A command of pars; what it prints is shown, and its errors end this."""
    environment = os.environ | {"PARS_TRUSTED_SECRET": SECRET}
    words = [sys.executable, "-m", "pars", *map(str, arguments)]
    if subprocess.run(words, env=environment, check=False).returncode:
        sys.exit(f"pars {arguments[0]} failed")


def records(options: argparse.Namespace) -> list[Any]:
    """The options of `pars workload` that choose the prompts."""
    field = ["--length-field", options.length_field] if options.length_field else []
    most = ["--max-output-tokens", options.max_output_tokens, "--max-prompt-tokens", 2000]
    return ["--records", options.records, *field, *most]


def capacity_rps(engine_url: str, options: argparse.Namespace) -> float:
    """Requests a second that the engine gets done, when it always has some waiting."""
    probe = options.output_dir / "probe"
    workload = options.output_dir / "probe.jsonl"
    arrivals = ["--num-requests", NUM_PROBED, "--arrivals", "burst", "--seed", 1]
    pars("workload", *records(options), *arrivals, "--output", workload)
    how = ["--policies", "fcfs", "--repeats", 1, "--truncate-prompts"]
    pars("bench", engine_url, "--workload", workload, *how, "--output-dir", probe)
    [row] = json.loads((probe / "report.json").read_text())["figures"]
    return float(row["throughput_rps"])


def noisy(workload: Path, output: Path, name: str) -> Path:
    """Expected tokens for each request that are off by a log-normal factor."""
    chance, path = random.Random(0), output / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for line in workload.read_text(encoding="utf-8").splitlines()[1:]:
            request = json.loads(line)
            expected = request["output_tokens"] * math.exp(chance.gauss(0, NOISE))
            row = {"request_id": request["request_id"], "expected_tokens": expected}
            file.write(json.dumps(row) + "\n")
    return path


@contextlib.contextmanager
def vllm(options: argparse.Namespace) -> Iterator[str]:
    """The URL of a vLLM that schedules by priority."""
    port = free_port()
    command = ["bash", str(ROOT / "engine/serve.sh"), "--port", str(port)]
    command += ["--scheduling-policy", "priority", "--max-num-seqs", str(options.num_slots)]
    command += ["--max-model-len", "8192"]
    with served(command, {}, port, options.output_dir / "vllm.log") as url:
        yield url


@contextlib.contextmanager
def gateway(engine_url: str, options: argparse.Namespace) -> Iterator[str]:
    """The URL of a gateway that has learned nothing yet."""
    state = options.output_dir / "state"
    port = free_port()
    command = [sys.executable, "-m", "pars", "gateway", "--upstream", engine_url]
    command += ["--port", str(port), "--state", str(state)]
    environment = {"PARS_OBEY_LIMITS": "0", "PARS_TRUSTED_SECRET": SECRET}
    with served(command, environment, port, options.output_dir / "gateway.log") as url:
        yield url


@contextlib.contextmanager
def served(command: list[str], environment: dict[str, str], port: int, log: Path) -> Iterator[str]:
    """The URL of a server, from its first answer on to the end of the block."""
    url = f"http://127.0.0.1:{port}"
    print(f"Starting {' '.join(command[-8:])} ({log})", flush=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARS_")}
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            env=kept | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_up(server, f"{url}/health", log)
            yield url
        finally:
            server.terminate()
            server.wait()


def wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10):
            return
        if server.poll() is not None or time.monotonic() > end_s:
            sys.exit("\n".join(["it does not answer:", *log.read_text().splitlines()[-20:]]))
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def draw(folder: Path, path: Path) -> None:
    result = read_result(folder)
    for picture in pictures(result, figures(result)):
        if picture.title.startswith("The gap"):
            picture.save(path)


if __name__ == "__main__":
    main()
