"""
What repeated answers are worth as labels: k answers to N / k prompts against one to N prompts.

    python experiments/repeats.py --records FOLDER

Lite rankers on Vicuna-7B's answers to Alpaca prompts, four of each. A prompt's label is the
geometric mean of k of its answers. Tau-b is the mean over three seeds, and over the four single
answers to each held-out prompt. Fewer prompts are fewer steps of a training with as many epochs, so
the smaller sets are trained with as many steps, too. FOLDER holds the record files that
`data.SOURCES` names. The last line of stdout is one JSON document.
"""

import argparse
import gzip
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from data import SOURCES, Rows, in_test
from train_one import Spec, train_one

from pars.ranking.order_metrics import pair_sums

NAME = "alpaca_vicuna7b"
NUM_ANSWERS = 4
GENERATIONS = (1_000, 2_000, 4_000, 8_000)
SEEDS = (0, 1, 2)
SPEC = Spec(NAME)


def main() -> None:
    """Train, print, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--records", type=Path, required=True, help="folder of the record files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = answers(options.records)
    lines = []
    for num_generations in GENERATIONS:
        for repeats in (1, 2, 4):
            for epochs in sorted({SPEC.epochs, SPEC.epochs * repeats}):
                lines.append(measure(train, test, num_generations // repeats, repeats, epochs))
    for repeats in (2, 4):  # as many prompts as with one answer each: what the noise itself costs
        lines.append(measure(train, test, GENERATIONS[-1], repeats, SPEC.epochs))
    print_table(lines)
    print(json.dumps(lines))


def answers(folder: Path) -> tuple[tuple[Rows, np.ndarray], tuple[Rows, np.ndarray]]:
    """Prompts, one row each, and the lengths of their answers, [num_prompts, NUM_ANSWERS]."""
    with gzip.open(folder / f"{SOURCES[NAME].file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    rows = Rows(
        [record["prompt"] for record in records],
        np.array([max(1, record["response_tokens"]) for record in records], dtype=np.float64),
        [record["model"] for record in records],
        records,
    )
    of_prompt = defaultdict(list)
    for row, prompt in enumerate(rows.prompts):
        of_prompt[prompt].append(row)
    whole = [found for found in of_prompt.values() if len(found) == NUM_ANSWERS]
    parts = []
    for is_test in (False, True):
        chosen = [found for found in whole if in_test(rows.prompts[found[0]]) == is_test]
        firsts = rows.part(found[0] for found in chosen)
        parts.append((firsts, rows.lengths[np.array(chosen)]))
    return parts[0], parts[1]


def measure(
    train: tuple[Rows, np.ndarray],
    test: tuple[Rows, np.ndarray],
    num_prompts: int,
    repeats: int,
    epochs: int,
) -> dict:
    """Tau-b of rankers trained on so many prompts with so many answers each."""
    taus = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(train[0]))[:num_prompts]
        lengths = rng.permuted(train[1][chosen], axis=1)[:, :repeats]
        rows = replace(train[0].part(chosen.tolist()), lengths=np.exp(np.log(lengths).mean(axis=1)))
        spec = replace(SPEC, seed=seed, epochs=epochs)
        scores = train_one(spec, rows, [test[0]], None).scores[0]
        taus.append(fmean(pair_sums(scores, of).tau_b() for of in test[1].T))
    line = {
        "num_generations": num_prompts * repeats,
        "num_prompts": num_prompts,
        "repeats": repeats,
        "epochs": epochs,
        "tau_b": round(fmean(taus), 4),
        "stdev": round(stdev(taus), 4),
    }
    print(json.dumps(line), flush=True, file=sys.stderr)
    return line


def print_table(lines: list[dict]) -> None:
    print("lite on Vicuna-7B's answers to Alpaca prompts; a label is the mean of so many answers\n")
    print(
        f"{'generations':>11}{'prompts':>9}{'answers each':>14}{'epochs':>8}{'tau-b':>8}{'sd':>8}"
    )
    for line in lines:
        print(
            f"{line['num_generations']:>11,}{line['num_prompts']:>9,}{line['repeats']:>14}"
            f"{line['epochs']:>8}{line['tau_b']:>8.3f}{line['stdev']:>8.4f}"
        )


if __name__ == "__main__":
    main()
