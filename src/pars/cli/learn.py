"""Commands of the learn lane that make a ranker: prepare, train, export."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from pars.errors import MissingExtra, ParsError
from pars.learn.training.config import OBJECTIVES, POOLINGS

SOURCE_NAMES = ("alpaca", "code", "lmsys", "math", "sharegpt", "records")
_F = TypeVar("_F", bound=Callable[..., Any])
LENGTH_UNITS = ("words", "characters", "tokens")
TRAINING = ("torch", "transformers", "onnx", "onnxscript", "tqdm")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def option(name: str, kind: Any, default: Any, text: str) -> Callable[[_F], _F]:
    """An option whose default PARS or lite decides: unset unless the user sets it."""
    return click.option(name, type=kind, default=None, help=f"{text}  [default: {default}]")


def need(command: str, libraries: tuple[str, ...]) -> None:
    """Say at once, and not after an hour's work, that an optional library is missing."""
    if not all(find_spec(library) for library in libraries):
        raise MissingExtra(command, "train")


_FIELD_OPTIONS = (
    click.option("--prompt-field", help="The prompt's field, as a.b.c.  [default: found]"),
    click.option("--answer-field", help="The answer's text, to be counted.  [default: found]"),
    click.option("--length-field", help="The answer's length.  [default: found]"),
)


def field_options(command: _F) -> _F:
    """The options that name the fields of records, for every command that reads some."""
    for add in reversed(_FIELD_OPTIONS):
        command = add(command)
    return command


