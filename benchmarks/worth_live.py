"""
What a gateway tells of its order's worth while it serves, beside what `pars bench` measures.

    python benchmarks/worth_live.py [--requests 300] [--rate 8] [--repeats 2]

Two gateways before one fake engine (a fifth of h100-8b's speed, 16 slots, priorities), in turns: by
the one requests go first come, first served, by the other within the default bound. `pars bench`
sends both the same requests. The one that orders tells on /pars/now what that was worth, from its
own requests alone; it sees nothing of the other's. Prompts and lengths are Alpaca's, in bursts. The
last line of stdout is one JSON; PARS_SHARED names the folder with data/ (default ../shared).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

from frontier_loads import SHARED
from gateway_proxies import Running, Server, free_port, running
from pars.outcomes.worth_watch import LOOK_EVERY_S
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN

RECORDS = SHARED / "data/instruction_alpaca_davinci003.jsonl.gz"
SECRET = "benchmark"
NUM_SLOTS, BURSTS_CV = 16, 3.0
SPEED = 0.2  # of an H100: a step is 31 ms, beside which what servers and client take is little
TARGET = 0.05
SETTINGS = {name: value for name, value in os.environ.items() if not name.startswith("PARS_")}
SETTINGS |= {"PARS_TRUSTED_SECRET": SECRET, "PARS_STATE": "none"}


def pars(*words: Any) -> None:
    """
    A command of pars.

    Raises:
        SystemExit: it failed; with what it said.
    """
    command = [sys.executable, "-m", "pars", *map(str, words)]
    done = subprocess.run(command, env=SETTINGS, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pars {words[0]}: {done.stderr[-2000:]}")


def server(stack: ExitStack, log: Path, *words: Any, ready: str) -> Running:
    port = free_port()
    command = [sys.executable, "-m", "pars", *map(str, words), "--port", str(port)]
    return stack.enter_context(running(Server(command, ready, SETTINGS), port, log))


def ntpot_s(url: str, workload: Path, folder: Path) -> float:
    """The mean time per output token that `pars bench` measures of one run through a gateway."""
    how = ("--policies", "gateway", "--repeats", 1, "--secret-env", "PARS_TRUSTED_SECRET")
    pars("bench", url, "--workload", workload, *how, "--output-dir", folder)
    [row] = json.loads((folder / "report.json").read_text())["figures"]
    if row["errors"]:
        sys.exit(f"{folder.name}: {row['errors']}")
    return float(row["measures"]["ntpot_s"]["mean"])


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workload = folder / "workload.jsonl"
    arrivals = ("--arrivals", "gamma", "--cv", BURSTS_CV, "--rate", options.rate)
    which = ("--records", RECORDS, "--num-requests", options.requests)
    pars("workload", *which, *arrivals, "--output", workload)
    runs: dict[str, list[float]] = {"fcfs": [], "ordered": []}
    with ExitStack() as stack:
        how = ("fake-engine", "--max-num-seqs", NUM_SLOTS, "--speed", SPEED)
        engine = server(stack, folder / "engine.log", *how, ready="/health")
        asked = ("gateway", "--upstream", engine.url, "--max-slowdown")
        servers = {
            name: server(stack, folder / name, *asked, bound, ready="/pars/health")
            for name, bound in (("fcfs", 1), ("ordered", DEFAULT_MAX_SLOWDOWN))
        }
        for repeat in range(options.repeats):
            for name in sorted(runs, reverse=bool(repeat % 2)):
                into = folder / f"{name}-{repeat}"
                runs[name].append(ntpot_s(servers[name].url, workload, into))
                print(f"{name:<8}{1e3 * runs[name][-1]:7.1f} ms per token", flush=True)
        time.sleep(2 * LOOK_EVERY_S)
        told = json.loads(servers["ordered"].get("/pars/now"))["worth"]["gain"]
    return {
        "ntpot_s": runs,
        "measured": 1 - fmean(runs["ordered"]) / fmean(runs["fcfs"]),
        "told": told["ntpot_ratio"],
        "told_requests": told["num_requests"],
        "wait_told": told["wait_ratio"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rate", type=float, default=8.0, help="Requests a second.")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    if not RECORDS.is_file():
        sys.exit(f"{RECORDS} is not there: set PARS_SHARED")
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    apart = abs(found["told"] - found["measured"])
    print(
        f"shorter time per token: {found['measured']:.1%} measured by pars bench,"
        f" {found['told']:.1%} told by the gateway of {found['told_requests']:,} requests"
    )
    is_met = "met" if apart <= TARGET else "MISSED"
    print(f"{100 * apart:.1f} points apart; target {100 * TARGET:g}: {is_met}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
