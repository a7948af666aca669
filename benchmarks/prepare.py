"""
Drawing and writing pairs: pars beside a plain Python loop, on as many rows as alpaca-gpt4 has.

Both draw 10 pairs a row by rejection and write the four files of PARS; the loop holds its pairs as
dicts and writes them with json.dump. The rows are made up from a seed, with log-normal lengths.
Each way runs in a process of its own, three times, so that its peak memory is its own; the table
shows the fastest run. The last line of stdout is one JSON document with all that is above it.

    python benchmarks/prepare.py --json-out prepare.json
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pars.learn.data.pairs import draw_pairs, split_rows, write_data, write_pairs
from pars.learn.data.records import Row

NUM_ROWS, NUM_RUNS, NUM_PAIRS, SEED, THRESHOLD = 52_002, 3, 10, 42, 0.2
TEXT = 'a list of the most common words and a few "quoted" ones: C++ or 42\n'


def make_rows() -> list[tuple[str, str]]:
    """Prompts and answers with log-normal word counts; a tenth of them is not plain ASCII."""
    rng = np.random.default_rng(0)
    num_words = np.exp(rng.normal((2.5, 4.4), (0.6, 1.0), size=(NUM_ROWS, 2))).clip(1, 1_000)
    words = TEXT.split(" ")
    text = [words[i] for i in rng.integers(len(words), size=1_100)]
    return [
        (
            " ".join([f"{number}" if number % 10 else "naïve 東京", *text[: int(asked)]]),
            " ".join(["A" if number % 10 else "“Oui”", *text[number % 90 :][: int(told)]]),
        )
        for number, (asked, told) in enumerate(num_words)
    ]


def splits() -> list[list[dict[str, Any]]]:
    rows = make_rows()
    return [
        [
            {
                "task_id": task_id,
                "prompt": rows[index][0],
                "answer_content": rows[index][1],
                "answer_length": len(rows[index][1].split()),
            }
            for task_id, index in enumerate(part.tolist())
        ]
        for part in split_rows(len(rows), 0.1, SEED)
    ]


def loop(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The plain way: one random partner at a time, one dict a pair."""
    rng = random.Random(seed)
    pairs = []
    for at, row in enumerate(rows):
        found = 0
        for _ in range(10 * NUM_PAIRS):
            other_at = rng.randint(0, len(rows) - 1)
            other = rows[other_at]
            a, b = row["answer_length"], other["answer_length"]
            if other_at == at or (abs(a - b) / max(a, b) if max(a, b) else 0) < THRESHOLD:
                continue
            label = int(a > b)
            pairs.append({"prompt_A": row["prompt"], "prompt_B": other["prompt"], "label": label})
            found += 1
            if found == NUM_PAIRS:
                break
    return pairs


def run_plain(parts: list[list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    times_s = [time.perf_counter()]
    pairs = [loop(rows, SEED + offset) for offset, rows in enumerate(parts)]
    times_s.append(time.perf_counter())
    for kind, contents in (("pairs", pairs), ("data", parts)):
        for name, content in zip(("train", "val"), contents, strict=True):
            with (folder / f"{name}_{kind}.json").open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=2, ensure_ascii=False)
        times_s.append(time.perf_counter())
    return measured(times_s, [len(one) for one in pairs])


def run_pars(parts: list[list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    kept = [[Row(**row) for row in rows] for rows in parts]
    parts.clear()
    times_s = [time.perf_counter()]
    pairs = [
        draw_pairs([row.answer_length for row in rows], NUM_PAIRS, THRESHOLD, SEED + offset)
        for offset, rows in enumerate(kept)
    ]
    times_s.append(time.perf_counter())
    for name, rows, part_pairs in zip(("train", "val"), kept, pairs, strict=True):
        with (folder / f"{name}_pairs.json").open("wb") as file:
            write_pairs(file, [row.prompt for row in rows], part_pairs)
    times_s.append(time.perf_counter())
    for name, rows in zip(("train", "val"), kept, strict=True):
        with (folder / f"{name}_data.json").open("wb") as file:
            write_data(file, rows)
    times_s.append(time.perf_counter())
    return measured(times_s, [len(one) for one in pairs])


def measured(times_s: list[float], num_pairs: list[int]) -> dict[str, Any]:
    names = ("draw_s", "draw_and_write_s", "all_files_s")
    told = {name: end_s - times_s[0] for name, end_s in zip(names, times_s[1:], strict=True)}
    return {**told, "pairs": num_pairs}


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


WAYS = {"plain": run_plain, "pars": run_pars}


def run_once(way: str) -> dict[str, Any]:
    """One way in this very process; what the rows themselves take is told apart."""
    parts = splits()
    num_rows = [len(rows) for rows in parts]
    before_mib = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        result = WAYS[way](parts, Path(folder))
        written_mib = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
    memory = {"rows_mib": before_mib, "peak_mib": peak_mib(), "written_mib": written_mib}
    return {**result, "rows": num_rows, **memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--json-out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run_once(arguments.way)))
        return
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(NUM_RUNS):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way]
            runs[way].append(json.loads(subprocess.check_output(command)))
    best = {way: min(runs[way], key=lambda run: run["draw_and_write_s"]) for way in WAYS}
    print(f"{NUM_ROWS:,} rows -> {best['pars']['rows']} rows, {best['pars']['pairs']} pairs")
    print(f"{'':<24}{'plain':>10}{'pars':>10}{'ratio':>10}")
    ratios = {}
    for key, told in {
        "draw_s": "drawing pairs, s",
        "draw_and_write_s": "and writing them, s",
        "all_files_s": "and writing rows, s",
        "rows_mib": "memory with rows, MiB",
        "peak_mib": "peak memory, MiB",
        "written_mib": "written, MiB",
    }.items():
        plain, ours = best["plain"][key], best["pars"][key]
        ratios[key] = plain / ours
        print(f"{told:<24}{plain:>10.2f}{ours:>10.2f}{ratios[key]:>9.1f}x")
    document = {"num_rows": NUM_ROWS, "best": best, "ratios": ratios, "runs": runs}
    if arguments.json_out:
        arguments.json_out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
