"""
Both simulated engines on the same workloads: requests and tokens a second, memory, growth.

    python benchmarks/simulator.py

Poisson arrivals at RATE a second on the preset h100-8b; prompts are log-normal (median 120 tokens,
sigma 0.9, 8 to 2000), answers too (median 180, sigma 1.0, 4 to 2048). Each measurement is a process
of its own that does what one point of `pars simulate` does: read the workload as it goes, simulate,
write every request's times; of the fast
engine the best of three. Memory is the process's peak. The exact engine is vLLM's own scheduler
in .engine/; where that is missing, or a size would take it too long, it is left out and said. The
last line is one JSON document.
"""

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pars.prove.engine.step_time import EnginePreset
from pars.prove.report.points import Point, run_point
from pars.prove.report.times import REQUESTS_FILE
from pars.prove.workload.contenders import Contender
from pars.prove.workload.workload import WorkloadRequest, write_workload

RATE, SEED = 40.0, 0
FAST_SIZES, EXACT_SIZES = (2_000, 20_000, 200_000), (2_000, 20_000)
ENGINE_PYTHON = Path(__file__).parent.parent / ".engine/bin/python"


def main() -> None:
    """Measure, print the table, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--one", nargs=2, metavar=("STEPPER", "WORKLOAD"), help=argparse.SUPPRESS)
    parser.add_argument("--exact-sizes", type=int, nargs="*", default=EXACT_SIZES)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for num_requests in FAST_SIZES:
            load = Path(folder) / f"{num_requests}.jsonl"
            num_tokens = write_load(load, num_requests)
            for stepper, python, sizes in (
                ("fast", Path(sys.executable), FAST_SIZES),
                ("vllm", ENGINE_PYTHON, options.exact_sizes),
            ):
                if num_requests in sizes and python.exists():
                    # What takes a tenth of a second is at the mercy of whatever else runs.
                    tries = 3 if stepper == "fast" else 1
                    told = min(
                        (in_a_process(python, stepper, load) for _ in range(tries)),
                        key=lambda it: it["seconds"],
                    )
                    rows.append({"stepper": stepper, "num_requests": num_requests, **told})
                    rows[-1]["requests_s"] = num_requests / told["seconds"]
                    rows[-1]["tokens_s"] = num_tokens / told["seconds"]
    print_table(rows)
    print(json.dumps({"rate": RATE, "rows": rows, "ratios": ratios(rows)}))


def write_load(path: Path, num_requests: int) -> int:
    """A workload of that many requests; returns its output tokens."""
    rng, at_s, num_tokens = random.Random(SEED), 0.0, 0

    def requests():
        nonlocal at_s, num_tokens
        for number in range(num_requests):
            at_s += rng.expovariate(RATE)
            prompt = min(2000, max(8, int(rng.lognormvariate(math.log(120), 0.9))))
            output = min(2048, max(4, int(rng.lognormvariate(math.log(180), 1.0))))
            num_tokens += output
            yield WorkloadRequest(f"{number:06d}", at_s, None, prompt, output)

    write_workload(path, {"source": "log-normal"}, requests())
    return num_tokens


def in_a_process(python: Path, stepper: str, load: Path) -> dict:
    """One measurement, alone in a fresh process."""
    command = [python, __file__, "--one", stepper, str(load)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measure(stepper: str, load: Path) -> dict:
    """Seconds of one point (imports and set-up of the engine first), steps and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        preset = EnginePreset.named("h100-8b")

        def point(workload: Path, name: str) -> Point:
            return Point(
                workload=workload,
                contender=Contender.parse("oracle@30"),
                rate=None,
                squeeze=1.0,
                preset=preset,
                stepper=stepper,
                scores=None,
                calibration=None,
                folder=Path(folder) / name,
            )

        few = Path(folder) / "few.jsonl"
        write_load(few, 20)
        run_point(point(few, "few"))  # imports, caches
        base_mb = peak_mb()
        began_s = time.perf_counter()
        run_point(point(load, "all"))
        seconds, memory_mb = time.perf_counter() - began_s, peak_mb()
        lines = (Path(folder) / "all" / REQUESTS_FILE).read_bytes().splitlines()
    run = next(json.loads(line)["run"] for line in reversed(lines) if line.startswith(b'{"run"'))
    return {
        "seconds": seconds,
        "num_steps": run["facts"]["num_steps"],
        "peak_mb": memory_mb,
        "before_mb": base_mb,
        "virtual_s": run["duration_s"],
    }


def peak_mb() -> float:
    """The process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ratios(rows: list[dict]) -> dict:
    """Fast over exact at each size, and time per request at each size over that at the smallest."""
    by = {(row["stepper"], row["num_requests"]): row for row in rows}
    found = {"fast_over_exact": {}, "growth": {}}
    for (stepper, size), row in by.items():
        least = min(other for name, other in by if name == stepper)
        growth = by[stepper, least]["requests_s"] / row["requests_s"]
        found["growth"][f"{stepper} {size}"] = round(growth, 3)
        if stepper == "fast" and ("vllm", size) in by:
            ratio = row["requests_s"] / by["vllm", size]["requests_s"]
            found["fast_over_exact"][str(size)] = round(ratio, 1)
    return found


def print_table(rows: list[dict]) -> None:
    """As Markdown."""
    print(f"oracle@30 on h100-8b at {RATE:g} requests/s; growth: time a request, first row = 1\n")
    print("| engine | requests | seconds | requests/s | tokens/s | memory, MB | before | growth |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    growth = ratios(rows)["growth"]
    for row in rows:
        size = row["num_requests"]
        print(
            f"| {row['stepper']} | {size:,} | {row['seconds']:.2f} | {row['requests_s']:,.0f}"
            f" | {row['tokens_s']:,.0f} | {row['peak_mb']:.0f} | {row['before_mb']:.0f}"
            f" | {growth[row['stepper'] + ' ' + str(size)]:.2f} |"
        )
    for size, ratio in ratios(rows)["fast_over_exact"].items():
        print(f"\nfast over exact at {int(size):,} requests: {ratio:.0f}x", end="")
    done = {row["num_requests"] for row in rows if row["stepper"] == "vllm"}
    left_out = [size for size in FAST_SIZES if size not in done]
    why = "it would take too long" if done else "there is no vLLM: make engine"
    print(f"\n\nnot run on the exact engine ({why}): {', '.join(f'{n:,}' for n in left_out)}")


if __name__ == "__main__":
    main()
