"""
What the gateway's relay costs a request, beside the relay before it and vllm-router: CPU time.

    python benchmarks/relay_cost.py

The servers take turns in short rounds, so that the machine's moods hit them alike, and what counts
is the median of the CPU time that a request took; it moves less than requests a second where others
use the machine too. Our relays get a path that is relayed without being scored, as the router does
with its own; the upstream (benchmarks/gateway_servers.py) answers at once. The relay before is that
of commit 93b0cb8, unpacked into build/. The last line of stdout is one JSON with all above it.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from gateway_cost import child
from gateway_proxies import (
    DidNotStart,
    Running,
    Server,
    free_port,
    own_server,
    rival_server,
    running,
)
from pars.ranking.ranker import bundled_ranker
from serve import cpu_seconds

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
FORMER = "93b0cb8"  # the last commit with a relay of our own
NAMES = ("relay", "former", "vllm-router")
RELAYED, CHAT = "/relayed/completions", "/v1/chat/completions"
PROMPTS = ["Tell me a story about the sea and a dog."] * 8


def former_source() -> Path:
    """The former package's source; raises CalledProcessError where the commit is not there."""
    folder = BUILD / f"relay-{FORMER}"
    if not folder.exists():
        archive = ["git", "-C", str(HERE.parent), "archive", FORMER, "src"]
        packed = subprocess.run(archive, capture_output=True, check=True).stdout
        folder.mkdir(parents=True)
        subprocess.run(["tar", "x", "-C", str(folder)], input=packed, check=True)
    return folder / "src"


def server_of(name: str, port: int, upstream: str, folder: Path, venv: Path) -> Server:
    if name == "vllm-router":
        return rival_server(name, port, upstream, venv, folder)
    server = own_server("relay", port, upstream, {"lite": bundled_ranker()})
    if name == "former":
        source = {"PYTHONPATH": str(former_source())}
        return replace(server, environment={**server.environment, **source})
    return server


@contextlib.contextmanager
def started(names: list[str], folder: Path, venv: Path) -> Iterator[dict[str, Running]]:
    """The servers that start, in front of one upstream, while the block runs."""
    with contextlib.ExitStack() as stack:
        port = free_port()
        command = [sys.executable, str(HERE / "gateway_servers.py"), "upstream", str(port)]
        upstream = stack.enter_context(running(Server(command), port, folder / "upstream.log"))
        servers: dict[str, Running] = {}
        for name in names:
            port = free_port()
            try:
                server = server_of(name, port, upstream.url, folder, venv)
                servers[name] = stack.enter_context(running(server, port, folder / f"{name}.log"))
            except (DidNotStart, subprocess.CalledProcessError) as error:
                print(f"{name} did not start: {error}", flush=True)
        yield servers


def measure(
    servers: dict[str, Running], kind: str, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """For each server the medians over the rounds: CPU microseconds and requests a second."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(options.rounds):
        for name, server in servers.items():
            path = CHAT if name == "vllm-router" else RELAYED
            load = [server.url, "--path", path, "--kind", kind]
            load += ["--callers", str(options.callers), "--seconds", str(options.seconds)]
            before_s = cpu_seconds(server.pid)
            told: Any = child("gateway_load.py", load, PROMPTS)
            cpu_us = 1e6 * (cpu_seconds(server.pid) - before_s) / told["num_requests"]
            rounds[name].append({"cpu_us": cpu_us, "requests_per_s": told["requests_per_s"]})
    return {
        name: {what: median(point[what] for point in points) for what in points[0]}
        for name, points in rounds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one server's turn")
    parser.add_argument("--vllm-router-venv", type=Path, default=BUILD / "vllm-router")
    options = parser.parse_args()
    report: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[1]}
    print(f"{os.cpu_count()} cores, load average {report['load']:.1f}; {options.callers} callers")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(options.servers, Path(folder), options.vllm_router_venv) as servers,
    ):
        for kind in ("plain", "stream"):
            print(f"\n{'a whole answer' if kind == 'plain' else 'a stream of 32 pieces'}")
            report[kind] = points = measure(servers, kind, options)
            for name, point in points.items():
                shares = [
                    f"{rival['cpu_us'] / point['cpu_us']:.2f} of {other}'s rate a CPU second"
                    for other, rival in points.items()
                    if name == "relay" and other != name
                ]
                told = f"{point['cpu_us']:6.0f} us CPU {point['requests_per_s']:7.0f} requests/s"
                print(f"  {name:<12} {told}  {', '.join(shares)}", flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
