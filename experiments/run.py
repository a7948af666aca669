"""
Runs experiments by name and keeps every result, good or bad, in one file.

    python experiments/run.py --records FOLDER objectives threshold   # goes on where it stopped
    python experiments/run.py --list

FOLDER holds the record files that `data.SOURCES` names; they are not part of the project. Each line
of experiments/results.jsonl is one training: its spec, Kendall tau-b over all pairs of held-out
prompts with a 95% interval (bootstrap by prompt), pairwise accuracy over pairs at least 0.2 apart,
and CPU time. `docs/generate.py` makes the tables of benchmarks/results/README.md from it.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DataSet, Rows, load
from train_one import Spec, train_one

from pars.ranking.intervals import bootstrap
from pars.ranking.order_metrics import pair_sums

RESULTS = Path(__file__).with_name("results.jsonl")
SHORT = ("alpaca_davinci003", "sharegpt", "gpteacher_code", "alpaca_vicuna7b")
SEVERAL_MODELS = ("alpaca_eval", "mmlupro", "math_zeroeval")
SEEDS = (0, 1, 2)
# One core has minutes and not hours: comparisons are between small trainings of equal size, on the
# first and last words of a prompt.
SMALL = {"num_train": 4_000, "max_length": 128}


def objectives() -> Iterator[Spec]:
    """Same network, data and steps; what the loss asks for differs."""
    kinds = ["margin:0.2", "margin:0", "logistic:0", "soft:0.5", "listmle"]
    kinds += ["regression", "classes", "lognormal", "logt", "quantiles"]
    for name in SHORT:
        for kind in kinds:
            yield Spec(name, objective=kind, **SMALL)
    for name in SEVERAL_MODELS:
        for kind in ("margin:0.2", "soft:0.5", "listmle", "regression", "lognormal"):
            yield Spec(name, objective=kind, num_train=3_000, max_length=64)


def threshold() -> Iterator[Spec]:
    """PARS's filter |a-b| / max(a, b), under both pairwise losses."""
    for name in ("gpteacher_code", "alpaca_vicuna7b"):
        for loss in ("margin", "logistic"):
            for share in (0, 0.1, 0.2, 0.3, 0.5):
                yield Spec(name, objective=f"{loss}:{share}", **SMALL)


def reading() -> Iterator[Spec]:
    """What of a prompt is read: the ranker of the package, and without each part of it."""
    parts = ("marks", "last", "features", "vectors")
    changes = [{}, *({part: False} for part in parts), dict.fromkeys(parts, False)]
    for name in ("alpaca_davinci003", "sharegpt", "gpteacher_code"):
        for change in changes:
            yield Spec(name, reading=tuple(change.items()), **SMALL)


def network() -> Iterator[Spec]:
    """Parts of the lite network, one by one, and a MiniLM beside them."""
    changes: list[dict[str, Any]] = [
        {"is_wide": False}, {"is_deep": False}, {"windows": (3,)}, {"windows": (3, 5, 7)},
        {"width": 32}, {"width": 96}, {"trigrams": True}, {"dropout": 0.35}, {"word_dropout": 0.1},
    ]  # fmt: skip
    for name in ("alpaca_davinci003", "gpteacher_code"):
        for change in changes:
            yield Spec(name, network=tuple(change.items()), **SMALL)


def encoder() -> Iterator[Spec]:
    """A MiniLM on the same prompts as lite: one epoch."""
    for name in ("gpteacher_code", "alpaca_davinci003"):
        yield Spec(
            name, model="minilm", epochs=1, learning_rate=1e-4, batch_size=32,
            num_train=4_000, max_length=64,
        )  # fmt: skip


