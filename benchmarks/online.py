"""
How well the ranker that learns while it serves orders prompts it never saw, by requests served.

    python benchmarks/online.py

Kendall tau-b on 2,000 held-out requests after 100, 300, 1,000, 3,000 and 10,000 of one's own,
learned one by one in a random order, beside TF-IDF with ridge regression fitted anew at each of
them (it sees the prompt alone, and all of the past at once) and beside the bundled ranker, which
learns nothing. "online" hears the bundled ranker's word at first, as the gateway has it; "no word"
does not. Sets whose prompts the bundled ranker was trained on are marked: there the first figures
of both are better than a stranger's would be. Held-out requests have prompts that no learned
request has. In sets of several
models the request names the model; in the mix of six sets, the application; ShareGPT's messages
come with the lengths of the answers before them. The last line of stdout is one JSON document;
PARS_SHARED names the folder with data/ (default ../shared).
"""

import gzip
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pars.ranking.online.bundled import BundledWord
from pars.ranking.online.ranker import OnlineRanker
from pars.ranking.order_metrics import kendall_tau_b
from pars.request.conversation import with_note
from pars.request.features import Signals, signals_of_row

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
CHECKPOINTS = (100, 300, 1_000, 3_000, 10_000)
NUM_HELD_OUT = 2_000
SIX = (
    *("instruction_alpaca_davinci003", "chat_sharegpt", "code_gpteacher_gpt4"),
    *("math_zeroeval", "reasoning_mmlupro", "instruction_halueval_gpt35"),
)
TARGETS = {
    "alpaca": (0.39, 0.44, 0.51, 0.55, 0.60),
    "sharegpt, conversation known": (0.15, 0.20, 0.28, 0.33, 0.38),
    "alpaca_eval, 13 models": (None, None, None, None, 0.46),
    "arena_bench, many models": (None, None, None, None, 0.35),
    "zeroeval math, many models": (None, None, None, None, 0.57),
    "mmlupro, many models": (None, None, None, None, 0.54),
    "six sets as six applications": (None, None, None, None, 0.55),
}
KNOWN = {  # sets with prompts that the bundled ranker was trained on (MODEL_CARD.md)
    "arena_bench, many models",
    "zeroeval math, many models",
    "mmlupro, many models",
    "six sets as six applications",
}
Asked = tuple[str, Signals, float]  # text, signals, answer tokens


def main() -> None:
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED}/data is not there: set PARS_SHARED")
    bundled, results = BundledWord(), {}
    for name, rows in data_sets():
        results[name] = result = measured(rows, bundled)
        known = "; the bundled ranker was trained on its prompts" if name in KNOWN else ""
        told = f"{result['num_learned']:,} learned, {result['num_held_out']:,} held out"
        print(f"\n{name}: {told}{known}")
        print(f"{'after':<18}" + "".join(f"{n:>9}" for n in result["after"]))
        for kind in ("online", "no word", "TF-IDF + ridge", "bundled"):
            print(f"{kind:<18}" + "".join(f"{it:>9.3f}" for it in result[kind]))
        told = [
            "" if t is None else "met" if it >= t else f"<{t:.2f}"
            for it, t in zip(result["online"], TARGETS[name][-len(result["after"]) :], strict=True)
        ]
        print(f"{'target':<18}" + "".join(f"{it:>9}" for it in told))
        print(
            f"inside the 80% interval {result['coverage']:.1%}; {result['read_us']:.0f} us to read"
            f" and expect, {result['learn_us']:.0f} us to learn (processor time, mean)"
        )
    print(json.dumps(results))


