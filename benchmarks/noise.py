"""
The noise ceiling of every data set with repeated answers, and how near rankers come.

    python benchmarks/noise.py --work-dir build/noise [--keep]

`pars noise` on each set as a user would run it. Where there are prompts enough, a lite ranker is
trained on four fifths of them and evaluated on the rest, whose repeated answers tell the ceiling
there; elsewhere stand TF-IDF with ridge regression in five folds, and the bundled ranker, which
has seen neither the prompts nor the models. The last line of stdout is one JSON document.
PARS_SHARED names the folder with data/*.jsonl.gz (default ../shared); they are not part of the
project, and without them there is nothing to run.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))

# Name: the records, which rows, and whether there are prompts enough to train on.
DATA_SETS = {
    "vicuna-7b on Alpaca, four temperatures": ("instruction_alpaca_vicuna7b_train", [], True),
    "GPT-4 on arena prompts, two runs": (
        "chat_arena_bench",
        ["gpt-4-0314", "gpt-4 (reference_answer)"],
        False,
    ),
    "24 models on trick questions": ("reasoning_misguided", [], False),
    "of these, those that think": (
        "reasoning_misguided",
        ["deepseek-r1-0528", "QwQ-32b", "claude-3.7-thinking-4k", "gemini-2.5-pro-high",
         "qwen3-235b-a22b-think", "qwen3-30b-a3b-think", "glm-z1-32b", "grok-3-mini-think"],
        False,
    ),
    "and those that do not": (
        "reasoning_misguided",
        ["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o-2024-11-20", "DeepSeek-V3",
         "deepseek-chat-v3-0324", "llama-3.3-70b-instruct", "qwen3-30b-a3b-nothink"],
        False,
    ),
}  # fmt: skip
SAME_MODEL = {"gpt-4 (reference_answer)": "gpt-4-0314"}  # GPT-4, asked a second time
ROWS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def main() -> None:
    """Measure, print, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--work-dir", type=Path, default=Path("build/noise"))
    parser.add_argument("--keep", action="store_true", help="what an interrupted run has done")
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    if not options.keep:
        shutil.rmtree(options.work_dir, ignore_errors=True)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    results = {}
    for number, (name, (file, models, is_large)) in enumerate(DATA_SETS.items()):
        folder = options.work_dir / str(number)
        records = chosen(file, models, folder)
        pars("noise", "--data", records, "--output-dir", folder)
        results[name] = json.loads((folder / "noise.json").read_text())
        results[name]["rankers"] = lite(records, folder) if is_large else untrained(records, folder)
    print_ceilings(results)
    print_pairs(results)
    for result in results.values():
        del result["data"]  # where it lay on this machine
    print(json.dumps(results))


def chosen(file: str, models: list[str], folder: Path) -> Path:
    """The rows of some models, those of one model under one name."""
    folder.mkdir(exist_ok=True)
    path = folder / "records.jsonl"
    with gzip.open(SHARED / f"data/{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            if not models or row["model"] in models:
                row["model"] = SAME_MODEL.get(row["model"], row["model"])
                out.write(json.dumps(row) + "\n")
    return path


def lite(records: Path, folder: Path) -> dict:
    """Tau-b of a lite ranker and of TF-IDF, and the ceiling, on the same held-out prompts."""
    data, run = folder / "data", folder / "lite"
    if not (data / "val_data.json").is_file():
        fields = ["--length-field", "response_tokens", "--test-size", "0.2"]
        pars("prepare", "records", "--input", records, *fields, "--output-dir", data)
    train, val = data / "train_data.json", data / "val_data.json"
    if not (run / "ranker/ranker.json").is_file():
        files = ["--train-data", train, "--val-data", val]
        pars("train", "--model", "lite", *files, "--output-dir", run)
    if not (run / "evaluation.json").is_file():
        told = ["--ranker", run / "ranker", "--data", val, "--train-data", train]
        pars("evaluate", *told, "--output-dir", run)
    return beside_ceiling(run / "evaluation.json", "lite")


def untrained(records: Path, folder: Path) -> dict:
    """The same of the bundled ranker."""
    pars("evaluate", "--data", records, "--output-dir", folder)
    return beside_ceiling(folder / "evaluation.json", "the bundled ranker")


def beside_ceiling(evaluation: Path, name: str) -> dict:
    """The rankers' tau-b in an evaluation, and the ceiling on the same prompts."""
    told = json.loads(evaluation.read_text())
    found = {name: "ranker", "TF-IDF + ridge": "TF-IDF + ridge"}
    return {
        "tau_b": {shown: told["overall"][key]["tau_b"] for shown, key in found.items()},
        "ceiling": told["ceiling"],
        "num_prompts": told["num_prompts"],
    }


def pars(*arguments: object) -> None:
    """Run the command line of this checkout; its report goes to stderr."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def print_ceilings(results: dict) -> None:
    """A line a data set, as Markdown."""
    print(
        "Kendall tau-b with one answer; sigma is the standard deviation of log length, of answers"
    )
    print("to one prompt\n")
    print("| data | prompts | another answer | mean of the others (expected) | ceiling | sigma |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, it in results.items():
        mean, expected = it["others_mean"]["value"], it["others_mean_expected"]
        print(
            f"| {name} | {it['num_prompts']:,} | {interval(it['two_answers'])}"
            f" | {mean:.3f} ({expected:.3f}) | {interval(it['ceiling'])}"
            f" | {it['within_sigma']:.2f} |"
        )
    print("\nOf the ceiling on the prompts that they are measured on, rankers reach\n")
    for name, it in results.items():
        found = it["rankers"]
        reached = [
            f"{ranker} {tau['value']:.3f} ({tau['value'] / found['ceiling']['value']:.0%})"
            for ranker, tau in found["tau_b"].items()
        ]
        print(f"- {name}, {found['num_prompts']:,} prompts: {', '.join(reached)}")


def print_pairs(results: dict) -> None:
    """How sure a pair's order is by its difference, and the thresholds."""
    print("\nWhen two lengths differ by so much, how often the order is the same when asked again,")
    print("in brackets the share of all pairs that differ so much or more; from where it is sure\n")
    print("| data |" + "".join(f" {least:.0%} |" for least in ROWS) + " 75% sure | 90% sure |")
    print(f"|---|{'--:|' * (len(ROWS) + 2)}")
    for name, it in results.items():
        by_least = {row["least"]: row for row in it["differences"]}
        cells = [
            f"{by_least[least]['right_here']:.0%} ({by_least[least]['share']:.0%})"
            for least in ROWS
        ]
        cells += [
            f"{row['least']:.2f} ({row['share']:.0%})" if row else "-"
            for row in it["thresholds"].values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def interval(estimate: dict) -> str:
    """A value and its interval."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


if __name__ == "__main__":
    main()