def steps() -> Iterator[Spec]:
    """Epochs, batches, learning rates and temperatures."""
    changes: list[dict[str, Any]] = [
        {"epochs": 2}, {"epochs": 5}, {"batch_size": 64}, {"batch_size": 256},
        {"learning_rate": 1.5e-3}, {"learning_rate": 6e-3},
        {"objective": "soft:0.25"}, {"objective": "soft:1.0"},
    ]  # fmt: skip
    for name in ("alpaca_davinci003", "gpteacher_code"):
        for change in changes:
            yield Spec(name, **{**SMALL, **change})


def whole() -> Iterator[Spec]:
    """The same on all training prompts, where what helps with few may not."""
    nothing = tuple(dict.fromkeys(("marks", "last", "features", "vectors"), False).items())
    changes: list[dict[str, Any]] = [
        {}, {"batch_size": 64}, {"batch_size": 64, "reading": nothing},
        {"batch_size": 64, "network": (("width", 96),)},
    ]  # fmt: skip
    for change in changes:
        yield Spec("alpaca_davinci003", **change)


def few() -> Iterator[Spec]:
    """How many epochs few prompts want, in batches of 64."""
    for name in ("alpaca_davinci003", "sharegpt", "gpteacher_code"):
        for num_train in (300, 1_000):
            for epochs in (3, 6, 12, 20):
                yield Spec(
                    name, num_train=num_train, epochs=epochs, batch_size=64, max_length=128
                )  # fmt: skip


def seeds() -> Iterator[Spec]:
    """Other seeds, which draw other training prompts too: what won, and what it won against."""
    without = (("vectors", False),)
    changes: list[dict[str, Any]] = [{}, {"batch_size": 64}, {"reading": without}]
    for name in ("alpaca_davinci003", "sharegpt", "gpteacher_code"):
        for seed in SEEDS[1:]:
            for change in changes:
                yield Spec(name, seed=seed, **SMALL, **change)
    for seed in SEEDS[1:]:
        yield Spec("sharegpt", seed=seed, beyond="history", **SMALL)


def beyond() -> Iterator[Spec]:
    """What stands beside the prompt in the records."""
    for name, kinds in (("sharegpt", ("history",)), ("alpaca_eval", ("model",))):
        for kind in ("", *kinds):
            yield Spec(name, beyond=kind, **SMALL)
    for kind in ("", "subject"):
        yield Spec("mmlupro_gpt-4o", beyond=kind, **SMALL)


def conversation() -> Iterator[Spec]:
    """What came before in the conversation, and features with a weight of their own."""
    direct = (("direct", True),)
    for seed in SEEDS:
        for before in ("", "history", "answers"):
            for network in ((), direct):
                yield Spec("sharegpt", beyond=before, network=network, seed=seed, **SMALL)
        for name in ("alpaca_davinci003", "gpteacher_code"):
            for network in ((), direct):
                yield Spec(name, network=network, seed=seed, **SMALL)


def conversation_whole() -> Iterator[Spec]:
    """The same on all training prompts."""
    direct = (("direct", True),)
    for before, network in (("", ()), ("", direct), ("answers", ()), ("answers", direct)):
        yield Spec("sharegpt", beyond=before, network=network, batch_size=64)
    for network in ((), direct):
        yield Spec("alpaca_davinci003", network=network, batch_size=64)


