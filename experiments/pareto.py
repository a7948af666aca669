"""
Measures what each network of the experiments costs, and draws order against it.

    python experiments/pareto.py --records FOLDER [--minilm FOLDER]

Writes docs/pareto.png and experiments/pareto.json: Kendall tau-b from results.jsonl, and prompts
read and scored a second, in torch on one core in batches of 32 (CPU time, the best of some passes,
so that what else runs shows little). The cost does not depend on weights, so none are trained.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from data import Rows
from matplotlib import pyplot as plt
from run import RESULTS, data_set, results
from train_one import BEYOND, Encoder, LiteInputs, score

from pars.learn.training.models import load_encoder

ROOT = Path(__file__).parents[1]
DATA_SETS = ("alpaca_davinci003", "gpteacher_code")
NUM_PROMPTS, NUM_PASSES = 400, 3
SHAPES = {"width", "windows", "is_wide", "is_deep", "trigrams"}  # options that change the cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--records", type=Path, required=True, help="folder of the record files")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = []
    for data in DATA_SETS:
        sets = data_set(data, options.records)
        for label, line in networks(data).items():
            scoring = scorer(line["spec"], sets.train, options.minilm)
            if scoring:
                rate = prompts_per_s(scoring, sets.test.part(range(NUM_PROMPTS)))
                tau_b = line["tau_b"]["value"]
                point = {"data": data, "network": label, "tau_b": tau_b}
                points.append({**point, "prompts_per_s": round(rate)})
                print(f"{data:<20} {label:<20} {tau_b:.3f} {rate:10,.0f} prompts/s", flush=True)
    RESULTS.with_name("pareto.json").write_text(json.dumps(points, indent=1) + "\n")
    draw(points)


def networks(data: str) -> dict[str, dict]:
    """What was trained on the data set as everything else was, by what makes it different."""
    found = {}
    for line in results():
        spec = line["spec"]
        own = line["experiment"] in ("network", "encoder") or is_usual(line)
        if spec["data"] == data and own and {name for name, _ in spec["network"]} <= SHAPES:
            found[label_of(spec)] = line
    return found


def is_usual(line: dict) -> bool:
    return line["experiment"] == "reading" and not line["spec"]["reading"]


def label_of(spec: dict) -> str:
    if spec["model"] == "minilm":
        return "MiniLM"
    told = []
    for name, value in spec["network"]:
        name = name.removeprefix("is_")
        told.append(
            f"no {name}" if value is False else name if value is True else f"{name} {value}"
        )
    return ", ".join(told) or "lite"


def scorer(spec: dict, train: Rows, minilm: str | None) -> Callable[[Rows], object] | None:
    """Reads and scores rows with an untrained network of this shape."""
    wanted = type("First", (), {"score": staticmethod(lambda outputs: outputs[:, 0])})
    if spec["model"] == "minilm":
        if not minilm:
            return None
        model = load_encoder(minilm, spec["max_length"])
        cpu = torch.device("cpu")
        return lambda rows: score(
            Encoder(model.network), model.encode(rows.prompts),
            lambda part: tuple(model.collate(part, cpu).values()), len, wanted,
        )  # fmt: skip
    prompts = train.prompts[: spec["num_train"]]
    inputs = LiteInputs(prompts, spec["max_length"], BEYOND[""])
    num_features = len(inputs.encode(train.part([0]))[0][1])
    network = inputs.network(1, dict(spec["network"]), num_features)
    return lambda rows: score(
        network, inputs.encode(rows), inputs.collate, lambda row: len(row[0]), wanted
    )


def prompts_per_s(scoring: Callable[[Rows], object], rows: Rows) -> float:
    best = float("inf")
    for _ in range(NUM_PASSES):
        started = time.process_time()
        scoring(rows)
        best = min(best, time.process_time() - started)
    return len(rows) / best


def draw(points: list[dict]) -> None:
    figure, axes = plt.subplots(1, len(DATA_SETS), figsize=(5 * len(DATA_SETS), 3.6))
    for axis, data in zip(axes, DATA_SETS, strict=True):
        for point in points:
            if point["data"] == data:
                place = point["prompts_per_s"], point["tau_b"]
                is_kept = point["network"] in ("lite", "MiniLM")
                axis.plot(*place, "o", color="C1" if is_kept else "C0")
                axis.annotate(point["network"], place, (3, 4), textcoords="offset points", size=7)
        axis.set(xscale="log", title=data, xlabel="prompts a second on one core")
        axis.set_ylabel("Kendall tau-b, held out")
        axis.margins(x=0.25, y=0.12)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/pareto.png", dpi=80)


if __name__ == "__main__":
    main()
