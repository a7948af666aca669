"""
Whether the gateway's memory stays flat: a part of `benchmarks/gateway_cost.py`.

Half the requests are streamed. Of a healthy process the first requests fill caches and the
allocator's arenas, so a tenth of them come before the first look.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gateway_proxies import Running

LOAD = str(Path(__file__).resolve().parent / "gateway_load.py")
NUM_STREAMS = 1000
NUM_LOOKS = 5
HELD_S = 3.0
HELD_PIECE_MS = 1000  # the upstream's pace while streams are held open


def resident_mib(pid: int) -> float:
    """Resident memory of a process now (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def memory(
    server: Running, upstream: Running, prompts: list[str], num_requests: int
) -> dict[str, Any]:
    """
    Resident memory over `num_requests` requests, then with 1,000 streams open, twice.

    Raises:
        RuntimeError: a request failed.
    """
    soaked = soak(server, prompts, num_requests)
    print(f"\nlite, MiB in {num_requests} requests, half of them streams:", end=" ")
    print(" ".join(f"{mib:.1f}" for mib in soaked), flush=True)
    upstream.get(f"/pace/{HELD_PIECE_MS}", "POST")
    rounds = [open_streams(server, prompts) for _ in range(2)]
    upstream.get("/pace/0", "POST")
    for number, (before, opened, later, closed) in enumerate(rounds, 1):
        print(
            f"{NUM_STREAMS} streams, round {number}, MiB: {before:.1f} before, {opened:.1f} open,"
            f" {later:.1f} after {HELD_S:g} s, {closed:.1f} closed",
            flush=True,
        )
    return {
        "num_requests": num_requests,
        "soak_mib": soaked,
        "growth_mib": soaked[-1] - soaked[0],
        "streams_mib": rounds,
        "stream_kib": 1024 * (rounds[0][2] - rounds[0][0]) / NUM_STREAMS,
        "second_round_mib": rounds[1][2] - rounds[0][2],
    }


def soak(server: Running, prompts: list[str], num_requests: int) -> list[float]:
    """Memory after the first tenth of the requests, and at five points of the rest."""
    first = num_requests // 10
    seen = []
    for part in (first, *[(num_requests - first) // NUM_LOOKS] * NUM_LOOKS):
        command = [sys.executable, LOAD, server.url, "--kind", "mixed", "--num-requests", str(part)]
        done = subprocess.run(
            command, input=json.dumps(prompts) + "\n", capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
        if result["num_wrong"]:
            raise RuntimeError(result["wrong"])
        seen.append(resident_mib(server.pid))
    return seen


def open_streams(server: Running, prompts: list[str]) -> tuple[float, float, float, float]:
    """Memory before 1,000 streams, with all open, some seconds later, and after they left."""
    before = resident_mib(server.pid)
    command = [sys.executable, LOAD, server.url, "--hold", str(NUM_STREAMS)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as callers:
        assert callers.stdin is not None
        assert callers.stdout is not None
        callers.stdin.write(json.dumps(prompts) + "\n")
        callers.stdin.flush()
        said = json.loads(callers.stdout.readline() or '{"num_open": 0}')
        if said["num_open"] != NUM_STREAMS:
            raise RuntimeError(f"{said['num_open']} streams of {NUM_STREAMS} are open")
        opened = resident_mib(server.pid)
        time.sleep(HELD_S)
        later = resident_mib(server.pid)
        callers.stdin.close()
    time.sleep(1)
    return before, opened, later, resident_mib(server.pid)