def amount() -> Iterator[Spec]:
    """Order against the number of prompts trained on."""
    for name in ("alpaca_davinci003", "sharegpt"):
        for num_train in (100, 300, 1_000, 3_000, 10_000, 0):
            for seed in SEEDS if 0 < num_train <= 300 else (0,):
                # Few prompts are seen more often: as many steps as a thousand prompts would give.
                epochs = max(3, 3_000 // num_train) if num_train else 3
                yield Spec(name, num_train=num_train, seed=seed, epochs=min(epochs, 10))


def across() -> Iterator[Spec]:
    """One kind of traffic or model ordered by a ranker of another; and one ranker for all."""
    names = ("alpaca_davinci003", "alpaca_vicuna7b", "sharegpt", "gpteacher_code", "mmlupro_gpt-4o")
    for name in names:
        yield Spec(name, tests=tuple(other for other in names if other != name), **SMALL)
    yield Spec("+".join(names), tests=names, num_train=20_000, max_length=128)


EXPERIMENTS = {
    it.__name__: it
    for it in (
        reading, objectives, threshold, beyond, conversation, conversation_whole, across, network,
        steps, whole, few, seeds, amount,
        encoder,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of experiments; all of them")
    parser.add_argument("--records", type=Path, help="folder of the record files")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2, for the encoder")
    parser.add_argument("--list", action="store_true", help="what there is, and what is done")
    options = parser.parse_args()
    wanted = [(name, spec) for name in options.names or EXPERIMENTS for spec in EXPERIMENTS[name]()]
    left = [(name, spec) for name, spec in wanted if (name, key(spec)) not in done()]
    print(f"{len(wanted) - len(left)} of {len(wanted)} trainings are done")
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<12} {experiment.__doc__}")
        return
    if not options.records:
        parser.error("--records is needed: the folder of the record files")
    torch.set_num_threads(1)
    for name, spec in left:
        # Another experiment, or a run beside this one, may have trained it.
        known = {trained: line for (_, trained), line in done().items()}
        measured = known.get(key(spec)) or measure(spec, options.records, options.minilm)
        line = {**measured, "experiment": name, "spec": json.loads(key(spec))}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name:<12} {key(spec)}: {line['tau_b']['value']:.4f}", flush=True)


def results() -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def done() -> dict[tuple[str, str], dict[str, Any]]:
    """What there is, by experiment and spec."""
    return {(line["experiment"], json.dumps(line["spec"])): line for line in results()}


def key(spec: Spec) -> str:
    return json.dumps(asdict(spec))


@lru_cache(maxsize=2)  # of the larger ones, a few hundred megabytes each
def data_set(name: str, folder: Path) -> DataSet:
    return load(name, folder)


def training_rows(spec: Spec, folder: Path) -> Rows:
    """The first `num_train` rows in the seed's order, of several data sets as many of each."""
    names = spec.data.split("+")
    parts = []
    for name in names:
        rows = data_set(name, folder).train
        order = np.random.default_rng(spec.seed).permutation(len(rows)).tolist()
        parts.append(rows.part(order[: spec.num_train // len(names) or None]))
    return parts[0] if len(parts) == 1 else joined(parts)


def joined(parts: list[Rows]) -> Rows:
    return Rows(
        [prompt for part in parts for prompt in part.prompts],
        np.concatenate([part.lengths for part in parts]),
        ["all"] * sum(map(len, parts)),  # on one scale: a queue may hold any of them
        [record for part in parts for record in part.records],
    )


def measure(spec: Spec, folder: Path, minilm: str | None) -> dict[str, Any]:
    """Train, and order the held-out prompts."""
    train = training_rows(spec, folder)
    names = [*(() if "+" in spec.data else (spec.data,)), *spec.tests]
    tests = [data_set(name, folder).test for name in names]
    trained = train_one(spec, train, tests, minilm)
    told = {name: order_of(*it) for name, *it in zip(names, trained.scores, tests, strict=True)}
    return {
        "num_train": len(train),
        **told.pop(names[0]),
        "tests": told,
        "train_cpu_s": round(trained.train_cpu_s, 1),
        "score_cpu_us": round(trained.score_cpu_us, 1),
    }


def order_of(scores: np.ndarray, test: Rows) -> dict[str, Any]:
    """Over pairs of one model's answers."""
    sums = pair_sums(scores, test.lengths, strata=test.models)
    filtered = pair_sums(scores, test.lengths, strata=test.models, threshold=0.2)
    return {
        "num_test": len(test),
        "tau_b": bootstrap(sums, "tau_b", clusters=test.prompts).as_json(),
        "filtered_accuracy": round(filtered.accuracy(), 4),
    }


if __name__ == "__main__":
    main()