def measured(rows: list[Asked], bundled: BundledWord) -> dict[str, Any]:
    num_held_out = min(NUM_HELD_OUT, len(rows) // 5)
    held_texts = {text for text, _, _ in rows[-num_held_out:]}
    learned = [row for row in rows[:-num_held_out] if row[0] not in held_texts]
    learned, held = learned[: CHECKPOINTS[-1]], rows[-num_held_out:]
    lengths = [tokens for _, _, tokens in held]
    ranker, inside, spent_s = OnlineRanker(b"not kept, sixteen"), [], [0.0, 0.0]
    deaf = OnlineRanker(b"not kept, sixteen")
    after = [n for n in CHECKPOINTS if n < len(learned)] + [len(learned)]
    after = after[-len(CHECKPOINTS) :] if len(after) > len(CHECKPOINTS) else after
    found: dict[str, list[float]] = {}
    words = bundled.of_all([text for text, _, _ in held])
    static = kendall_tau_b(words, lengths)
    for number, (_, signals, tokens) in enumerate(learned, 1):
        began_s = time.process_time()
        guess = ranker.expect(signals, bundled.for_now(ranker, signals))
        middle_s = time.process_time()
        ranker.learn(guess, tokens)
        spent_s[0] += middle_s - began_s
        spent_s[1] += time.process_time() - middle_s
        deaf.learn(deaf.expect(signals), tokens)
        if number > CHECKPOINTS[2]:
            inside.append(guess.low_tokens <= tokens <= guess.high_tokens)
        if number in after:
            share = ranker.bundled_share
            told = [it for _, it, _ in held]
            orders = {
                "online": [
                    ranker.expect(it, share * word).log_tokens
                    for it, word in zip(told, words, strict=True)
                ],
                "no word": [deaf.expect(it).log_tokens for it in told],
                "TF-IDF + ridge": tfidf(learned[:number], held),
            }
            for kind, scores in orders.items():
                found.setdefault(kind, []).append(kendall_tau_b(scores, lengths))
            found.setdefault("bundled", []).append(static)
    return found | {
        "after": after,
        "num_learned": len(learned),
        "num_held_out": num_held_out,
        "coverage": float(np.mean(inside)) if inside else math.nan,
        "read_us": spent_s[0] / len(learned) * 1e6,
        "learn_us": spent_s[1] / len(learned) * 1e6,
    }


def tfidf(learned: list[Asked], held: list[Asked]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), Ridge())
    model.fit([text for text, _, _ in learned], np.log1p([tokens for _, _, tokens in learned]))
    return model.predict([text for text, _, _ in held])


def data_sets() -> Iterator[tuple[str, list[Asked]]]:
    """Each set in a random order that is always the same, held-out requests at its end."""
    yield "alpaca", asked(first_of_each(rows_of("instruction_alpaca_davinci003"))[:12_000])
    yield "sharegpt, conversation known", asked(conversations()[:12_000])
    for name, file in (
        ("alpaca_eval, 13 models", "instruction_alpaca_eval"),
        ("arena_bench, many models", "chat_arena_bench"),
        ("zeroeval math, many models", "math_zeroeval"),
        ("mmlupro, many models", "reasoning_mmlupro"),
    ):
        rows = rows_of(file)
        prompts = sorted({row["prompt"] for row in rows})
        random.Random(2).shuffle(prompts)
        held = set(prompts[: len(prompts) // 6])
        yield (
            name,
            asked([row for row in rows if row["prompt"] not in held][:10_000])
            + asked([row for row in rows if row["prompt"] in held][:NUM_HELD_OUT]),
        )
    mixed = [
        {**row, "model": None, "application": name}
        for name in SIX
        for row in first_of_each(rows_of(name))[:NUM_HELD_OUT]
    ]
    random.Random(3).shuffle(mixed)
    yield "six sets as six applications", asked(mixed)


def rows_of(name: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / f"data/{name}.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["response_tokens"] and row["prompt"]]
    random.Random(0).shuffle(rows)
    return rows


def first_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a prompt."""
    return list({row["prompt"]: row for row in reversed(rows)}.values())[::-1]


def conversations() -> list[dict[str, Any]]:
    """Messages behind a note of the answers before them in their record."""
    by_conversation: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of("chat_sharegpt"):
        by_conversation.setdefault(row["id"].rsplit("-", 1)[0], []).append(row)
    noted = []
    for rows in by_conversation.values():
        before: list[int] = []
        for row in sorted(rows, key=lambda it: int(it["turn"])):
            noted.append({**row, "prompt": with_note(row["prompt"], before)})
            before.append(row["response_chars"] or 1)
    random.Random(1).shuffle(noted)
    return noted


def asked(rows: list[dict[str, Any]]) -> list[Asked]:
    known = ("model", "application")
    return [
        (
            row["prompt"],
            signals_of_row({it: row[it] for it in known if row.get(it)}, row["prompt"]),
            float(row["response_tokens"]),
        )
        for row in rows
    ]


if __name__ == "__main__":
    main()
