"""
The two files of a batch as one log: what was asked, and what came back, joined by their ids.

OpenAI, vLLM's `run-batch` and Anthropic name a row `custom_id`, Gemini names it `key`. Answers come
in any order.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.learn.data.rows import OnCut, read_rows

IDS = ("custom_id", "key")


def read_log(
    path: Path, requests: Path | None = None, *, on_cut: OnCut | None = None
) -> Iterator[dict[str, Any]]:
    """
    The rows of a file, each with the fields of its request in `requests`, where it is given.

    An answer whose request is not there keeps its own fields, and so counts as one without prompt.

    Raises:
        DataError: a file cannot be read, a row has no id, or no row has a request.
    """
    rows = read_rows(path, on_cut=on_cut)
    if requests is None:
        yield from rows
        return
    asked: dict[str, dict[str, Any]] = {}
    for number, request in enumerate(read_rows(requests), 1):
        asked[_id_of(request, requests, number)] = request
    num_joined = number = 0
    for number, row in enumerate(rows, 1):
        request = asked.get(_id_of(row, path, number), {})
        num_joined += bool(request)
        yield {**request, **row}
    if number and not num_joined:
        raise DataError.at(path, f"none of its rows answers one of {requests}")


def _id_of(row: Mapping[str, Any], at: Path, number: int) -> str:
    for name in IDS:
        if isinstance(row.get(name), str | int):
            return str(row[name])
    raise DataError.at(at, f"has no {' and no '.join(IDS)} to join it by", row=number)
