"""
Training data out of a source's rows: PARS's four files, and one that says how they came about.

    train_data.json, val_data.json                    one row a prompt
    train_pairs_length_diff_T.json, val_pairs_…       pairs whose lengths differ by T or more
    prepare.json                                      settings, counts, files, versions

All five appear together or none does. The same input and seed give the same bytes.
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pars import __version__
from pars.errors import DataError, ParsError
from pars.files import utf8, written_whole
from pars.learn.data.chats import NotUnderstood
from pars.learn.data.hub import hub_rows, load_tokenizer
from pars.learn.data.pairs import (
    Indices,
    draw_pairs,
    split_groups,
    split_rows,
    write_data,
    write_pairs,
)
from pars.learn.data.prepare_config import NO_TOKENIZER, PrepareConfig
from pars.learn.data.record_reader import Exchange, RecordReader, Row, told_of
from pars.learn.data.sources import SOURCES, Source, file_rows, records_source
from pars.request.conversation import message_of

_TEXTS_PER_ENCODE = 1_000
_SHOW_AFTER_S = 1.0
_T = TypeVar("_T")


def prepare(config: PrepareConfig, output_dir: Path) -> dict[str, Any]:
    """
    Read the source, split it, draw pairs, and write the five files.

    Returns:
        What prepare.json says: settings, counts, files and versions.

    Raises:
        ParsError: bad input, no pair that passes the threshold, or files that cannot be written.
    """
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    counts: Counter[str] = Counter()
    source, exchanges, left_out = read_exchanges(config, counts)
    config = _settled(config, source)
    lengths_of = _length_counter(config.length_unit, tokenizer)
    num_pairs = {"train": config.train_num_pairs or 0, "val": config.val_num_pairs or 0}
    plan: dict[str, Callable[[IO[bytes]], None]] = {}
    split_counts = {}
    for offset, (name, part) in enumerate(zip(num_pairs, _split(exchanges, config), strict=True)):
        rows, dropped = _rows(exchanges, part, lengths_of)
        lengths = [row.answer_length for row in rows]
        pairs = draw_pairs(
            lengths,
            num_pairs[name],
            config.threshold,
            config.seed + offset,
            is_censored=[row.is_censored for row in rows],
        )
        if num_pairs[name] and not len(pairs):
            raise _no_pair(name, lengths, config)
        plan[f"{name}_data.json"] = partial(write_data, rows=rows)
        plan[f"{name}_pairs_length_diff_{config.threshold}.json"] = partial(
            write_pairs, prompts=[row.prompt for row in rows], pairs=pairs
        )
        split_counts[name] = {
            "rows": len(rows),
            **dropped,
            "pairs": len(pairs),
            "pairs_short": len(rows) * num_pairs[name] - len(pairs),
        }
    report = {
        **asdict(config),
        "input": str(config.input) if config.input else None,
        "requests": str(config.requests) if config.requests else None,
        "counts": {**counts, "left_out": dict(left_out.most_common()), **split_counts},
        "files": [*plan, "prepare.json"],
        "versions": _versions(),
    }
    _write_all(plan, report, output_dir)
    return report


def read_exchanges(
    config: PrepareConfig, counts: Counter[str]
) -> tuple[Source, list[Exchange], Counter[str]]:
    """The source, its prompts with their answers, and what was left out, by reason."""
    source = SOURCES.get(config.source)
    where = (source.where if source else ()) + config.where
    if config.input:
        at: Path | str = config.input
        on_cut = partial(counts.__setitem__, "bytes_cut_off") if config.allow_truncated else None
        rows = file_rows(config.input, where, counts, on_cut, config.requests)
    else:
        at = config.dataset or (source.dataset if source else None) or ""
        data_files = source.data_files if source and not config.dataset else None
        rows = hub_rows(at, config.revision, data_files, where, counts)
    first = next(rows, None)
    if first is None:
        asked = " and ".join(f"{name}={value}" for name, value in where)
        num_rows = counts["rows_read"]
        raise DataError.at(
            at, f"none of its {num_rows:,} rows has {asked}" if num_rows else "has no rows"
        )
    rows, left_out = chain([first], rows), Counter[str]()
    if source is None:
        names = (config.prompt_field, config.answer_field, config.length_field)
        reader, rows = RecordReader.settled(
            rows, at, names=names, length_unit=config.length_unit, left_out=left_out
        )
        source = records_source(reader)
    exchanges: list[Exchange] = []
    num_rows = 0
    for number, row in _shown(rows, "Reading rows"):
        num_rows += 1
        num_before, num_left_out = len(exchanges), left_out.total()
        try:
            exchanges += source.exchanges_of(row, at, number)
        except NotUnderstood as reason:
            left_out[str(reason)] += 1
        if len(exchanges) == num_before and left_out.total() == num_left_out:
            left_out["no message that is answered"] += 1
    counts["rows_unwanted"] = counts["rows_read"] - num_rows
    counts["exchanges"] = len(exchanges)
    if not exchanges:
        problem = f"none of its {num_rows:,} rows has a prompt that is answered"
        raise DataError.at(at, f"{problem}: {told_of(left_out)}")
    return source, exchanges, left_out


def _settled(config: PrepareConfig, source: Source) -> PrepareConfig:
    """The config with the source's own settings where nothing was asked."""

    def asked(value: _T | None, own: _T) -> _T:
        return own if value is None else value

    return replace(
        config,
        dataset=None if config.input else asked(config.dataset, source.dataset),
        where=source.where + config.where,
        length_unit=asked(config.length_unit, source.length_unit),
        train_num_pairs=asked(config.train_num_pairs, source.train_num_pairs),
        val_num_pairs=asked(config.val_num_pairs, source.val_num_pairs),
        group_by_prompt=asked(config.group_by_prompt, source.group_by_prompt),
    )


