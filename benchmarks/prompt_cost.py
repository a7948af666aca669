"""
What to make of a prompt's length in a request's cost (`pars.scheduling.demand.demand_of`).

    python benchmarks/prompt_cost.py

Requests of real traces, with their own bursts, and of ShareGPT at Poisson arrivals go through the
simulated engine (h100-8b) in the order of answer + weight * prompt tokens, at three loads. The
answer's length is known, or known with a log-normal error of sigma 0.7. Beside it stands Smith's
rule (1956): a weighted mean of completion times is least in the order of work over weight. NTPOT
weighs a request by 1 / answer, so that is answer * (answer + weight * prompt), of which the root is
again in tokens. With @30, requests age as in production, at most 30 s of overtaking.

Each trace is cut into windows, which are the repeats. The last line of stdout is one JSON document.
PARS_SHARED names the folder with data/ (default ../shared); without it nothing runs.
"""

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np

from pars.prove.workload.arrivals import poisson, scaled
from pars.prove.workload.traces import read_trace
from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S
from pars.scheduling.policies.shortest_first import ShortestFirst
from virtual_load import (
    MEASURES,
    PRESET,
    Job,
    Load,
    capacity,
    mean_and_error,
    ranks,
    rounded,
    run_all,
)

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))

TRACES = {"azure2023 conv": "azure2023_conv", "mooncake conv": "mooncake_conversation"}
SUMS, SMITHS = (0.0, 0.01, 0.03, 0.1, 0.3), (0.1, 0.3, 1.0, 2.0)
TODAY = "sum 0.01"  # what the others are compared with: the cost until this was measured
LOADS = (0.8, 1.0, 1.2)  # of what the engine gets done
SIGMAS = (0.0, 0.7)
AGED = (TODAY, "sum 0.1", *(f"Smith {weight:g}" for weight in SMITHS))
SHOWN_SIGMA, LEAST_SHOWN_LOAD = 0.7, 1.0  # in the table; the JSON has all
NUM_REQUESTS, NUM_WINDOWS = 3000, 4
MOST_TOKENS = 32_000  # of prompt and answer: longer ones are left out


def main() -> None:
    """Simulate, print, then the JSON."""
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED / 'data/traces'} is not there: set PARS_SHARED to the folder with data/")
    results = {}
    for name, windows in {**dict(traces()), "sharegpt, poisson": sharegpt()}.items():
        results[name] = measure(windows)
        print_table(name, results[name])
    print(json.dumps(rounded(results)))


def traces():
    """Each trace's windows: loads whose arrivals are as recorded."""
    for name, file in TRACES.items():
        trace = read_trace(SHARED / f"data/traces/{file}.csv")
        inputs, outputs = (np.array(x) for x in (trace.input_tokens, trace.output_tokens))
        fits = (inputs >= 1) & (outputs >= 1) & (inputs + outputs <= MOST_TOKENS)
        columns = [x[fits] for x in (np.array(trace.arrivals_s), inputs, outputs)]
        starts = np.linspace(0, fits.sum() - NUM_REQUESTS, NUM_WINDOWS).astype(int)
        yield name, [Load(*(x[start : start + NUM_REQUESTS] for x in columns)) for start in starts]


