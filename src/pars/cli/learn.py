"""Commands of the learn lane: prepare, train, export, evaluate, noise."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from pars.errors import MissingExtra, ParsError

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
@click.option("--prompt-field", help="Of records: its field, as a.b.c.  [default: found]")
@click.option("--answer-field", help="Of records: the answer's text.  [default: found]")
@click.option("--length-field", help="Of records: the answer's length.  [default: found]")
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
@option(
    "--loss", click.Choice(["margin", "logistic"]), "margin; small, lite logistic", "Of a pair."
)
@option("--margin", float, "1.0", "Of the margin loss.")
@option(
    "--threshold", float, "0.2; small, lite 0", "Least relative length difference (--train-data)."
)
@option(
    "--label-temperature",
    float,
    "0: certain; small, lite 0.5",
    "Softens logistic labels of pairs that differ little (--train-data).",
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
def export(
    checkpoint: Path,
    model_name: str,
    max_length: int,
    output_dir: Path,
    val_data: Path | None,
    reads_notes: bool,
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
    )
    print(f"Ranker: {output_dir} (try: pars serve --ranker {output_dir})")


@click.command()
@click.option(
    "--ranker",
    metavar="RANKER",
    help="A ranker folder, or module:object with score(list[str]).  [default: the bundled one]",
)
@click.option("--data", type=FILE, help="val_data.json, or prompts with lengths.")
@click.option(
    "--online",
    type=FILE,
    help="Instead: replay this file in its order with the ranker that learns while it serves.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (with --online).")
@click.option("--train-data", type=FILE, help="What TF-IDF is fitted on.  [default: other folds]")
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@click.option("--threshold", type=float, default=0.2, show_default=True, help="Of filtered pairs.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="For the intervals.")
@click.option("--output-dir", type=FOLDER, help="Also write evaluation.json and evaluation.png.")
def evaluate(
    ranker: str | None,
    data: Path | None,
    online: Path | None,
    as_json: bool,
    train_data: Path | None,
    where: tuple[str, ...],
    threshold: float,
    resamples: int,
    output_dir: Path | None,
) -> None:
    """Compare a ranker's order with that of the answers' lengths."""
    from pars.files import write_json

    if online is not None:
        if data is not None or ranker is not None:
            raise ParsError("--online takes no --data and no --ranker: it begins with nothing")
        _evaluate_online(online, where, as_json)
        return
    if data is None:
        raise ParsError("give --data FILE, or --online FILE")
    need("pars evaluate", ("sklearn", "matplotlib"))
    from pars.learn.evaluation.evaluate import evaluate as run
    from pars.learn.evaluation.evaluate import render
    from pars.ranking.ranker import bundled_ranker

    if not 0 <= threshold <= 1:
        raise ParsError(f"--threshold must be between 0 and 1, not {threshold}")
    if resamples < 100:
        raise ParsError(f"--resamples must be at least 100, not {resamples}")
    result = run(
        ranker or bundled_ranker(),
        data,
        train_data=train_data,
        threshold=threshold,
        num_resamples=resamples,
        where=conditions(where),
    )
    print(render(result))
    if output_dir:
        write_json(output_dir / "evaluation.json", result.as_json())
        from pars.learn.evaluation import plots

        plots.evaluation(result, output_dir / "evaluation.png")
        print(f"Written: {output_dir / 'evaluation.json'}, {output_dir / 'evaluation.png'}")


def _evaluate_online(records: Path, where: tuple[str, ...], as_json: bool) -> None:
    import json

    from pars.learn.evaluation.online import evaluate_online, render

    result = evaluate_online(records, where=conditions(where))
    print(json.dumps(result.as_json(), indent=2) if as_json else render(result))


@click.command()
@click.option("--data", type=FILE, required=True, help="Prompts with several answers, or lengths.")
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="For the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling.")
@click.option("--output-dir", type=FOLDER, help="Also write noise.json.")
def noise(
    data: Path, where: tuple[str, ...], resamples: int, seed: int, output_dir: Path | None
) -> None:
    """Estimate the best possible tau-b from repeated answers."""
    from pars.files import write_json
    from pars.learn.evaluation.noise import measure_noise
    from pars.learn.evaluation.noise_report import render

    if resamples < 100:
        raise ParsError(f"--resamples must be at least 100, not {resamples}")
    result = measure_noise(data, num_resamples=resamples, where=conditions(where), seed=seed)
    print(render(result))
    if output_dir:
        write_json(output_dir / "noise.json", result.as_json())
        print(f"Written: {output_dir / 'noise.json'}")


LEARN_COMMANDS: tuple[click.Command, ...] = (prepare, train, export, evaluate, noise)
