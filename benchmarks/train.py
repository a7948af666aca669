"""
Two ways into training, same model, data and seed: pairs from a file, or all pairs of a batch.

    python benchmarks/train.py --model-name path/to/all-MiniLM-L6-v2

The pair-file way is PARS's: 10 pairs a prompt, batches of 128 pairs, three epochs, margin loss, at
its learning rate and, since that is a large encoder's, at a higher one; the better of the two
counts. The other way encodes each prompt of a batch once and learns from every pair in it. Both are
`pars train` on the files of one `pars prepare`; after each epoch both are validated on the same
prompts. Printed: tau-b against encodings and training seconds, and when the second way first
reaches the first one's final tau-b. The last line of stdout is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
DATA = SHARED / "data/instruction_alpaca_davinci003.jsonl.gz"


def main() -> None:
    """Prepare once, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model-name", required=True, help="folder or Hub name of an encoder")
    parser.add_argument("--data", type=Path, default=DATA, help="records to learn from")
    parser.add_argument("--num-prompts", type=int, default=1600, help="a quarter is held out")
    parser.add_argument("--num-lite-prompts", type=int, default=8000)
    parser.add_argument("--pair-epochs", type=int, default=3)
    parser.add_argument("--length-epochs", type=int, default=2)
    parser.add_argument("--pair-learning-rates", nargs="+", default=["2e-5", "1e-4"])
    parser.add_argument("--length-learning-rate", default="1e-4")
    parser.add_argument("--length-batch-size", type=int, default=16)
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    if not options.data.is_file():
        sys.exit(f"{options.data} is not there: give --data, records with prompts and lengths")
    with tempfile.TemporaryDirectory() as folder:
        result = {"encoder": compare(options, Path(folder) / "encoder")}
        result["lite"] = compare(options, Path(folder) / "lite", is_lite=True)
    if options.json_out:
        options.json_out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def compare(options: argparse.Namespace, folder: Path, *, is_lite: bool = False) -> dict:
    """Both trainings' histories, and the ratio."""
    records = folder / "records.jsonl"
    folder.mkdir()
    write_part(options.data, records, options.num_lite_prompts if is_lite else options.num_prompts)
    source = ["--input", records, "--length-field", "response_tokens", "--test-size", "0.25"]
    pars("prepare", "records", *source, "--output-dir", folder)
    pairs = [folder / f"{part}_pairs_length_diff_0.2.json" for part in ("train", "val")]
    data = [folder / f"{part}_data.json" for part in ("train", "val")]
    pair_way = ["--train-file", pairs[0], "--val-file", pairs[1], "--val-data", data[1]]
    length_way = ["--train-data", data[0], "--val-data", data[1]]
    if is_lite:  # with the defaults of `pars train --model lite`, three epochs
        common: list[object] = ["--model", "lite"]
        rates = ["3e-3"]
        print(f"\nlite, {options.num_lite_prompts:,} prompts")
    else:
        common = ["--model-name", options.model_name, "--max-length", 64]
        rates = options.pair_learning_rates
        pair_way += ["--num-epochs", options.pair_epochs]
        length_way += ["--num-epochs", options.length_epochs, "--objective", "pairwise-logistic"]
        length_way += ["--threshold", 0, "--label-temperature", 0.5]  # as --preset small
        length_way += ["--batch-size", options.length_batch_size]
        length_way += ["--learning-rate", options.length_learning_rate]
        print(f"{Path(options.model_name).parent.name}, {options.num_prompts:,} prompts")
    ways = {
        f"pair file, {rate}": train(
            folder / f"pairs_{rate}", [*pair_way, "--learning-rate", rate], common
        )
        for rate in rates
    }
    by_pairs = max(ways.values(), key=lambda history: history[-1]["tau_b"])
    by_lengths = train(folder / "lengths", length_way, common)
    ways["all pairs"] = by_lengths
    goal = by_pairs[-1]["tau_b"]
    reached = next((entry for entry in by_lengths if entry["tau_b"] >= goal), None)
    print(f"{'way in':<18}{'epoch':>6}{'encodings':>11}{'seconds':>9}{'tau-b':>8}")
    for way, history in ways.items():
        for entry in history:
            numbers = f"{entry['num_encodings']:>11,}{entry['train_s']:>9.1f}{entry['tau_b']:>8.3f}"
            print(f"{way:<18}{entry['epoch']:>6}{numbers}")
    result = {"ways": ways, "goal_tau_b": goal}
    if reached:
        result["seconds_ratio"] = round(by_pairs[-1]["train_s"] / reached["train_s"], 2)
        result["encodings_ratio"] = round(
            by_pairs[-1]["num_encodings"] / reached["num_encodings"], 2
        )
        print(
            f"The pair file's final tau-b {goal:.3f} is reached in epoch {reached['epoch']}, "
            f"{result['seconds_ratio']:.1f} times as fast (target: 10), with "
            f"{result['encodings_ratio']:.1f} times fewer encodings"
        )
    else:
        print(f"The pair file's final tau-b {goal:.3f} is not reached")
    return result


def write_part(data: Path, records: Path, num_prompts: int) -> None:
    """The first `num_prompts` records."""
    import gzip

    opener = gzip.open if data.suffix == ".gz" else open
    with opener(data, "rt", encoding="utf-8") as rows, records.open("w", encoding="utf-8") as part:
        part.writelines(line for line, _ in zip(rows, range(num_prompts), strict=False))


def train(folder: Path, way: list[object], common: list[object]) -> list[dict]:
    """One `pars train`; its history."""
    pars("train", *way, *common, "--output-dir", folder)
    return json.loads((folder / "metrics.json").read_text())["history"]


def pars(*arguments: object) -> None:
    """Run the command line of this checkout; its report goes to stderr."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
