"""What a ranker says of itself: the contents of ranker.json, checked."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pars.errors import RankerError
from pars.files import write_json

# 2: a lite ranker's tokenizer says which features and marks it was trained with. 3: `reads_notes`
# says whether the ranker knows notes of the conversation before a message.
FORMAT_VERSION = 3
INFO_FILE = "ranker.json"
KINDS = ("encoder", "lite")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerInfo:
    """The contents of ranker.json."""

    kind: str  # "encoder" or "lite"
    model_name: str
    max_length: int  # tokens (encoder) or words (lite) read from a prompt's start
    reads_notes: bool = False  # of a prompt's conversation: whether it was trained on such
    format_version: int = FORMAT_VERSION
    pars_version: str = ""
    int8_tau_b: float | None = None  # between 8-bit and float32 scores of held-out prompts
    tau_b: dict[str, float | None] | None = None  # on validation prompts: value, low, high
    trained_on: dict[str, Any] = field(default_factory=dict)
    length_unit: str = "tokens"  # of the answer lengths it was trained on
    # 101 scores at the quantiles 0, 0.01, … 1 of the validation prompts, and the expected answer
    # tokens at each, which never fall as the score rises. None without validation data.
    score_quantiles: list[float] | None = None
    expected_tokens: list[float] | None = None
    # By "0.1", "0.5", "0.9": the tokens that this share of the answers stays within, [101] each.
    token_quantiles: dict[str, list[float]] | None = None

    @classmethod
    def read(cls, folder: Path) -> "RankerInfo":
        """
        Read ranker.json; fields of a later version are ignored.

        Raises:
            RankerError: no such folder or file, or it is not what pars writes.
        """
        path = folder / INFO_FILE
        if not folder.is_dir():
            raise RankerError(
                f"{folder}: no such ranker folder (`pars train` and `pars export` make one)"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            info = cls(**{name: value for name, value in values.items() if name in known})
        except FileNotFoundError:
            raise RankerError(f"{folder}: not a ranker folder: {INFO_FILE} is missing") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RankerError(f"{path}: damaged: {error}") from error
        _check_finite(path, values)
        if info.format_version > FORMAT_VERSION or info.kind not in KINDS:
            raise RankerError(
                f"{path}: kind {info.kind!r}, format {info.format_version}: made for a later pars; "
                f"this one reads {', '.join(KINDS)} up to format {FORMAT_VERSION}"
            )
        return info

    def write(self, folder: Path) -> None:
        """Write ranker.json into `folder`, whole or not at all."""
        write_json(folder / INFO_FILE, asdict(self))


def _check_finite(path: Path, value: Any, name: str = "") -> None:
    """
    Refuse NaN and infinity anywhere in ranker.json: they would reach every request's place.

    Raises:
        RankerError: names the field.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise RankerError(f"{path}: damaged: field {name!r} holds {value}, no finite number")
    parts = value.items() if isinstance(value, dict) else ()
    for inner_name, inner in parts:
        _check_finite(path, inner, f"{name}.{inner_name}" if name else inner_name)
    if isinstance(value, list):
        for place, inner in enumerate(value):
            _check_finite(path, inner, f"{name}[{place}]")
