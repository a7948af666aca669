"""
What each policy is worth on a real vLLM, and how close the simulator comes to it.

    make engine
    bash benchmarks/all.sh tau              # rankers trained on the other nine tenths of each set
    python benchmarks/live.py --work-dir build/live

Real held-out prompts with their real answers' lengths, on a Llama of random weights, under a
Poisson rush that takes some four times as long to serve: `pars workload`, `pars bench`, `pars
simulate --fit`, `pars simulate`, as a user would run them. Fidelity is said twice: with step times
fitted to this very run, and with those fitted to the other data set's. The last line of stdout is
one JSON with all of it.

The Llama is larger than the tests': its steps take one core some 7 ms, so that the other one is
enough for vLLM's HTTP server and this client. With the tests' own, both cores are full, each of
the three lets the others stand, and what is measured is that.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
from engine import Engines  # noqa: E402  # the tests' real vLLM

# Data set: its folder of tau.py, requests, requests a second, and a bound on overtaking that such a
# short run can show.
LOADS = {
    "sharegpt": ("sharegpt_conversation_known", 160, 25.0, 4),
    "alpaca_davinci003": ("alpaca_davinci003", 350, 120.0, 2),
}
NUM_SLOTS = 16
MODEL_SIZE = ("--width", "512", "--layers", "6")  # 14 M parameters
MAX_TOKENS = 400
RANKERS = ("lite", "MiniLM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--work-dir", type=Path, default=Path("build/live"))
    parser.add_argument("--tau-dir", type=Path, default=Path("build/tau"), help="of tau.py")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--data-sets", nargs="*", default=list(LOADS), choices=list(LOADS))
    options = parser.parse_args()
    if not (options.tau_dir / LOADS[options.data_sets[0]][0]).is_dir():
        sys.exit(f"{options.tau_dir} holds no trained rankers: bash benchmarks/all.sh tau")
    results: dict[str, Any] = {}
    with real_vllm(options.work_dir / "model") as url:
        for name in options.data_sets:
            results[name] = measure(name, url, options)
    for name in options.data_sets:
        others = [other for other in options.data_sets if other != name]
        results[name]["fidelity"] = {
            fitted_to: fidelity(name, fitted_to, results[name], options)
            for fitted_to in [name, *others]
        }
    for name, result in results.items():
        print_table(name, result)
    print(json.dumps(results))


@contextlib.contextmanager
def real_vllm(model: Path) -> Iterator[str]:
    """The URL of a vLLM that schedules by priority, for the block; makes the model if need be."""
    if not (model / "config.json").exists():
        make = [ROOT / ".engine/bin/python", ROOT / "engine/tiny_llama.py", model, *MODEL_SIZE]
        subprocess.run(make, check=True)
    with tempfile.TemporaryDirectory() as logs:
        engines = Engines(Path(logs), {})
        slots = ("--max-num-seqs", str(NUM_SLOTS), "--max-model-len", "8192")
        folder = {"TINY_LLAMA": str(model.resolve())}
        try:
            yield engines("--scheduling-policy", "priority", *slots, **folder).url
        finally:
            engines.stop()


def measure(name: str, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """`pars bench` on one data set: its report."""
    trained_on, num_requests, rate, aging_s = LOADS[name]
    folder, trained = options.work_dir / name, options.tau_dir / trained_on
    workload = folder / "workload.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    records = ["--records", trained / "data/val_data.json", "--length-field", "answer_length"]
    limits = ["--max-output-tokens", MAX_TOKENS, "--max-prompt-tokens", 2000]
    arrivals = ["--num-requests", num_requests, "--rate", rate]
    pars("workload", *records, *limits, *arrivals, "--output", workload)
    there = [ranker for ranker in RANKERS if (trained / ranker / "ranker").is_dir()]
    named = [f"--ranker={ranker}={trained / ranker / 'ranker'}" for ranker in there]
    ranking = ["ranker", *(f"ranker:{ranker}" for ranker in there)]
    policies = ["fcfs", "prompt-length"]
    for policy in [*ranking, "oracle"]:
        aged = [f"{policy}@{aging_s}"] if policy in ("ranker:lite", "oracle") else []
        policies += [policy, *aged]
    how = ["--repeats", options.repeats, "--truncate-prompts", "--policies", ",".join(policies)]
    pars("bench", url, "--workload", workload, *named, *how, "--output-dir", folder / "bench")
    report = json.loads((folder / "bench/report.json").read_text())
    return {"rate": rate, "num_requests": num_requests, "report": report}


def fidelity(
    name: str, fitted_to: str, result: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The same workload simulated, with step times fitted to a live run: simulated over live."""
    folder = options.work_dir / name
    preset = options.work_dir / fitted_to / "engine.json"
    if not preset.exists():
        live = options.work_dir / fitted_to / "bench"
        pars("simulate", "--fit", live, "--max-num-seqs", NUM_SLOTS, "--output", preset)
    output = folder / f"simulated_{fitted_to}"
    ranker = ["--ranker", options.tau_dir / LOADS[name][0] / "lite/ranker"]
    asked = ["--workload", folder / "workload.jsonl", "--policies", "fcfs,ranker,oracle"]
    pars("simulate", *asked, *ranker, "--engine", preset, "--output-dir", output)
    simulated = by_policy(json.loads((output / "report.json").read_text()))
    live = by_policy(result["report"])
    told: dict[str, Any] = {}
    for policy, in_live in (("fcfs", "fcfs"), ("ranker", "ranker:lite"), ("oracle", "oracle")):
        ours, theirs = (it["measures"]["ntpot_s"] for it in (simulated[policy], live[in_live]))
        told[policy] = {
            figure: {"live": theirs[figure], "simulated": ours[figure]}
            for figure in ("mean", "p90")
        }
    told["fcfs/ranker"] = {
        figure: {
            of: told["fcfs"][figure][of] / told["ranker"][figure][of]
            for of in ("live", "simulated")
        }
        for figure in ("mean", "p90")
    }
    return told


