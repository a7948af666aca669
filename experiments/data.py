"""
The data sets of the experiments, each with one fixed split by prompt.

    data = load("alpaca_davinci003", Path("records"))      # a folder with *.jsonl.gz
    data.train, data.test                                  # Rows: prompts, lengths, models

A prompt's place in the split is a checksum of its text, so it never moves: not with the seed, not
with the rows that were read, and not from one data set to the next.
"""

import gzip
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

TEST_SHARE = 0.1
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A file of records, and which of them."""

    file: str
    is_wanted: Callable[[Record], bool] = lambda record: True
    is_sampled: bool = False  # several answers of one model to a prompt: train on their mean


def of_model(name: str) -> Callable[[Record], bool]:
    return lambda record: record["model"] == name


SOURCES = {
    "alpaca_davinci003": Source("instruction_alpaca_davinci003"),
    "alpaca_vicuna7b": Source("instruction_alpaca_vicuna7b_train", is_sampled=True),
    "sharegpt": Source("chat_sharegpt"),
    "alpaca_eval": Source("instruction_alpaca_eval"),
    "gpteacher_code": Source("code_gpteacher_gpt4"),
    "mmlupro_gpt-4o": Source("reasoning_mmlupro", of_model("gpt-4o")),
    "mmlupro": Source("reasoning_mmlupro"),
    "math_zeroeval": Source("math_zeroeval"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Answers [num_rows]; `records` keeps whatever else is known of each."""

    prompts: list[str]
    lengths: np.ndarray
    models: list[str]
    records: list[Record]

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, rows: Iterable[int]) -> "Rows":
        rows = list(rows)
        return Rows(
            [self.prompts[i] for i in rows],
            self.lengths[rows],
            [self.models[i] for i in rows],
            [self.records[i] for i in rows],
        )

    def relative_lengths(self) -> np.ndarray:
        """Lengths over their model's geometric mean: answers of all models on one scale."""
        logs = np.log1p(self.lengths)
        models = np.array(self.models)
        for model in set(self.models):
            logs[models == model] -= logs[models == model].mean()
        return np.exp(logs)

    def mean_by_prompt(self) -> "Rows":
        """One row a prompt and model: the geometric mean of its answers."""
        answers = defaultdict(list)
        for row, key in enumerate(zip(self.prompts, self.models, strict=True)):
            answers[key].append(row)
        firsts = self.part(rows[0] for rows in answers.values())
        means = [math.exp(fmean(np.log(self.lengths[rows]))) for rows in answers.values()]
        return Rows(firsts.prompts, np.array(means), firsts.models, firsts.records)


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    train: Rows
    test: Rows


def load(name: str, folder: Path) -> DataSet:
    """The data set's two parts; no prompt stands in both."""
    source = SOURCES[name]
    with gzip.open(folder / f"{source.file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    records = with_answers_before(records)
    records = [it for it in records if source.is_wanted(it) and it["response_tokens"]]
    rows = Rows(
        [record["prompt"] for record in records],
        np.array([record["response_tokens"] for record in records], dtype=np.float64),
        [record["model"] for record in records],
        records,
    )
    is_test = [in_test(prompt) for prompt in rows.prompts]
    train = rows.part(i for i, held_out in enumerate(is_test) if not held_out)
    test = rows.part(i for i, held_out in enumerate(is_test) if held_out)
    if source.is_sampled:
        train, test = train.mean_by_prompt(), one_sample(test)
    return DataSet(train, test)


def with_answers_before(records: list[Record]) -> list[Record]:
    """
    The records with `answers_before`: the characters of the conversation's answers so far.

    For those of ShareGPT, whose id is a conversation's, a hyphen and the message's place in it.
    """
    answers: dict[str, list[int]] = defaultdict(list)
    told = []
    for record in records:
        if "turn" in record:
            conversation = record["id"].rpartition("-")[0]
            record = {**record, "answers_before": list(answers[conversation])}
            answers[conversation].append(record["response_chars"])
        told.append(record)
    return told


def in_test(prompt: str) -> bool:
    return zlib.crc32(prompt.encode("utf-8", "surrogatepass")) % 1000 < 1000 * TEST_SHARE


def one_sample(rows: Rows) -> Rows:
    """The last answer to each prompt: what a server would see of it."""
    last = {key: row for row, key in enumerate(zip(rows.prompts, rows.models, strict=True))}
    return rows.part(last.values())
