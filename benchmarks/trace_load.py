"""
What order is worth on real arrivals: Azure's conversation trace on a simulated h100-8b.

    python benchmarks/trace_load.py --data val_data.json --ranker lite=FOLDER --ranker MiniLM=FOLDER

First the trace's own lengths, of which only a perfect predictor can be asked, then held-out prompts
with their real answer lengths at the trace's arrivals, ordered by each ranker. Three loads, as
shares of what the engine gets done; every run is `pars simulate`, as a user would give it. The last
line of stdout is one JSON document. PARS_SHARED names the folder with data/traces (default
../shared); without it nothing runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pars.prove.workload.workload import read_workload
from virtual_load import capacity

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
TRACE = SHARED / "data/traces/azure2023_conv.csv"
LOADS = (0.8, 1.0, 1.2)  # of what the engine gets done
KNOWN = ("fcfs", "prompt-length", "oracle", "oracle@30", "reversed")
NUM_REQUESTS = 5_000  # of the prompts: fewer than are held out


def main() -> None:
    """Simulate, print, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, help="held-out prompts with answer lengths, tokens")
    parser.add_argument("--ranker", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args()
    if not TRACE.is_file():
        sys.exit(f"{TRACE} is not there: set PARS_SHARED to the folder with data/traces")
    rankers = dict(it.split("=", 1) for it in options.ranker)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        results["the trace's own lengths"] = measure(Path(folder) / "own", [], {}, KNOWN)
        if rankers:
            records = ["--records", options.data, "--num-requests", NUM_REQUESTS]
            title = f"{NUM_REQUESTS:,} held-out ShareGPT messages at its arrivals"
            results[title] = measure(Path(folder) / "prompts", records, rankers, KNOWN)
    for title, result in results.items():
        print_table(title, result)
    print(json.dumps(results))


def measure(folder: Path, records: list, rankers: dict[str, str], known: tuple[str, ...]) -> dict:
    """The figures of every policy at every load, and the loads in requests a second."""
    folder.mkdir()
    load = folder / "load.jsonl"
    pars("workload", "--trace", TRACE, *records, "--output", load)
    rows = read_workload(load).requests
    outputs = np.array([row.output_tokens for row in rows])
    prompts = np.array([row.prompt_tokens for row in rows])
    most = capacity(outputs, prompts)
    rates = [round(share * most, 2) for share in LOADS]
    figures = simulate(load, folder / "known", rates, known, {})
    for name, ranker in rankers.items():
        policies = ("ranker", "ranker@30")
        told = simulate(load, folder / name, rates, policies, {"--ranker": ranker})
        figures |= {policy.replace("ranker", name): told[policy] for policy in policies}
    return {"num_requests": len(rows), "capacity": most, "rates": rates, "policies": figures}


def simulate(
    load: Path, folder: Path, rates: list[float], policies: tuple[str, ...], more: dict
) -> dict[str, list[dict]]:
    """By policy, its measures at each rate."""
    options = ["--policies", ",".join(policies), "--rates", ",".join(map(str, rates))]
    more = [word for option in more.items() for word in option]
    engine = ["--engine", "h100-8b", "--output-dir", folder]
    pars("simulate", "--workload", load, *options, *engine, *more)
    figures = json.loads((folder / "report.json").read_text())["figures"]
    return {
        policy: [
            {
                **{name: figure["measures"][name] for name in ("ntpot_s", "ttft_s", "e2e_s")},
                "longest_wait_s": figure["longest_wait_s"],
                "throughput_rps": figure["throughput_rps"],
            }
            for figure in figures
            if figure["policy"] == policy
        ]
        for policy in policies
    }


def pars(*arguments: object) -> None:
    """The command line of this checkout; what it says goes to stderr."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def print_table(title: str, result: dict) -> None:
    """A row a policy, a block a load."""
    print(
        f"\n{title}: {result['num_requests']:,} requests; h100-8b gets "
        f"{result['capacity']:.1f} a second done"
    )
    for place, rate in enumerate(result["rates"]):
        print(f"\n  load {LOADS[place]:g}: {rate:g} requests/s; seconds")
        heads = ("mean", "p50", "p90", "p99")
        names = [f"NTPOT {head}" for head in heads] + ["TTFT mean", "p99", "e2e mean"]
        print(f"  {'':<28}{''.join(f'{name:>12}' for name in names)}{'longest wait':>14}")
        for policy, figures in result["policies"].items():
            figure = figures[place]
            ntpot, ttft = figure["ntpot_s"], figure["ttft_s"]
            values = [ntpot[head] for head in heads]
            values += [ttft["mean"], ttft["p99"], figure["e2e_s"]["mean"]]
            cells = "".join(f"{value:>12.3g}" for value in values)
            print(f"  {policy:<28}{cells}{figure['longest_wait_s']:>14.3g}")


if __name__ == "__main__":
    main()