def by_policy(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in report["figures"]}


def pars(*arguments: object) -> None:
    """Run the command line of this checkout; its report goes to stderr."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # vLLM has the other core
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)


def print_table(name: str, result: dict[str, Any]) -> None:
    report = result["report"]
    shares = {
        gain["policy"]: gain["share"] for gain in report["gains"] if gain["measure"] == "ntpot_s"
    }
    print(f"\n{name}: {result['num_requests']} requests, {result['rate']:g} a second; NTPOT in s")
    print(
        f"{'policy':<18}{'mean':>8}{'p50':>8}{'p90':>8}{'p99':>8}{'longest wait, s':>17}"
        f"{'tokens/s':>10}   of oracle's gain"
    )
    for row in report["figures"]:
        ntpot = row["measures"]["ntpot_s"]
        figures = "".join(f"{ntpot[it]:8.3f}" for it in ("mean", "p50", "p90", "p99"))
        rest = f"{row['longest_wait_s']:17.1f}{row['throughput_tokens_s']:10.0f}"
        print(f"{row['policy']:<18}{figures}{rest}   {told_share(shares.get(row['policy']))}")
    print("simulated / live NTPOT" + " " * 12 + "mean     p90")
    for fitted_to, told in result["fidelity"].items():
        for what, figures in told.items():
            ratios = [figures[it]["simulated"] / figures[it]["live"] for it in ("mean", "p90")]
            label = f"{what}, fitted to {fitted_to}"
            print(f"  {label:<32}{ratios[0]:6.2f}  {ratios[1]:6.2f}")


def told_share(share: dict[str, float | None] | None) -> str:
    if share is None or share["value"] is None:
        return "-"
    interval = ""
    if share["low"] is not None and share["high"] is not None:
        interval = f" [{share['low']:.0%}, {share['high']:.0%}]"
    return f"{share['value']:.0%}{interval}"


if __name__ == "__main__":
    main()
