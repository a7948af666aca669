"""The options of a training: checked once, compared when one is continued."""

import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pars.errors import ParsError
from pars.learn.data.record_reader import Names

PAIRWISE = ("pairwise-margin", "pairwise-logistic")
OBJECTIVES = (*PAIRWISE, "pointwise", "listmle", "classes", "log-t", "quantiles")
POOLINGS = ("auto", "mean", "cls", "last")
PRECISIONS = ("auto", "float32", "bfloat16")

# Options that metrics.json repeats: PARS's eight, then ours.
REPORTED = (
    "train_file", "val_file", "model_name", "batch_size", "num_epochs", "learning_rate", "margin",
    "max_length", "train_data", "val_data", "model", "objective", "label_temperature", "threshold",
    "seed", "precision", "pooling",
)  # fmt: skip
# Options that may differ when a training is continued: they change where, not what.
MAY_DIFFER = {"output_dir", "resume_from", "num_workers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """
    All options of a training; the defaults are PARS's.

    Either `train_file` and `val_file` (pair files) or `train_data` and `val_data` (prompts with
    answer lengths) are given, and their fields if those are not found. With pair files,
    `val_data` beside them lets tau-b be reported too. 0 epochs are as many as the number of rows
    asks for (`with_epochs`). `precision` is of an encoder's matrix products: auto takes the
    faster that the device has. `pooling` is how its tokens' vectors become one: auto is the
    pooler of an encoder that has one, else its first token (PARS), and the last token of a
    decoder.
    """

    output_dir: Path
    train_file: Path | None = None
    val_file: Path | None = None
    train_data: Path | None = None
    val_data: Path | None = None
    prompt_field: str | None = None
    answer_field: str | None = None
    length_field: str | None = None
    model: str = "encoder"
    model_name: str = "bert-base-uncased"
    max_length: int = 128
    batch_size: int = 128
    num_epochs: int = 3
    learning_rate: float = 2e-5
    objective: str = "pairwise-margin"
    margin: float = 1.0
    threshold: float = 0.2
    label_temperature: float = 0.0
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    num_workers: int = 0
    precision: str = "auto"
    pooling: str = "auto"
    seed: int = 42
    resume_from: Path | None = None

    @property
    def names(self) -> Names:
        """Of the fields of the data: prompt, answer and length."""
        return self.prompt_field, self.answer_field, self.length_field

    def __post_init__(self) -> None:
        """Raises ParsError naming the option that is wrong."""
        pairs, data = (self.train_file, self.val_file), (self.train_data, self.val_data)
        if not all(pairs) and not all(data):
            raise ParsError(
                "give --train-file and --val-file (pair files), or --train-data and --val-data "
                "(prompts with answer lengths): `pars prepare` writes all four"
            )
        if any(pairs) and self.train_data:
            raise ParsError("--train-file and --train-data are two ways in: give one of them")
        _check(self.model in ("encoder", "lite"), "--model", "encoder or lite", self.model)
        for name, known in (("objective", OBJECTIVES), ("pooling", POOLINGS)):
            value = getattr(self, name)
            _check(value in known, name, f"one of {', '.join(known)}", value)
        if self.train_file and self.objective not in PAIRWISE:
            raise ParsError(
                f"--objective {self.objective} needs lengths: give --train-data and --val-data"
                " in place of --train-file, which has pairs"
            )
        _check(self.precision in PRECISIONS, "--precision", ", ".join(PRECISIONS), self.precision)
        for name in ("max_length", "batch_size"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _check(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        for name in ("threshold", "warmup_ratio"):
            _check(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))
        for name in (
            "num_epochs",
            "seed",
            "margin",
            "label_temperature",
            "weight_decay",
            "num_workers",
        ):
            _check(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))


def _check(is_right: bool, name: str, wanted: str, value: object) -> None:
    if not is_right:
        option = name if name.startswith("--") else "--" + name.replace("_", "-")
        raise ParsError(f"{option} must be {wanted}, not {value}")


# Where each default comes from is said in benchmarks/results, "What to train, and how".
LITE_DEFAULTS: dict[str, Any] = {
    "model_name": "lite",
    "max_length": 256,
    "batch_size": 64,
    "num_epochs": 0,
    "learning_rate": 3e-3,
    "objective": "pairwise-logistic",
    "threshold": 0.0,
    "label_temperature": 0.5,
    "weight_decay": 0.0,
}
SMALL_DEFAULTS: dict[str, Any] = {
    "model_name": "sentence-transformers/all-MiniLM-L6-v2",
    "batch_size": 64,
    "num_epochs": 2,
    "learning_rate": 1e-4,
    "objective": "pairwise-logistic",
    "threshold": 0.0,
    "label_temperature": 0.5,
}
FEWEST_EPOCHS, MOST_EPOCHS, ROWS_TO_SEE = 3, 12, 6_000
# A preset is a model and its defaults: `base` is PARS as published, whose defaults TrainConfig has.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "lite": ("lite", LITE_DEFAULTS),
    "small": ("encoder", SMALL_DEFAULTS),
    "base": ("encoder", {}),
}


def with_epochs(config: TrainConfig, num_rows: int) -> TrainConfig:
    """With 0 epochs replaced: few rows are seen more often, since steps are what is lacking."""
    if config.num_epochs:
        return config
    return replace(config, num_epochs=min(MOST_EPOCHS, max(FEWEST_EPOCHS, ROWS_TO_SEE // num_rows)))


def with_preset(preset: str | None, model: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """
    The arguments of a `TrainConfig`: what is given, and for the rest the preset's defaults.

    Args:
        preset: a name of PRESETS; without one, `model` says which: lite, or base for an encoder.

    Raises:
        ParsError: `preset` and `model` contradict each other.
    """
    chosen = preset or ("lite" if model == "lite" else "base")
    preset_model, defaults = PRESETS[chosen]
    if model and model != preset_model:
        raise ParsError(f"--preset {chosen} is --model {preset_model}, not {model}: give one")
    return {"model": preset_model, **defaults, **given}


def check_effect(given: Collection[str], config: TrainConfig) -> None:
    """
    Refuse options that would change nothing, since whoever gives one expects an effect.

    Args:
        given: names of the options that were given, by field of `config`.

    Raises:
        ParsError: names the first such option, and what it would need.
    """
    from_pairs = config.train_file is not None
    without_effect = {
        "model_name": config.model == "lite" and "--model encoder",
        "precision": config.model == "lite" and "--model encoder",
        "pooling": config.model == "lite" and "--model encoder",
        "margin": config.objective != "pairwise-margin" and "--objective pairwise-margin",
        "label_temperature": (
            config.objective != "pairwise-logistic" and "--objective pairwise-logistic"
        )
        or (from_pairs and "--train-data"),
        "threshold": from_pairs and "--train-data (a pair file's threshold is in its name)",
    }
    for name, needed in without_effect.items():
        if name in given and needed:
            raise ParsError(f"--{name.replace('_', '-')} has no effect without {needed}")


def fingerprint(config: TrainConfig) -> str:
    """The options that make a training the one it is, as JSON."""
    chosen = {f.name: _identity(getattr(config, f.name)) for f in fields(config)}
    return json.dumps({k: v for k, v in chosen.items() if k not in MAY_DIFFER})


def check_same_training(saved: str, given: str, source: Path) -> None:
    before, now = json.loads(saved), json.loads(given)
    for name in now:
        if before.get(name) != now[name]:
            raise ParsError(
                f"--resume-from {source}: was started with --{name.replace('_', '-')} "
                f"{before.get(name)}, not {now[name]}: give the same options"
            )


def _identity(value: Any) -> Any:
    """A file is what it holds, wherever it lies; anything else is itself."""
    if not isinstance(value, Path) or not value.is_file():
        return plain(value)
    data = value.read_bytes()
    return f"{len(data)} bytes, CRC-32 {zlib.crc32(data):08x}"


def plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
