"""
The loads of `frontier.py`: windows of arrival traces, at a share of what the engine gets done.

ServeGen's lengths are drawn independently of one another; ShareGPT's chats come in bursts (gamma
intervals, coefficient of variation 4).
"""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pars.prove.workload.arrivals import gamma
from pars.prove.workload.traces import read_trace
from virtual_load import Load, capacity

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
CHATS = "sharegpt in bursts"
TRACES = {
    "azure2023_conv": "Azure's conversations",
    "mooncake_conversation": "Mooncake",
    "servegen_deepseek_r1_sampled": "ServeGen, DeepSeek-R1",
    CHATS: "ShareGPT in bursts",
}
BURSTS_CV = 4.0
MOST_TOKENS = 32_000  # of prompt and answer: longer chats are left out


@dataclass(frozen=True, slots=True)
class Case:
    """A window of a trace: the first, the last, or between, of `num_windows`."""

    trace: str
    share: float
    num_requests: int
    window: int = 0
    num_windows: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Chats:
    """What a ranker sees of ShareGPT's requests, [num_requests] each."""

    prompts: list[str]


def load_of(case: Case) -> tuple[Load, Chats | None]:
    """Its arrivals and lengths; prompts where there are any."""
    chats = None
    if case.trace == CHATS:
        at, prompts, outputs, chats = _chats(case)
    else:
        trace = read_trace(SHARED / f"data/traces/{case.trace}.csv")
        first = (len(trace.arrivals_s) - case.num_requests) * case.window
        first = max(0, first // max(case.num_windows - 1, 1))
        rows = slice(first, first + case.num_requests)
        at, prompts, outputs = (
            np.array(it[rows]) for it in (trace.arrivals_s, trace.input_tokens, trace.output_tokens)
        )
    prompts, outputs = np.maximum(prompts, 1), np.maximum(outputs, 1)
    rate = case.share * capacity(outputs, prompts)
    return Load((at - at[0]) * len(at) / ((at[-1] - at[0]) * rate), prompts, outputs), chats


def _chats(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, Chats]:
    rows = []
    with gzip.open(SHARED / "data/chat_sharegpt.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt_tokens = row["prompt_tokens"] + row["history_chars"] // 4
            if (
                prompt_tokens + row["response_tokens"] <= MOST_TOKENS
                and row["response_tokens"] >= 1
            ):
                rows.append((prompt_tokens, row["response_tokens"], row["prompt"]))
    order = np.random.default_rng(case.window).permutation(len(rows))[: case.num_requests]
    rows = [rows[it] for it in order.tolist()]
    at = np.array(gamma(len(rows), 1.0, BURSTS_CV, case.window))
    prompts, outputs = (np.array([row[it] for row in rows]) for it in (0, 1))
    return at, prompts, outputs, Chats([row[2] for row in rows])
