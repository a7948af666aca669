"""
What a score costs in process, on one core: time, where it goes, loading, memory, and precision.

    python benchmarks/score_cost.py --data val_data.json --lite FOLDER --minilm FOLDER

Prompts are held-out ones; the median prompt is the one in the middle by characters. Parts are timed
alone, best of several passes, in CPU time. Loading is a new process each, from before the import of
pars to the first score. MiniLM is measured in each precision that its folder has, with the order of
8-bit scores against float32's (Kendall tau-b, target 0.99). The last line is one JSON document.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pars.ranking.order_metrics import kendall_tau_b
from pars.ranking.ranker import TOKENIZER_FILE, Ranker, bundled_ranker
from pars.request.words import WordTokenizer

NUM_PASSES, CALLS_A_PASS, BATCH, NUM_PROMPTS = 15, 200, 32, 1000
TARGET_US, TARGET_LOAD_MS, TARGET_AGREEMENT = 150, 300, 0.99
LOAD = """
import time; started_s = time.perf_counter()
import re, sys
from pathlib import Path
def peak_mib():  # getrusage would tell the peak of the process before exec
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before_mib = peak_mib()
from pars.ranking.ranker import Ranker
Ranker.load(Path(sys.argv[1])).score(["What is the capital of France?"])
print((time.perf_counter() - started_s) * 1000, peak_mib(), before_mib)
"""


def main() -> None:
    """Measure, print, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lite", type=Path, required=True)
    parser.add_argument("--minilm", type=Path)
    options = parser.parse_args()
    prompts = [row["prompt"] for row in json.loads(options.data.read_text())][:NUM_PROMPTS]
    median = sorted(prompts, key=len)[len(prompts) // 2]
    results = {"median_prompt_chars": len(median)}
    print(f"the median of {len(prompts):,} prompts has {len(median)} characters; CPU us a prompt\n")
    print(f"{'':<18}{'alone':>8}{f'in {BATCH}s':>8}{'to first score, ms':>20}{'peak MiB':>10}")
    folders = {"bundled": bundled_ranker(), "lite": options.lite, "MiniLM": options.minilm}
    for name, folder in folders.items():
        if folder is None:
            continue
        for precision in ("float32", "int8"):
            if precision == "int8" and not (folder / "model_int8.onnx").exists():
                continue
            ranker = Ranker.load(folder, precision=precision)
            told = measure(ranker, prompts, median) | load(folder)
            results[f"{name}, {precision}"] = told
            print(
                f"{f'{name}, {precision}':<18}{told['alone_us']:>8.0f}{told['batched_us']:>8.0f}"
                f"{told['load_ms']:>20.0f}{told['peak_mib']:>10.0f}"
            )
    results["parts_us"] = parts(options.lite, median)
    print_parts(results["parts_us"])
    if options.minilm:
        results["word_pieces_us"] = word_pieces_us(options.minilm, median)
        print(
            f"  beside it: MiniLM's word-piece tokenizer alone {results['word_pieces_us']:.1f} us"
        )
        both = [
            Ranker.load(options.minilm, precision=it).score(prompts) for it in ("float32", "int8")
        ]
        results["int8_tau_b"] = kendall_tau_b(*both)
    print_targets(results)
    print(json.dumps(results))


def measure(ranker: Ranker, prompts: list[str], median: str) -> dict[str, float]:
    """CPU microseconds a prompt: the median one alone, and all of them in batches."""
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    num_calls = CALLS_A_PASS if ranker.info.kind == "lite" else 20
    passes = NUM_PASSES if ranker.info.kind == "lite" else 3
    alone_us = best_us(lambda: ranker.score([median]), num_calls, passes)
    batched_us = best_us(lambda: [ranker.score(batch) for batch in batches], 1, passes)
    return {"alone_us": alone_us, "batched_us": batched_us / len(prompts)}


def parts(folder: Path, median: str) -> list[tuple[str, float]]:
    """What of lite's microseconds for the median prompt goes where."""
    ranker, tokenizer = Ranker.load(folder), WordTokenizer.from_file(folder / TOKENIZER_FILE)
    prepared = ranker._prepare([median])  # the benchmark looks inside, so that parts add up
    inputs = prepared.inputs([0])
    timed: list[tuple[str, Callable[[], object]]] = [
        ("words to ids", lambda: tokenizer.encode(median)),
        ("surface features", lambda: tokenizer.features(median)),
        ("arrays", lambda: prepared.inputs([0])),
        ("ONNX Runtime", lambda: ranker._session.run(None, inputs)),
        ("all of score()", lambda: ranker.score([median])),
    ]
    return [(name, best_us(call, CALLS_A_PASS, NUM_PASSES)) for name, call in timed]


def word_pieces_us(folder: Path, median: str) -> float:
    """What reading the median prompt in word pieces takes, as `tokenizers` does it for MiniLM."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    return best_us(lambda: tokenizer.encode_batch_fast([median]), CALLS_A_PASS, NUM_PASSES)


def best_us(call: Callable[[], object], num_calls: int, num_passes: int) -> float:
    """CPU microseconds of one call: the best pass."""
    found = []
    for _ in range(num_passes):
        started_s = time.process_time()
        for _ in range(num_calls):
            call()
        found.append((time.process_time() - started_s) / num_calls * 1e6)
    return min(found)


def load(folder: Path) -> dict[str, float]:
    """From nothing to the first score, in a new process: milliseconds, and its peak memory."""
    command = [sys.executable, "-c", LOAD, str(folder)]
    runs = [
        [*map(float, subprocess.run(command, check=True, capture_output=True).stdout.split())]
        for _ in range(5)
    ]
    load_ms, peak_mib, before_mib = np.median(runs, axis=0).tolist()
    return {"load_ms": load_ms, "peak_mib": peak_mib, "python_alone_mib": before_mib}


def print_parts(told: list[tuple[str, float]]) -> None:
    """Lite's microseconds, part by part."""
    whole = told[-1][1]
    print("\nlite, the median prompt alone")
    for name, us in told:
        print(f"  {name:<18}{us:>8.1f} us{us / whole:>7.0%}")


def print_targets(results: dict) -> None:
    """What was asked for, and what came."""
    lite = results["lite, float32"]
    print()
    rows = [
        ("lite, median prompt, us", lite["alone_us"], "<=", TARGET_US),
        ("lite, to first score, ms", lite["load_ms"], "<=", TARGET_LOAD_MS),
    ]
    if "int8_tau_b" in results:
        rows.append(
            ("MiniLM, tau-b of int8 and float32", results["int8_tau_b"], ">=", TARGET_AGREEMENT)
        )
    for name, value, sign, target in rows:
        is_met = value <= target if sign == "<=" else value >= target
        print(f"{name:<36}{value:>9.3g} {sign} {target:<6}{'met' if is_met else 'MISSED'}")


if __name__ == "__main__":
    main()
