"""The pictures. Needs the `plot` extra; draws to files only, whatever display there is."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pars.files import written_whole
from pars.learn.evaluation.evaluate import Evaluation


def learning_curve(history: list[dict[str, Any]], path: Path) -> None:
    """Loss, and order on held-out prompts, against epochs, as PNG."""
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, order = figure.subplots(1, 2)
    loss.plot(epochs, [entry["train_loss"] for entry in history], marker="o", label="training")
    loss.plot(epochs, [entry["val_loss"] for entry in history], marker="o", label="held out")
    loss.set(xlabel="epoch", ylabel="pairwise loss", title="Loss", xticks=epochs)
    order.plot(
        epochs, [entry["val_accuracy"] for entry in history], marker="o", label="pairwise accuracy"
    )
    if all(entry["tau_b"] is not None for entry in history):
        taus = [entry["tau_b"] for entry in history]
        order.plot(epochs, taus, marker="o", label="Kendall tau-b, all pairs")
    order.set(xlabel="epoch", title="Order of held-out prompts", xticks=epochs)
    for axes in (loss, order):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)


def evaluation(e: Evaluation, path: Path) -> None:
    """Tau-b of every predictor with its interval, and answer lengths by the ranker's score."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    order, deciles = figure.subplots(1, 2)
    groups = {"all": e.overall, **e.by_category}
    names = [name for name in e.overall if name != "oracle"]
    width = 0.8 / len(names)
    for offset, name in enumerate(names):
        estimates = [orders[name].tau_b for orders in groups.values()]
        values = np.array([x.value for x in estimates])
        errors = np.array([(x.value - x.low, x.high - x.value) for x in estimates]).T
        positions = np.arange(len(groups)) + (offset - (len(names) - 1) / 2) * width
        order.bar(
            positions,
            values,
            width,
            yerr=np.clip(np.nan_to_num(errors), 0, None),
            capsize=2,
            label=name,
        )
    labels = [f"{group}\n({orders[names[0]].num_rows:,})" for group, orders in groups.items()]
    order.set_xticks(range(len(groups)), labels)
    order.set(ylabel="Kendall tau-b, all pairs", title="Order of held-out prompts (1 is perfect)")
    order.axhline(0, color="black", linewidth=0.8)
    deciles.bar(range(1, len(e.deciles) + 1), e.deciles, color="tab:blue")
    deciles.set(
        xlabel="tenth of the prompts, by the ranker's score",
        ylabel="mean answer length",
        title="What the ranker calls short is short",
        xticks=range(1, len(e.deciles) + 1),
    )
    order.legend(frameon=False)
    for axes in (order, deciles):
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
