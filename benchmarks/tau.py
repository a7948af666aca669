"""
How well rankers order held-out prompts: lite, MiniLM, TF-IDF + ridge, prompt length, side by side.

    python benchmarks/tau.py --work-dir build/tau --minilm path/to/all-MiniLM-L6-v2

Each data set is prepared, trained on and evaluated by the commands a user would run, on the same
split by prompt; --keep goes on after an interruption. The last line of stdout is one JSON document
with the whole table. PARS_SHARED names the folder with data/*.jsonl.gz (default ../shared); they
are not part of the project, and without them there is nothing to run.
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

# Name: the records, which rows, and options for MiniLM.
DATA_SETS = {
    "alpaca_davinci003": ("instruction_alpaca_davinci003", [], ["--max-length", "64"]),
    "sharegpt": ("chat_sharegpt", [], []),
    "sharegpt, conversation known": ("chat_sharegpt", [], []),
    "gpteacher code": ("code_gpteacher_gpt4", [], []),
    "mmlupro gpt-4o": ("reasoning_mmlupro", ["--where", "model=gpt-4o"], []),
}
RANKERS = ("lite", "MiniLM")


def main() -> None:
    """Prepare, train, evaluate; then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--work-dir", type=Path, default=Path("build/tau"))
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2; without it, lite only")
    parser.add_argument("--data-sets", nargs="*", default=list(DATA_SETS), choices=list(DATA_SETS))
    parser.add_argument("--keep", action="store_true", help="what an interrupted run has done")
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    if not options.keep:
        shutil.rmtree(options.work_dir, ignore_errors=True)
    results = {
        name: measure(name, options.work_dir / name.replace(" ", "_").replace(",", ""), options)
        for name in options.data_sets
    }
    print_table(results)
    if options.json_out:
        options.json_out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """All rankers on one data set."""
    file, where, minilm_options = DATA_SETS[name]
    data = folder / "data"
    if not (data / "val_data.json").is_file():
        records = SHARED / f"data/{file}.jsonl.gz"
        if name.endswith("conversation known"):
            records = with_answers_before(records, folder / "records.jsonl")
        source = ["--input", records, "--length-field", "response_tokens"]
        pars("prepare", "records", *source, *where, "--output-dir", data)
    result = {}
    ways = {"lite": ["--model", "lite"]}
    if options.minilm:
        ways["MiniLM"] = ["--preset", "small", "--model-name", options.minilm, *minilm_options]
    for ranker, way in ways.items():
        run = folder / ranker
        train_data = data / "train_data.json"
        files = ["--train-data", train_data, "--val-data", data / "val_data.json"]
        if not (run / "ranker/ranker.json").is_file():
            pars("train", *files, *way, "--output-dir", run)
        if not (run / "evaluation.json").is_file():
            evaluate = ["evaluate", "--ranker", run / "ranker", "--data", data / "val_data.json"]
            pars(*evaluate, "--train-data", train_data, "--output-dir", run)
        told = json.loads((run / "evaluation.json").read_text())
        metrics = json.loads((run / "metrics.json").read_text())
        result[ranker] = {
            **told["overall"]["ranker"],
            "train_s": metrics["seconds"],
            "num_train_prompts": len(json.loads(train_data.read_text())),
        }
        for baseline in ("TF-IDF + ridge", "prompt length"):
            result[baseline] = told["overall"][baseline]
    return result


def with_answers_before(records: Path, noted: Path) -> Path:
    """
    The records of conversations with what a server sees of each: how long the answers so far were.

    An id is the conversation's, a hyphen and the message's place in it.
    """
    answers: dict[str, list[int]] = {}
    noted.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(records, "rt", encoding="utf-8") as rows, noted.open("w") as file:
        for row in map(json.loads, rows):
            before = answers.setdefault(row["id"].rpartition("-")[0], [])
            file.write(json.dumps({**row, "answers_before": before}) + "\n")
            before.append(row["response_chars"])
    return noted


def pars(*arguments: object) -> None:
    """Run the command line of this checkout; its report goes to stderr."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def print_table(results: dict) -> None:
    """Kendall tau-b over all pairs, and accuracy over pairs at least 0.2 apart, as Markdown."""
    names = ("lite", "MiniLM", "TF-IDF + ridge", "prompt length")
    for metric, title in (
        ("tau_b", "Kendall tau-b, all pairs"),
        ("filtered_accuracy", "pairwise accuracy, pairs >= 0.2 apart"),
    ):
        print(
            f"\n{title}\n\n| held-out prompts | {' | '.join(names)} |\n|---|{'--:|' * len(names)}"
        )
        for data_set, result in results.items():
            num_rows = result["lite"]["num_rows"]
            cells = [cell(result.get(name), metric) for name in names]
            print(f"| {data_set} ({num_rows:,}) | {' | '.join(cells)} |")
    print("\ntraining\n")
    for data_set, result in results.items():
        trained = {ranker: result[ranker] for ranker in RANKERS if ranker in result}
        ways = [
            f"{ranker} {order['num_train_prompts']:,} prompts in {order['train_s']:.0f} s"
            for ranker, order in trained.items()
        ]
        print(f"- {data_set}: {', '.join(ways)}")


def cell(order: dict | None, metric: str) -> str:
    """A value and its interval."""
    if order is None:
        return "-"
    e = order[metric]
    return f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


if __name__ == "__main__":
    main()
