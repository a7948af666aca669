"""
Draws order against cost: every network of the experiments, by data set.

    python experiments/pareto.py        # experiments/results.jsonl -> docs/pareto.png

Cost is CPU time to read and score a prompt in batches of 32, in torch on one core; what the
exported graphs take is in docs/results.md, "The score service".
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]


def main() -> None:
    lines = (ROOT / "experiments/results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    own = [it for it in results if it["experiment"] in ("network", "encoder")]
    data_sets = list(dict.fromkeys(it["spec"]["data"] for it in own))
    figure, axes = plt.subplots(1, len(data_sets), figsize=(5 * len(data_sets), 3.6), squeeze=False)
    for axis, data in zip(axes[0], data_sets, strict=True):
        for line in [*filter(is_usual, results), *own]:
            if line["spec"]["data"] == data:
                draw(axis, line)
        axis.set(xscale="log", title=f"{data}, {own[0]['num_train']:,} training prompts")
        axis.set(xlabel="CPU µs a prompt", ylabel="Kendall tau-b, held out")
        axis.margins(x=0.3, y=0.15)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/pareto.png", dpi=90)


def is_usual(line: dict) -> bool:
    """The network of the package, trained as all the others are."""
    spec = line["spec"]
    plain = not spec["network"] and not spec["beyond"] and line["spec"]["num_train"] == 4_000
    return line["experiment"] == "reading" and not spec["reading"] and plain


def draw(axis: plt.Axes, line: dict) -> None:
    spec, tau_b = line["spec"], line["tau_b"]["value"]
    changes = ", ".join(f"{name} {value}" for name, value in spec["network"])
    label = "MiniLM" if spec["model"] == "minilm" else changes or "lite"
    axis.plot(line["score_cpu_us"], tau_b, "o", color="C1" if label in ("lite", "MiniLM") else "C0")
    axis.annotate(label, (line["score_cpu_us"], tau_b), fontsize=7, xytext=(3, 3),
                  textcoords="offset points")  # fmt: skip


if __name__ == "__main__":
    main()
