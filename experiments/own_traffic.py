"""
How much own traffic is enough: tau-b against the requests seen, from the bundled ranker or scratch.

    python experiments/own_traffic.py --records FOLDER     # goes on where it stopped

FOLDER holds the record files that `data.SOURCES` names; they are not part of the project. Each data
set stands for one operator's traffic: so many requests of it, drawn at random, have been seen, and
`pars learn` does with them what it always does. Each line of experiments/own_traffic.jsonl is one
candidate: its tau-b on a test set that is the same for all, and whether it would be promoted.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from data import load

from pars.learn.data.records import Row
from pars.learn.own_traffic.from_outcomes import LearnConfig, compare, train_candidate
from pars.learn.own_traffic.own_traffic import Request, rows_of, split_by_time
from pars.learn.training.processes import joined_processes
from pars.ranking.order_metrics import pair_sums
from pars.ranking.ranker import Ranker, bundled_ranker

RESULTS = Path(__file__).with_suffix(".jsonl")
SETS = ("alpaca_davinci003", "sharegpt")
NUM_TEST = 2_000  # prompts: an interval of 0.03, and the scoring takes less than the training
# Share of the bundled ranker's weights that a candidate starts with; the rest is a new network's.
STARTS = {"bundled": 1.0, "half": 0.5, "scratch": 0.0}
SEEDS = {100: 3, 300: 3, 1_000: 3, 3_000: 3, 10_000: 1}


def runs() -> Iterator[dict[str, object]]:
    """Every candidate to train: small ones first, since they vary most."""
    for num_requests, num_seeds in SEEDS.items():
        for name in SETS:
            for seed in range(num_seeds):
                for start in STARTS:
                    yield {
                        "data": name,
                        "num_requests": num_requests,
                        "start": start,
                        "seed": seed,
                    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--records", type=Path, required=True, help="folder of the record files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = [{key: line[key] for key in next(runs())} for line in map(json.loads, lines)]
    data = {}
    for run in runs():
        if run in done:
            continue
        if run["data"] not in data:
            data[run["data"]] = traffic(str(run["data"]), options.records)
        line = {**run, **measure(*data[run["data"]], **run)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)


def traffic(name: str, folder: Path) -> tuple[list[Row], list[Row]]:
    """All requests of a data set, and those of its test prompts that are judged by."""
    both = load(name, folder)
    train, test = (
        [
            Row(i, prompt, length)
            for i, (prompt, length) in enumerate(zip(p.prompts, p.lengths.tolist(), strict=True))
        ]
        for p in (both.train, both.test)
    )
    return train, test[:NUM_TEST]


def measure(
    train: list[Row], test: list[Row], *, data: str, num_requests: int, start: str, seed: int
) -> dict[str, object]:
    """Learn from so many requests, and order the test prompts."""
    order = np.random.default_rng(seed).permutation(len(train))[:num_requests]
    seen = [Request(train[i], float(place)) for place, i in enumerate(order)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, joined_processes() as processes:
        config = LearnConfig(
            outcomes=Path(data),
            ranker=Path(folder),
            start="scratch" if start == "scratch" else "present",
            seed=seed,
        )
        older, newest = split_by_time(seen, config.newest_share)
        training, _ = train_candidate(
            config,
            bundled_ranker(),
            rows_of(older),
            Path(folder),
            processes,
            kept_share=STARTS[start],
        )
    seconds = time.perf_counter() - started
    scores = training.score([request.row.prompt for request in newest])
    judged = compare(bundled_ranker(), scores, newest, config.num_resamples)
    prompts, lengths = [row.prompt for row in test], [row.answer_length for row in test]
    return {
        "num_test": len(test),
        "tau_b": round(pair_sums(training.score(prompts), lengths).tau_b(), 4),
        "tau_b_bundled": round(
            pair_sums(Ranker.load(bundled_ranker()).score(prompts), lengths).tau_b(), 4
        ),
        "val_accuracy": round(training.progress.best_val_accuracy, 4),
        "difference": judged.difference.as_json(),
        "is_promoted": judged.is_better,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