def names_in(asked: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """What `field_options` gave: the names of the fields of prompt, answer and length."""
    return asked["prompt_field"], asked["answer_field"], asked["length_field"]


def conditions(where: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """--where FIELD=VALUE, taken apart."""
    parted = tuple((name, value) for name, _, value in (one.partition("=") for one in where))
    if not all(name for name, _ in parted) or not all("=" in one for one in where):
        raise ParsError(f"--where takes FIELD=VALUE, not {' '.join(where)}")
    return parted


@click.command()
@click.argument("source", type=click.Choice(SOURCE_NAMES))
@click.option("--output-dir", type=FOLDER, required=True, help="Where the files are written.")
@click.option(
    "--input", type=click.Path(path_type=Path), help="JSON, JSONL, CSV, Parquet, or a .gz."
)
@click.option(
    "--requests", type=click.Path(path_type=Path), help="Of a batch: what --input answers."
)
@click.option("--dataset", help="Another Hub dataset of this shape, or a local dataset folder.")
@click.option("--revision", help="Branch, tag or commit of the Hub dataset.")
@click.option("--allow-truncated", is_flag=True, help="Keep the whole rows of a file cut short.")
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@field_options
@option("--length-unit", click.Choice(LENGTH_UNITS), "by source", "How answers are measured.")
@click.option("--tokenizer", help="For tokens: a tokenizer.json, a folder with one, a Hub name.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of split and pairs.")
@click.option("--test-size", type=float, default=0.1, show_default=True, help="Validation's share.")
@click.option(
    "--threshold",
    "--similarity-threshold",
    type=float,
    default=0.2,
    show_default=True,
    help="Least relative length difference of a pair.",
)
@option("--train-num-pairs", int, "10; lmsys 50", "Pairs a prompt to train on.")
@option("--val-num-pairs", int, "10; lmsys 5", "Pairs a prompt to validate on.")
@option(
    "--group-by-prompt/--no-group-by-prompt",
    bool,
    "on for records and sharegpt",
    "Never put one prompt in both splits.",
)
def prepare(output_dir: Path, where: tuple[str, ...], **options: Any) -> None:
    """Make training data of prompts and their answers, or lengths."""
    from pars.learn.data.prepare import prepare as run
    from pars.learn.data.prepare import render_report
    from pars.learn.data.prepare_config import PrepareConfig

    report = run(PrepareConfig(where=conditions(where), **options), output_dir)
    print(render_report(report, output_dir))


@click.command()
@click.option("--train-file", type=FILE, help="Pairs to train on (prompt_A, prompt_B, label).")
@click.option("--val-file", type=FILE, help="Pairs to validate on.")
@click.option("--train-data", type=FILE, help="Prompts with answer lengths: the faster way in.")
@click.option("--val-data", type=FILE, help="Prompts with answer lengths to validate on.")
@field_options
@click.option("--output-dir", type=FOLDER, required=True, help="Where everything is written.")
@click.option(
    "--preset",
    type=click.Choice(["lite", "small", "base"]),
    help="A model with the defaults that won: lite, a MiniLM, or BERT base as PARS trains it.",
)
@option(
    "--model",
    click.Choice(["encoder", "lite"]),
    "encoder",
    "lite: small and trained from scratch in seconds.",
)
@option(
    "--model-name",
    str,
    "bert-base-uncased; small all-MiniLM-L6-v2",
    "Hugging Face encoder: a folder or a Hub name.",
)
@option("--max-length", int, "128; lite 256", "Tokens (lite: words) that are read.")
@option("--batch-size", int, "128; small, lite 64", "Pairs of a pair file, or prompts, in a step.")
@option(
    "--num-epochs", int, "3; small 2; lite 3 to 12, more of few prompts", "Passes over the data."
)
@option("--learning-rate", float, "2e-5; small 1e-4; lite 3e-3", "Highest learning rate of AdamW.")
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    help="What is asked of the ranker; all but the pairwise ones need --train-data."
    "  [default: pairwise-margin; small, lite pairwise-logistic]",
)
@option("--margin", float, "1.0", "Of pairwise-margin.")
@option(
    "--threshold", float, "0.2; small, lite 0", "Least relative length difference (--train-data)."
)
@option(
    "--label-temperature",
    float,
    "0: certain; small, lite 0.5",
    "Softens pairwise-logistic labels of pairs that differ little (--train-data).",
)
@option(
    "--pooling",
    click.Choice(POOLINGS),
    "auto: pooler or first token; of decoders the last",
    "How an encoder's tokens become one vector.",
)
@option("--warmup-ratio", float, "0.1", "Share of the steps with a rising learning rate.")
@option("--weight-decay", float, "0.01; lite 0", "Of AdamW.")
@option("--num-workers", int, "0", "Threads that tokenize; 0: one a core.")
@option(
    "--precision",
    click.Choice(["auto", "float32", "bfloat16"]),
    "auto",
    "Of an encoder's matrix products.",
)
@option("--seed", int, "42", "Of weights, order and dropout.")
@click.option(
    "--resume-from",
    type=click.Path(path_type=Path),
    help="An output folder to continue after Ctrl-C, or a .pt whose weights to start from.",
)
def train(preset: str | None, model: str | None, **options: Any) -> None:
    """Train a ranker from pairs of prompts or from answer lengths."""
    need("pars train", TRAINING)
    from pars.learn.training.config import TrainConfig, check_effect, with_preset
    from pars.learn.training.train import train as run

    given = {name: value for name, value in options.items() if value is not None}
    config = TrainConfig(**with_preset(preset, model, given))
    check_effect(given, config)
    metrics = run(config)
    if metrics:
        folder = given["output_dir"]
        tau_b = metrics["tau_b"]
        order = (
            ""
            if tau_b is None or tau_b["value"] is None
            else (f", Kendall tau-b {tau_b['value']:.3f} [{tau_b['low']:.3f}, {tau_b['high']:.3f}]")
        )
        print(f"Held out: pairwise accuracy {metrics['best_val_accuracy']:.3f}{order}")
        print(f"{metrics['seconds']:.1f} s, {metrics['prompts_per_second']:,.0f} prompts/s")
        print(f"Ranker: {folder / 'ranker'} (try: pars serve --ranker {folder / 'ranker'})")


@click.command()
@click.option("--checkpoint", type=FILE, required=True, help="best_model.pt of PARS or pars.")
@click.option("--model-name", required=True, help="The encoder it was trained from.")
@click.option("--max-length", type=int, default=128, show_default=True)
@click.option("--output-dir", type=FOLDER, required=True, help="The ranker folder to write.")
@click.option("--val-data", type=FILE, help="Held-out prompts with lengths, for the calibration.")
@click.option("--reads-notes", is_flag=True, help="It was trained with conversations' notes.")
@click.option("--pooling", default="auto", show_default=True, help="What it was trained with.")
@click.option("--objective", default="pairwise-margin", show_default=True, help="Likewise.")
def export(
    checkpoint: Path,
    model_name: str,
    max_length: int,
    output_dir: Path,
    val_data: Path | None,
    reads_notes: bool,
    pooling: str,
    objective: str,
) -> None:
    """Make a portable ranker folder from a PyTorch checkpoint."""
    need("pars export", TRAINING)
    from pars.learn.training.export import export_checkpoint

    export_checkpoint(
        checkpoint,
        model_name,
        output_dir,
        max_length=max_length,
        val_data=val_data,
        reads_notes=reads_notes,
        pooling=pooling,
        objective=objective,
    )
    print(f"Ranker: {output_dir} (try: pars serve --ranker {output_dir})")


LEARN_COMMANDS: tuple[click.Command, ...] = (prepare, train, export)
