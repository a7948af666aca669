"""
Make the bundled ranker: permitted records, prepare, train, evaluate, model card.

    python experiments/bundled_ranker.py --records FOLDER        # rewrites src/pars/bundled_ranker/
    python experiments/bundled_ranker.py --records FOLDER --card # only measures it again

FOLDER holds the record files named below, as *.jsonl.gz; they are not part of the project. Only
sources under MIT, Apache-2.0 or CC0, without a non-commercial upstream, are read.
"""

import argparse
import gzip
import json
import math
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src/pars/bundled_ranker"
WORK = ROOT / "build/bundled_ranker"

# File, where it comes from, its licence. HaluEval (MIT) is left out: two thirds of its prompts are
# Stanford Alpaca's, which are CC BY-NC.
SOURCES = {
    "instruction_gpteacher_roleplay": ("teknium1/GPTeacher", "MIT"),
    "code_gpteacher_gpt4": ("teknium1/GPTeacher", "MIT"),
    "chat_arena_bench": ("lmarena/arena-hard-auto", "Apache-2.0"),
    "chat_mtbench": ("lm-sys/RouteLLM (MT-Bench)", "Apache-2.0"),
    "math_routellm_gsm8k": ("lm-sys/RouteLLM (GSM8K)", "Apache-2.0"),
    "math_zeroeval": ("WildEval/ZeroEval", "Apache-2.0"),
    "code_crux_zeroeval": ("WildEval/ZeroEval", "Apache-2.0"),
    "reasoning_mmlupro": ("TIGER-AI-Lab/MMLU-Pro", "Apache-2.0"),
    "reasoning_misguided": ("cpldcpu/MisguidedAttention", "CC0-1.0"),
    "reasoning_skythought": ("NovaSky-AI/SkyThought", "Apache-2.0"),
}
# Traffic of kinds that it never saw, on which it is measured and not trained.
OTHER_TRAFFIC = ("instruction_alpaca_davinci003", "instruction_alpaca_eval", "chat_sharegpt")


def main() -> None:
    """All steps, each by the command a user would run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--records", type=Path, required=True, help="folder of the record files")
    parser.add_argument("--card", action="store_true", help="measure the ranker that is there")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    counts = write_records(options.records, WORK / "records.jsonl")
    if not options.card:
        make(WORK / "records.jsonl")
    for name in OTHER_TRAFFIC:
        data = ["--data", options.records / f"{name}.jsonl.gz"]
        pars("evaluate", "--ranker", BUNDLED, *data, "--output-dir", WORK / name)
    (BUNDLED / "MODEL_CARD.md").write_text(card(counts), encoding="utf-8")


def make(records: Path) -> None:
    """Prepare, train, evaluate, and put the ranker into the package."""
    prepare = ["prepare", "records", "--input", records, "--output-dir", WORK / "data"]
    pars(*prepare, "--length-field", "answer_tokens")
    data = [
        "--train-data",
        WORK / "data/train_data.json",
        "--val-data",
        WORK / "data/val_data.json",
    ]
    pars("train", "--model", "lite", *data, "--output-dir", WORK / "run")
    ranker = WORK / "run/ranker"
    held_out = [
        "--data",
        WORK / "data/val_data.json",
        "--train-data",
        WORK / "data/train_data.json",
    ]
    pars("evaluate", "--ranker", ranker, *held_out, "--output-dir", WORK / "evaluation")
    shutil.rmtree(BUNDLED, ignore_errors=True)
    shutil.copytree(ranker, BUNDLED)
    forget_paths(BUNDLED / "ranker.json")


def write_records(folder: Path, path: Path) -> dict[str, int]:
    """One record a prompt: the geometric mean of its answers' tokens over models and samples."""
    counts = {}
    with path.open("w", encoding="utf-8") as file:
        for name in SOURCES:
            answers = defaultdict(list)
            with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as rows:
                for row in map(json.loads, rows):
                    answers[row["prompt"], row["category"]].append(row["response_tokens"])
            counts[name] = len(answers)
            for (prompt, category), tokens in answers.items():
                mean = math.exp(fmean(math.log(max(count, 1)) for count in tokens))
                record = {"prompt": prompt, "answer_tokens": round(mean), "category": category}
                file.write(json.dumps(record) + "\n")
    return counts


