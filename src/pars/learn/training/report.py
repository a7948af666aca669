"""What a training shows while it runs: a progress bar, a line an epoch, a picture at the end."""

import sys
from pathlib import Path
from typing import Any


def progress_bar(total: int, done: int, title: str, is_shown: bool) -> Any:
    from tqdm import tqdm

    # A terminal sees it move; a log file gets a line now and then.
    every_s = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, initial=done, desc=title, unit="batch", disable=not is_shown, leave=False,
        mininterval=every_s, miniters=1 if sys.stderr.isatty() else None,
    )  # fmt: skip


def say(line: str) -> None:
    """A line for the person who waits, beside the progress bar."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - training is a command's whole report


def epoch_line(entry: dict[str, Any]) -> str:
    tau = "" if entry["tau_b"] is None else f", tau-b {entry['tau_b']:.4f}"
    return (
        f"Epoch {entry['epoch']}: train loss {entry['train_loss']:.4f}, val loss "
        f"{entry['val_loss']:.4f}, val accuracy {entry['val_accuracy']:.4f}{tau}, "
        f"{entry['train_s']:.1f} s"
    )


def draw_learning_curve(history: list[dict[str, Any]], path: Path) -> None:
    try:
        from pars.learn.evaluation.plots import learning_curve
    except ImportError:
        say("no learning_curve.png: it needs the 'plot' extra")
        return
    learning_curve(history, path)
