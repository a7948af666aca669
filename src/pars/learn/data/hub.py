"""
What comes from the Hugging Face Hub: the rows of a dataset, and a tokenizer to count with.

The Hub's libraries retry for half a minute when it cannot be reached, so it is asked one quick
question first. HF_HUB_OFFLINE=1 leaves that out and uses what was downloaded before.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pars.errors import DataError, MissingExtra, ParsError
from pars.learn.data.fields import field_of, is_wanted
from pars.learn.data.record_reader import NumberedRows
from pars.learn.data.sources import Where
from pars.learn.data.tables import first_line

HUB_TIMEOUT_S = 5.0
_ROWS_PER_LOOK = 10_000


def hub_rows(
    dataset: str, revision: str | None, data_files: str | None, where: Where, counts: Counter[str]
) -> NumberedRows:
    """
    The wanted rows of the train split of a Hub dataset, or of a folder that `load_dataset` takes.

    Raises:
        DataError: it cannot be reached or loaded, or it has no train split.
        MissingExtra: `datasets` is not installed.
    """
    rows = _train_split(dataset, revision, data_files)
    counts["rows_read"] += len(rows)
    wanted: Iterable[int] = range(len(rows))
    if where and len(rows):
        # Looks at the compared columns alone: lmsys keeps a few of a million conversations.
        for name, _ in where:
            field_of(rows[0], name, dataset, 1)
        columns = rows.select_columns([name for name, _ in where]).iter(_ROWS_PER_LOOK)
        compared = (
            dict(zip(batch, values, strict=True))
            for batch in columns
            for values in zip(*batch.values(), strict=True)
        )
        wanted = [
            index for index, row in enumerate(compared) if is_wanted(row, where, dataset, index + 1)
        ]
        rows = rows.select(wanted)
    for index, row in zip(wanted, rows, strict=True):
        yield index + 1, row


def _train_split(dataset: str, revision: str | None, data_files: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("loading a dataset", "train") from error
    if not Path(dataset).is_dir() and not datasets.config.HF_HUB_OFFLINE:
        ask_hub_for("dataset", dataset, revision, "read a file with --input")
    try:
        loaded = datasets.load_dataset(dataset, revision=revision, data_files=data_files)
    except Exception as error:  # it raises whatever its builders, readers and transports raise
        raise DataError.at(dataset, f"cannot be loaded: {first_line(error)}") from error
    if "train" not in loaded:
        raise DataError.at(dataset, f"has no train split; its splits: {', '.join(loaded)}")
    return loaded["train"]


def load_tokenizer(place: str) -> Any:
    """
    The `tokenizers.Tokenizer` of a tokenizer.json, a folder with one, or a Hub model; no limits.

    Raises:
        ParsError: there is none at `place`, or it cannot be read.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from tokenizers import Tokenizer

    path = Path(place)
    try:
        if path.exists():
            file = path / "tokenizer.json" if path.is_dir() else path
        elif isinstance(cached := try_to_load_from_cache(place, "tokenizer.json"), str):
            file = Path(cached)
        else:
            if not constants.HF_HUB_OFFLINE:
                ask_hub_for("model", place, None, "give a tokenizer.json")
            file = Path(hf_hub_download(place, "tokenizer.json"))
        tokenizer = Tokenizer.from_file(str(file))
    except ParsError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        told = f"no tokenizer at {place}: {first_line(error)}"
        raise ParsError(
            f"{told}; give a tokenizer.json, a folder with one, or a Hub name"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ask_hub_for(kind: str, name: str, revision: str | None, otherwise: str) -> None:
    """
    Ask the Hub whether it has a "dataset" or "model", within a few seconds.

    Raises:
        DataError: it has not, or cannot be reached; `otherwise` is what to do then.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # as above
        remedy = f"check the name, the revision and the network, or {otherwise}"
        problem = f"cannot be had from the Hub ({first_line(error)}): {remedy}"
        raise DataError.at(f"{kind} {name}", problem) from error
