"""
What the ranker that learns while it serves costs: processor time a request, and memory.

    python benchmarks/online_cost.py

Chats of an application with a system prompt, an API key, tools and limits, and a user message of
30, 300 and 3,000 words, drawn by Zipf's law from the words that English writes most: each message
is another. "read body" goes from the parsed body to what it tells, "expect" from there to expected
tokens, "learn" is the one step when the answer came. Each is processor time in the fastest of
ROUNDS rounds (what else the machine does makes a round slower, never faster), and beside them
stands the median of all. One thread of BLAS, as arrays so small are no work for two. Memory is what
the process has more at its end than before the ranker was made, after as many other words as it
remembers. The last line of stdout is one JSON document.
"""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

NUM_WORDS = (30, 300, 3_000)
PATH, API_KEY = "/v1/chat/completions", "sk-an-api-key"
ROUNDS, REQUESTS_A_ROUND = 15, 100
NUM_ODD_WORDS = 100_000
CALLER = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "temperature": 0.2,
    "stream": True,
    "max_tokens": 1024,
    "tools": [{"type": "function", "function": {"name": it}} for it in ("search", "open", "sum")],
}
SYSTEM = "You are the assistant of a shop for garden tools. Answer briefly, in the client's tongue."


def main() -> None:
    from pars.request.features import signals_of
    from pars.request.prompts import read_request

    words, bodies_of = vocabulary(), {}
    for count in NUM_WORDS:
        rng = np.random.default_rng(count)
        bodies_of[count] = [body(words, count, rng) for _ in range(ROUNDS * REQUESTS_A_ROUND)]
    requests_of = {
        count: [(it, read_request(PATH, it)) for it in bodies]
        for count, bodies in bodies_of.items()
    }
    before_mib = resident_mib()
    from pars.ranking.online.ranker import OnlineRanker

    ranker, costs = OnlineRanker(b"sixteen or more bytes"), {}
    medians: dict[int, float] = {}
    for count, requests in requests_of.items():
        rounds = []
        for first in range(0, len(requests), REQUESTS_A_ROUND):
            some = requests[first : first + REQUESTS_A_ROUND]
            at_s = [time.process_time()]
            signals = [signals_of(PATH, fields, request, API_KEY) for fields, request in some]
            at_s.append(time.process_time())
            guesses = [ranker.expect(it) for it in signals]
            at_s.append(time.process_time())
            for guess in guesses:
                ranker.learn(guess, 100.0 + guess.tokens % 300)
            at_s.append(time.process_time())
            rounds.append(np.diff(at_s) / len(some) * 1e6)
        costs[count] = np.min(rounds, axis=0)
        medians[count] = float(np.median(np.sum(rounds, axis=1)))
    for first in range(0, NUM_ODD_WORDS, 100):
        odd = " ".join(f"odd{it}word" for it in range(first, first + 100))
        fields = CALLER | {"messages": [{"role": "user", "content": odd}], "user": f"user {first}"}
        request = read_request(PATH, fields)
        ranker.learn(ranker.expect(signals_of(PATH, fields, request, f"key {first}")), 100.0)
    grown_mib = resident_mib() - before_mib
    print(f"{'words':>8}{'read body':>11}{'expect':>9}{'learn':>9}{'all':>9}{'median':>9}   us")
    for count, parts in costs.items():
        shown = "".join(f"{it:>9.1f}" for it in (*parts[1:], parts.sum(), medians[count]))
        print(f"{count:>8,}{parts[0]:>11.1f}{shown}")
    print(f"memory: {grown_mib:.1f} MiB more than before the ranker was made")
    fastest = {str(count): parts.tolist() for count, parts in costs.items()}
    told = {"fastest_us": fastest, "median_us": medians, "memory_mib": grown_mib}
    print(json.dumps(told))


def body(words: list[str], count: int, rng: np.random.Generator) -> dict[str, Any]:
    ranks = np.minimum(rng.zipf(1.3, count), len(words)) - 1
    text = " ".join(words[int(it)] for it in ranks)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text + "?"}]
    return CALLER | {"messages": messages}


def vocabulary() -> list[str]:
    from pars.ranking.word_vectors import word_vectors

    words = [it for it in word_vectors().words if it.isalpha()]
    word_vectors.cache_clear()  # the ranker pays for its own
    return words


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


if __name__ == "__main__":
    main()
