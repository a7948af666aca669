"""
Public sets of prompts with answers, by name, with their licences; and one format for their rows.

    get(Wanted("code", Path("code.parquet")))            # from the Hub
    get(Wanted("alpaca", Path("alpaca.jsonl"), input=Path("alpaca_gpt4.json")))

pars ships none of them. `SCHEMA` is what a row holds, as JSON lines and as Parquet; every command
that takes records reads both.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pars.errors import MissingExtra, ParsError
from pars.files import utf8, written_whole
from pars.learn.data.hub import load_tokenizer
from pars.learn.data.prepare import read_exchanges
from pars.learn.data.prepare_config import PrepareConfig

SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class PublicSet:
    """
    Where a set lies, and what may be done with it.

    Attributes:
        source: How its rows are read: a source of `pars prepare`.
        licence: As its page on the Hub, or its makers, state it; read it there, too.
    """

    dataset: str
    source: str
    licence: str
    what: str


PUBLIC_SETS = {
    "alpaca": PublicSet(
        "vicgalle/alpaca-gpt4",
        "alpaca",
        "CC BY-NC 4.0: research only",
        "52,000 instructions, GPT-4's answers (PARS)",
    ),
    "code": PublicSet(
        "theblackcat102/evol-codealpaca-v1",
        "code",
        "Apache-2.0",
        "111,000 programming tasks, GPT-4's answers (PARS)",
    ),
    "lmsys": PublicSet(
        "lmsys/lmsys-chat-1m",
        "lmsys",
        "LMSYS-Chat-1M licence: accept it on the Hub; no passing on",
        "first turns of chats with gpt-4 (PARS)",
    ),
    "math": PublicSet("TIGER-Lab/MATH-plus", "math", "MIT", "mathematics, GPT-4's answers (PARS)"),
    "sharegpt": PublicSet(
        "anon8231489123/ShareGPT_Vicuna_unfiltered",
        "sharegpt",
        "none stated: people's own text; do not pass it on",
        "chats with ChatGPT that users shared",
    ),
    "wildchat": PublicSet(
        "allenai/WildChat-1M", "records", "ODC-BY", "chats with GPT-3.5 and GPT-4, with consent"
    ),
}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A prompt and its answer, for pars",
    "type": "object",
    "required": ["id", "prompt", "source", "licence"],
    "anyOf": [{"required": ["answer"]}, {"required": ["answer_tokens"]}],
    "properties": {
        "id": {"type": "string", "description": "Of the row, within its file."},
        "prompt": {
            "type": "string",
            "description": "The last message; of a conversation's later one, behind its note.",
        },
        "answer": {"type": "string", "description": "The answer's text."},
        "answer_tokens": {
            "type": "integer",
            "minimum": 0,
            "description": "Its length by --tokenizer, or as the set tells it.",
        },
        "model": {"type": "string", "description": "Who answered."},
        "category": {"type": "string", "description": "Of the request."},
        "finish_reason": {"type": "string", "description": "stop, or length where it was cut."},
        "source": {"type": "string", "description": "The Hub's name of the set, or the file."},
        "licence": {"type": "string", "description": "Of the set, as stated."},
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    Which set, and where to.

    Attributes:
        input: A file of the set's shape in place of the Hub.
        tokenizer: Counts `answer_tokens`; None: only where the set tells them.
        limit: At most so many rows; None: all.
    """

    name: str
    output: Path
    input: Path | None = None
    revision: str | None = None
    tokenizer: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.name not in PUBLIC_SETS:
            raise ParsError(f"{self.name}: want one of {', '.join(PUBLIC_SETS)}")
        if self.output.suffix not in SUFFIXES:
            raise ParsError(f"--output {self.output}: want a name in {' or '.join(SUFFIXES)}")
        if self.limit is not None and self.limit < 1:
            raise ParsError(f"--limit must be 1 or more, not {self.limit}")


def get(wanted: Wanted) -> int:
    """
    Write the set's rows in one format; how many.

    Raises:
        ParsError: the Hub or the file does not give them, or the output cannot be written.
    """
    rows = list(_rows(wanted))  # as the exchanges are; Parquet's columns are those that rows have
    if wanted.output.suffix == ".parquet":
        _write_parquet(wanted.output, rows)
    else:
        with written_whole(wanted.output) as file:
            for row in rows:
                file.write(utf8(json.dumps(row, ensure_ascii=False)) + b"\n")
    return len(rows)


def _rows(wanted: Wanted) -> Iterator[dict[str, Any]]:
    known = PUBLIC_SETS[wanted.name]
    config = PrepareConfig(
        source=known.source,
        input=wanted.input,
        dataset=None if wanted.input else known.dataset,
        revision=None if wanted.input else wanted.revision,
    )
    tokenizer = load_tokenizer(wanted.tokenizer) if wanted.tokenizer else None
    source, exchanges, _ = read_exchanges(config, Counter())
    number = 0
    for exchange in exchanges:
        is_told = exchange.length is not None and source.length_unit == "tokens"
        if not exchange.prompt or not (exchange.answer or is_told):
            continue
        tokens = exchange.length if is_told else None
        if tokenizer is not None and exchange.answer:
            text = exchange.answer.encode("utf-8", "replace").decode()
            tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
        row = {
            "id": str(number),
            "prompt": exchange.prompt,
            "answer": exchange.answer or None,
            "answer_tokens": None if tokens is None else round(tokens),
            "model": exchange.model,
            "category": exchange.category,
            "finish_reason": exchange.finish_reason,
            "source": str(wanted.input.name if wanted.input else known.dataset),
            "licence": known.licence,
        }
        yield {name: value for name, value in row.items() if value is not None}
        number += 1
        if number == wanted.limit:
            return


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The columns of the schema that any row has, null where one has none."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("Parquet", "train") from error
    kinds = {"string": pyarrow.string(), "integer": pyarrow.int64()}
    told = {name for row in rows for name in row}
    columns = pyarrow.schema(
        [(name, kinds[it["type"]]) for name, it in SCHEMA["properties"].items() if name in told]
    )
    with written_whole(path) as file:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), columns), file)