def sharegpt() -> list[Load]:
    """As many windows of ShareGPT's exchanges, the whole conversation so far as the prompt."""
    inputs, outputs = [], []
    with gzip.open(SHARED / "data/chat_sharegpt.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            inputs.append(row["prompt_tokens"] + row["history_chars"] // 4)
            outputs.append(row["response_tokens"])
    loads = []
    for seed in range(NUM_WINDOWS):
        rows = np.random.default_rng(seed).permutation(len(inputs))
        prompt, output = np.array(inputs)[rows], np.array(outputs)[rows]
        fits = np.flatnonzero((output >= 1) & (prompt >= 1) & (prompt + output <= MOST_TOKENS))
        fits = fits[:NUM_REQUESTS]
        loads.append(Load(np.array(poisson(len(fits), 1.0, seed)), prompt[fits], output[fits]))
    return loads


def costs(answer: np.ndarray, prompt: np.ndarray) -> dict[str, np.ndarray]:
    """Ways to make one number of the tokens of answer and prompt, both [num_requests]."""
    sums = {f"sum {weight:g}": answer + weight * prompt for weight in SUMS}
    smiths = {
        f"Smith {weight:g}": np.sqrt(answer * (answer + weight * prompt)) for weight in SMITHS
    }
    return sums | smiths


def aged(cost: np.ndarray, arrivals_s: np.ndarray, long_tokens: float) -> np.ndarray:
    """The keys that the middleware would set, with 30 s of overtaking."""
    place = ShortestFirst(30.0).place
    places = [
        place(Demand(it, it), EPOCH_S + at_s, long_tokens=long_tokens)
        for it, at_s in zip(cost.tolist(), arrivals_s.tolist(), strict=True)
    ]
    return np.array([place.key for place in places])


def measure(windows: list[Load]) -> dict:
    """Every cost at every load and error, and what it changes beside TODAY."""
    rates = [capacity(window.output_tokens, window.prompt_tokens) for window in windows]
    jobs, names = [], []
    for share in LOADS:
        for seed, (window, rate) in enumerate(zip(windows, rates, strict=True)):
            arrivals_s = np.array(scaled(window.arrivals_s.tolist(), share * rate))
            load = Load(arrivals_s - arrivals_s[0], window.prompt_tokens, window.output_tokens)
            error = np.random.default_rng(seed).normal(size=len(arrivals_s))
            jobs.append(Job(load, np.zeros(len(arrivals_s), dtype=np.int64)))
            names.append((share, 0.0, "fcfs"))
            for sigma in SIGMAS:
                guess = window.output_tokens * np.exp(sigma * error)
                long_tokens = float(np.quantile(guess, 0.9))  # as a calibration has it: of answers
                for name, cost in costs(guess, window.prompt_tokens).items():
                    jobs.append(Job(load, ranks(cost)))
                    names.append((share, sigma, name))
                    if share >= 1 and name in AGED:
                        jobs.append(Job(load, aged(cost, load.arrivals_s, long_tokens)))
                        names.append((share, sigma, f"{name} @30"))
    runs: dict = {}
    for name, found in zip(names, run_all(jobs), strict=True):
        runs.setdefault(name, []).append(found)
    rows = []
    for (share, sigma, cost), of_windows in runs.items():
        base = runs[share, sigma, f"{TODAY} @30" if cost.endswith("@30") else TODAY]
        row = {"load": share, "sigma": sigma, "cost": cost}
        for key in MEASURES:
            changes = [it[key] / other[key] - 1 for it, other in zip(of_windows, base, strict=True)]
            change, half = mean_and_error(changes)
            mean = float(np.mean([it[key] for it in of_windows]))
            row[key] = {"mean": mean, "change": change, "error": half}
        rows.append(row)
    return {
        "capacity": float(np.mean(rates)),
        "mean_prompt_tokens": float(np.mean([w.prompt_tokens.mean() for w in windows])),
        "mean_output_tokens": float(np.mean([w.output_tokens.mean() for w in windows])),
        "rows": rows,
    }


def print_table(name: str, result: dict) -> None:
    """Mean NTPOT and end-to-end and p99 TTFT in seconds, each with its change beside TODAY."""
    print(
        f"\n{name}: {NUM_WINDOWS} windows of {NUM_REQUESTS:,} requests;"
        f" prompts of {result['mean_prompt_tokens']:.0f} tokens and answers of"
        f" {result['mean_output_tokens']:.0f};"
        f" {PRESET.name} gets {result['capacity']:.1f} a second done\n"
        f"answers known to sigma {SHOWN_SIGMA}; seconds, and change beside {TODAY} with the same"
        " aging (half of its 95% interval)\n"
    )
    print(f"{'load':<6}{'cost':<14}", end="")
    print("".join(f"{title:>26}" for title in ("mean NTPOT", "mean e2e", "p99 TTFT")))
    for row in result["rows"]:
        is_shown = row["sigma"] == SHOWN_SIGMA or row["cost"] == "fcfs"
        if not is_shown or row["load"] < LEAST_SHOWN_LOAD:
            continue
        cells = "".join(
            f"{row[key]['mean']:>11.4f} {100 * row[key]['change']:>+6.1f}%"
            f" ±{100 * row[key]['error']:<4.1f} "
            for key in ("ntpot_s", "e2e_s", "p99_ttft_s")
        )
        print(f"{row['load']:<6g}{row['cost']:<14}{cells}")


if __name__ == "__main__":
    main()
