"""
Runs experiments by name and keeps every result, good or bad, in one file.

    python experiments/run.py --records FOLDER objectives threshold   # goes on where it stopped
    python experiments/run.py --records FOLDER --list

FOLDER holds the record files that `data.SOURCES` names; they are not part of the project. Each line
of experiments/results.jsonl is one training: its spec, Kendall tau-b over all pairs with a 95%
interval (bootstrap by prompt), pairwise accuracy over pairs at least 0.2 apart, and seconds.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DataSet, load
from train_one import Spec, train_lite

from pars.metrics import bootstrap, pair_sums

RESULTS = Path(__file__).with_name("results.jsonl")
SETS = ("alpaca_davinci003", "sharegpt", "gpteacher_code", "mmlupro_gpt-4o", "alpaca_vicuna7b")
SEEDS = (0, 1, 2)


def objectives() -> Iterator[Spec]:
    """Same network, data and steps; what the loss asks for differs."""
    kinds = ["margin:0.2", "margin:0", "logistic:0.2", "logistic:0", "soft:0.5", "listmle"]
    kinds += ["regression", "classes", "lognormal", "logt", "quantiles"]
    for name in ("gpteacher_code", "alpaca_vicuna7b", "alpaca_davinci003", "sharegpt"):
        for kind in kinds:
            yield Spec(name, objective=kind, num_train=10_000)


def threshold() -> Iterator[Spec]:
    """PARS's filter |a-b| / max(a, b), under both pairwise losses."""
    for name in ("gpteacher_code", "alpaca_vicuna7b"):
        for loss in ("margin", "logistic"):
            for share in (0, 0.1, 0.2, 0.3, 0.5):
                for seed in SEEDS:
                    yield Spec(name, objective=f"{loss}:{share}", seed=seed)


def network() -> Iterator[Spec]:
    """Parts of the lite network, one by one."""
    changes: list[dict[str, Any]] = [
        {}, {"is_wide": False}, {"is_deep": False}, {"windows": (3,)}, {"windows": (3, 5, 7)},
        {"width": 32}, {"width": 96}, {"attention": True}, {"trigrams": True},
    ]  # fmt: skip
    for name in ("gpteacher_code", "alpaca_davinci003"):
        for change in changes:
            yield Spec(name, network=tuple(sorted(change.items())))


def amount() -> Iterator[Spec]:
    """Order against the number of prompts trained on."""
    for name in ("alpaca_davinci003", "sharegpt"):
        for num_train in (100, 300, 1_000, 3_000, 10_000, 0):
            for seed in SEEDS if 0 < num_train <= 3_000 else (0,):
                yield Spec(name, num_train=num_train, seed=seed)


EXPERIMENTS = {it.__name__: it for it in (objectives, threshold, network, amount)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of experiments; all of them")
    parser.add_argument("--records", type=Path, help="folder of the record files")
    parser.add_argument("--list", action="store_true", help="what there is, and what is done")
    options = parser.parse_args()
    done = {json.dumps(line["spec"]) for line in results()}
    wanted = [(name, spec) for name in options.names or EXPERIMENTS for spec in EXPERIMENTS[name]()]
    left = [(name, spec) for name, spec in wanted if key(spec) not in done]
    print(f"{len(wanted) - len(left)} of {len(wanted)} trainings are done")
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<12} {experiment.__doc__}")
        return
    if not options.records:
        parser.error("--records is needed: the folder of the record files")
    torch.set_num_threads(1)
    data: dict[str, DataSet] = {}
    for name, spec in left:
        if spec.data not in data:
            data = {spec.data: load(spec.data, options.records)}  # one at a time in memory
        line = {"experiment": name, "spec": json.loads(key(spec)), **measure(spec, data[spec.data])}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{name:<12} {key(spec)}: {line['tau_b']['value']:.4f}, {line['seconds']} s", flush=True
        )


def results() -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def key(spec: Spec) -> str:
    return json.dumps(asdict(spec))


def measure(spec: Spec, data: DataSet) -> dict[str, Any]:
    """Train, and order the held-out prompts."""
    train = data.train
    if spec.num_train:
        chosen = np.random.default_rng(spec.seed).permutation(len(train))[: spec.num_train]
        train = train.part(chosen.tolist())
    scores, seconds = train_lite(spec, train, data.test)
    test = data.test
    sums = pair_sums(scores, test.lengths, strata=test.models)
    filtered = pair_sums(scores, test.lengths, strata=test.models, threshold=0.2)
    return {
        "num_train": len(train),
        "num_test": len(test),
        "tau_b": bootstrap(sums, "tau_b", clusters=test.prompts).as_json(),
        "filtered_accuracy": round(filtered.accuracy(), 4),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