def _length_counter(unit: str | None, tokenizer: Any) -> Callable[[list[str]], list[int]]:
    if unit == "characters":
        return lambda texts: [len(text) for text in texts]
    if unit == "words":
        return lambda texts: [len(text.split()) for text in texts]

    def num_tokens(texts: list[str]) -> list[int]:
        if tokenizer is None:
            raise ParsError(NO_TOKENIZER)
        lengths: list[int] = []
        for start in _shown(range(0, len(texts), _TEXTS_PER_ENCODE), "Counting tokens"):
            # Half a surrogate pair is no text to a tokenizer: a question mark stands in for it.
            batch = [
                text.encode("utf-8", "replace").decode()
                for text in texts[start : start + _TEXTS_PER_ENCODE]
            ]
            lengths += map(len, tokenizer.encode_batch(batch, add_special_tokens=False))
        return lengths

    return num_tokens


def _split(exchanges: list[Exchange], config: PrepareConfig) -> tuple[Indices, Indices]:
    if not config.group_by_prompt:
        return split_rows(len(exchanges), config.test_size, config.seed)
    prompts = [message_of(exchange.prompt).strip() for exchange in exchanges]
    return split_groups(prompts, config.test_size, config.seed)


def _rows(
    exchanges: list[Exchange], part: Indices, lengths_of: Callable[[list[str]], list[int]]
) -> tuple[list[Row], dict[str, int]]:
    """The rows of a split, named by their place in it, and how many were dropped and why."""
    dropped = {"dropped_no_prompt": 0, "dropped_no_answer": 0}
    kept: list[tuple[int, Exchange]] = []
    for task_id, index in enumerate(part.tolist()):
        exchange = exchanges[index]
        if not exchange.prompt:
            dropped["dropped_no_prompt"] += 1
        elif not exchange.answer and exchange.length is None:
            dropped["dropped_no_answer"] += 1
        else:
            kept.append((task_id, exchange))
    if kept and kept[0][1].length is None:
        lengths: Iterable[float | None] = lengths_of([exchange.answer for _, exchange in kept])
    else:
        lengths = (exchange.length for _, exchange in kept)
    return [
        Row(
            task_id,
            one.prompt,
            length or 0,
            one.answer,
            one.category,
            one.model,
            one.finish_reason,
        )
        for (task_id, one), length in zip(kept, lengths, strict=True)
    ], dropped


def _no_pair(name: str, lengths: list[float], config: PrepareConfig) -> DataError:
    if len(lengths) < 2:
        told = f"has {len(lengths)} usable rows, and a pair takes two: give more rows"
    elif len(set(lengths)) == 1:
        told = f"has {len(lengths):,} answers, all of length {lengths[0]}: there is nothing to rank"
    else:
        told = f"has no pair whose lengths differ by {config.threshold}: lower --threshold"
    return DataError.at(config.input or config.dataset or "", f"its {name} split {told}")


def _write_all(
    plan: dict[str, Callable[[IO[bytes]], None]], report: dict[str, Any], output_dir: Path
) -> None:
    def write_report(file: IO[bytes]) -> None:
        file.write(utf8(json.dumps(report, indent=2, ensure_ascii=False)) + b"\n")

    # Files take their names last to first: prepare.json when all the others have theirs.
    with ExitStack() as stack:
        for name, write in {"prepare.json": write_report, **plan}.items():
            file = stack.enter_context(written_whole(output_dir / name))
            try:
                write(file)
                file.flush()  # a full disk must show before the first file takes its name
            except OSError as error:
                reason = error.strerror or error
                raise ParsError(f"{output_dir / name}: cannot be written: {reason}") from error


def _shown(items: Iterable[_T], doing: str) -> Iterable[_T]:
    """`items` with a progress bar, in a terminal and once they take a while."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return cast(
        Iterable[_T], tqdm(items, desc=doing, delay=_SHOW_AFTER_S, leave=False, disable=None)
    )


def _versions() -> dict[str, str]:
    versions = {"pars": __version__, "python": platform.python_version()}
    for name in ("numpy", "datasets", "tokenizers"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def render_report(report: dict[str, Any], output_dir: Path) -> str:
    """What `pars prepare` shows of its report: counts by split, then the files."""
    counts = report["counts"]
    lines = [f"{'rows read':<26}{counts['rows_read']:>10,}"]
    unwanted = ", ".join(f"{name}={value}" for name, value in report["where"])
    if unwanted:
        lines.append(f"{f'without {unwanted}':<26}{counts['rows_unwanted']:>10,}")
    lines += [
        f"{f'left out: {reason}':<26}{count:>10,}" for reason, count in counts["left_out"].items()
    ]
    num_read = counts["rows_read"] - counts["rows_unwanted"] - sum(counts["left_out"].values())
    if counts["exchanges"] != num_read:
        lines.append(f"{'prompts with answers':<26}{counts['exchanges']:>10,}")
    if "bytes_cut_off" in counts:
        lines.append(f"{'bytes cut off at the end':<26}{counts['bytes_cut_off']:>10,}")
    lines += ["", f"{'':<26}{'train':>10}{'val':>10}"]
    for label, name in {
        "prompts": "rows",
        "dropped: no prompt": "dropped_no_prompt",
        "dropped: no answer": "dropped_no_answer",
        "pairs": "pairs",
        "pairs short of wanted": "pairs_short",
    }.items():
        lines.append(f"{label:<26}{counts['train'][name]:>10,}{counts['val'][name]:>10,}")
    settings = f"answers measured in {report['length_unit']}, threshold {report['threshold']}"
    return "\n".join([*lines, "", settings, *(f"{output_dir / name}" for name in report["files"])])
