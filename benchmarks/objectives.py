"""
Pairwise, pointwise or listwise: the same ranker by each objective, judged on the same prompts.

    python benchmarks/objectives.py                 # lite on three sets, a quarter of an hour
    python benchmarks/objectives.py --minilm FOLDER --data-sets gpteacher_code

Data, network, steps and learning rate are equal; what the loss asks for differs. `--seeds`
trainings draw other training prompts and other weights; the prompts held out are always the same (a
checksum of the prompt chooses them). The difference of two objectives' mean tau-b has a 95%
interval from a bootstrap in which every resample draws the same prompts for all trainings: it says
how sure the difference of these trainings is, and the seeds beside it how much another draw moves
one. Pairwise is PARS's margin loss with its filter of 0.2, and RankNet's. The last line of stdout
is one JSON document.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from data import Rows, load

from pars.learn.training.config import LITE_DEFAULTS, OBJECTIVES, SMALL_DEFAULTS, TrainConfig
from pars.learn.training.train import train
from pars.ranking.intervals import bootstrap_difference
from pars.ranking.order_metrics import PairSums, pair_sums
from pars.ranking.ranker import Ranker

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
DATA_SETS = ("gpteacher_code", "alpaca_davinci003", "sharegpt")
NUM_VALIDATION = 400  # prompts of the training part that choose the epoch
MOST_TEST = 4_000
CHANGES = {"pairwise-margin": {"threshold": 0.2}}


def main() -> None:
    """Train, compare, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data-sets", nargs="*", default=list(DATA_SETS))
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-train", type=int, default=4_000)
    parser.add_argument("--num-epochs", type=int, default=3)
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2: train it in lite's place")
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    torch.set_num_threads(1)
    result = {
        "network": "MiniLM" if options.minilm else "lite",
        "num_train": options.num_train,
        "num_epochs": options.num_epochs,
        "seeds": options.seeds,
        "data_sets": {name: measure(name, options) for name in options.data_sets},
    }
    print_tables(result)
    if options.json_out:
        options.json_out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def measure(name: str, options: argparse.Namespace) -> dict:
    """Every objective on one data set, each against every other."""
    data = load(name, SHARED / "data")
    test = data.test.part(range(min(MOST_TEST, len(data.test))))
    sums: dict[str, list[PairSums]] = {it: [] for it in options.objectives}
    seconds = dict.fromkeys(options.objectives, 0.0)
    for seed in range(options.seeds):
        order = np.random.default_rng(seed).permutation(len(data.train)).tolist()
        rows = data.train.part(order[: options.num_train + NUM_VALIDATION])
        for objective in options.objectives:
            started = time.process_time()
            scores = trained_scores(rows, test, objective, seed, options)
            seconds[objective] += time.process_time() - started
            sums[objective].append(pair_sums(scores, test.lengths, strata=test.models))
            told = f"{name}, seed {seed}, {objective}: {sums[objective][-1].tau_b():.4f}"
            print(told, file=sys.stderr, flush=True)
    return {
        "num_train": min(options.num_train, len(data.train) - NUM_VALIDATION),
        "num_test": len(test),
        "objectives": {
            objective: {
                "tau_b": round(fmean(one.tau_b() for one in it), 4),
                "by_seed": [round(one.tau_b(), 4) for one in it],
                "cpu_s": round(seconds[objective] / options.seeds, 1),
            }
            for objective, it in sums.items()
        },
        "differences": {
            f"{one} - {other}": bootstrap_difference(
                sums[one], sums[other], "tau_b", clusters=test.prompts
            ).as_json()
            for one in sums
            for other in sums
            if one.startswith("pairwise") and one != other
        },
    }


def trained_scores(
    rows: Rows, test: Rows, objective: str, seed: int, options: argparse.Namespace
) -> np.ndarray:
    """Scores [num_test] of a ranker trained by the objective."""
    defaults = SMALL_DEFAULTS | {"model_name": options.minilm, "max_length": 64, "batch_size": 32}
    settings = {"model": "encoder", **defaults} if options.minilm else {"model": "lite"}
    if not options.minilm:
        settings |= LITE_DEFAULTS
    settings |= {"objective": objective, "num_epochs": options.num_epochs, "seed": seed}
    settings |= CHANGES.get(objective, {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut = len(rows) - min(NUM_VALIDATION, len(rows) // 10)
        for part, places in (("train", range(cut)), ("val", range(cut, len(rows)))):
            made = [
                {"prompt": rows.prompts[i], "answer_length": float(rows.lengths[i])} for i in places
            ]
            (folder / f"{part}_data.json").write_text(json.dumps(made))
        files = {f"{part}_data": folder / f"{part}_data.json" for part in ("train", "val")}
        train(TrainConfig(output_dir=folder / "run", **files, **settings))
        return Ranker.load(folder / "run/ranker", precision="float32").score(test.prompts)


def print_tables(result: dict) -> None:
    """Tau-b by objective, then what pairwise has more than each other."""
    sets = result["data_sets"]
    network, seeds = result["network"], result["seeds"]
    print(f"{network}: mean Kendall tau-b of {seeds} trainings (least to most), held-out prompts\n")
    heads = [f"{name} ({it['num_train']:,}; {it['num_test']:,})" for name, it in sets.items()]
    print(f"| objective | {' | '.join(heads)} | CPU s |\n|---|{'--:|' * (len(heads) + 1)}")
    for objective in next(iter(sets.values()))["objectives"]:
        told = [it["objectives"][objective] for it in sets.values()]
        cells = [f"{it['tau_b']:.3f} ({spread(it['by_seed'])})" for it in told]
        cost = sum(it["cpu_s"] for it in told) / len(told)
        print(f"| {objective} | {' | '.join(cells)} | {cost:.0f} |")
    print("\ndifferences of tau-b, 95% intervals; * where 0 is outside\n")
    print(f"| | {' | '.join(sets)} |\n|---|{'--:|' * len(sets)}")
    for pair in next(iter(sets.values()))["differences"]:
        cells = [shown(it["differences"][pair]) for it in sets.values()]
        print(f"| {pair.replace(' - ', ' over ')} | {' | '.join(cells)} |")


def shown(it: dict) -> str:
    """A difference, its interval, and a star where 0 is outside."""
    mark = " *" if it["low"] > 0 or it["high"] < 0 else ""
    return f"{it['value']:+.3f} [{it['low']:+.3f}, {it['high']:+.3f}]{mark}"


def spread(values: list[float]) -> str:
    """The least and the largest."""
    return f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()