def pars(*arguments: object) -> None:
    """Run the command line of this checkout."""
    subprocess.run([sys.executable, "-m", "pars", *map(str, arguments)], check=True)


def forget_paths(path: Path) -> None:
    """This machine's paths mean nothing to whoever installs the package."""
    info = json.loads(path.read_text())
    info["trained_on"]["train"] = "permissively licensed records, see MODEL_CARD.md"
    path.write_text(json.dumps(info, indent=1) + "\n")


def card(counts: dict[str, int]) -> str:
    """The model card, with the numbers of this very run."""
    told = json.loads((WORK / "evaluation/evaluation.json").read_text())
    metrics = json.loads((WORK / "run/metrics.json").read_text())
    size_mb = sum(file.stat().st_size for file in BUNDLED.iterdir()) / 1e6

    def row(name: str, orders: dict) -> str:
        cells = []
        for predictor in ("ranker", "TF-IDF + ridge", "prompt length"):
            tau_b = orders[predictor]["tau_b"]
            cells.append(f"{tau_b['value']:.3f} [{tau_b['low']:.3f}, {tau_b['high']:.3f}]")
        return f"| {name} | {orders['ranker']['num_rows']:,} | {' | '.join(cells)} |"

    sources = [
        f"| {name} | {origin} | {licence} | {counts[name]:,} |"
        for name, (origin, licence) in SOURCES.items()
    ]
    scores = [row("all", told["overall"])]
    scores += [row(category, orders) for category, orders in told["by_category"].items()]
    others = []
    for name in OTHER_TRAFFIC:
        orders = json.loads((WORK / name / "evaluation.json").read_text())["overall"]
        others.append(row(name, orders))
    return CARD.format(
        size_mb=size_mb,
        sources="\n".join(sources),
        num_prompts=sum(counts.values()),
        scores="\n".join(scores),
        others="\n".join(others),
        max_length=metrics["max_length"],
    )


CARD = """# The bundled ranker

A `lite` ranker ({size_mb:.1f} MB): it reads the words of a prompt and says which of two prompts
will have the longer answer. Apache-2.0, like the package.

**Use it to try `pars`, not to run it.** What orders your traffic is a ranker trained on your
traffic: `pars prepare records`, `pars train --model lite` take a minute.

## Data

{num_prompts:,} prompts, from sources under MIT, Apache-2.0 and CC0 only. A prompt's label is the
geometric mean of its answers' tokens over all models and samples in the source. Nine tenths
trained, one tenth (other prompts) is held out. No prompt text is in the package but the words of
the vocabulary (words that stand in at least two places). English words began with vectors made from
all-MiniLM-L6-v2's input embeddings (Apache-2.0), which come with the package.

| file | source | licence | prompts |
|---|---|---|--:|
{sources}

## Order on held-out prompts

Kendall tau-b over all pairs, 95% interval.

| category | prompts | this ranker | TF-IDF + ridge | prompt length |
|---|--:|--:|--:|--:|
{scores}

## Order on traffic of other kinds

Data sets that it was not trained on, whole. TF-IDF + ridge is fitted on the other fifths
of each: what a little training on one's own traffic gives.

| data set | answers | this ranker | TF-IDF + ridge, own traffic | prompt length |
|---|--:|--:|--:|--:|
{others}

## Where it is weak

- General chat and instructions: some two thousand prompts, most of them role play and answered by
  one model. Expect far less there than the table's first row, whose pairs often stand in different
  categories.
- It reads English words. Prompts in other languages and scripts are mostly unknown words to it.
- It reads {max_length} words, of a longer prompt the first three quarters of them and the last one,
  and no conversation before them.
- Models that think before they answer: their lengths are averaged with those of models that do not.
- Prompts longer than a few hundred words: almost none were in the data.

## How it was made

`python experiments/bundled_ranker.py --records FOLDER`, which runs `pars prepare records`, then

    pars train --model lite --train-data data/train_data.json --val-data data/val_data.json \\
        --output-dir run

and `pars evaluate`.
"""


if __name__ == "__main__":
    main()
