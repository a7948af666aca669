"""
Fill the generated parts of README.md and docs/; --check says whether they are current.

    python docs/generate.py [--check]

A generated part stands between `<!-- NAME ARGUMENT -->` and `<!-- end -->`. The file map comes from
the first lines of the modules, the settings from their declarations, every number from
benchmarks/results/, which `make bench` writes, or from a results file of experiments/.
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = tuple(
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/api.md",
        "docs/deploy.md",
        "docs/learning.md",
        "docs/serving.md",
        "benchmarks/results/README.md",
        "benchmarks/results/research.md",
    )
)


def main() -> None:
    """Rewrite, or check."""
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(filled, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"not current: {', '.join(map(str, stale))}: run python docs/generate.py")


def fill(text: str) -> str:
    """The text with every generated part made anew."""

    def part(match: re.Match[str]) -> str:
        name, argument = match["name"], match["argument"]
        return f"<!-- {name} {argument} -->\n{PARTS[name](argument)}\n<!-- end -->"

    return re.sub(
        r"<!-- (?P<name>\w+) (?P<argument>[\w/]+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL
    )


def file_map(folder: str) -> str:
    """One line a file of a package and the packages in it: the first sentence of its docstring."""
    root = ROOT / "src" / folder
    lines = []
    for path in sorted(
        root.rglob("*.py"), key=lambda it: (it.parent, it.name != "__init__.py", it)
    ):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.split("\n\n")[0].replace("\n", " ")
        name = path.relative_to(root).as_posix()
        if path.name == "__init__.py" and path.parent != root:
            lines.append(f"| **`{name.removesuffix('__init__.py')}`** | **{first}** |")
        elif not path.name.startswith("__"):
            lines.append(f"| `{name}` | {first} |")
    return "\n".join(["| file | what for |", "|---|---|", *lines])


def dialects(_: str) -> str:
    """The dialects of routers, as `pars.scheduling.dialects` declares them."""
    from pars.scheduling.dialects import DIALECTS

    rows = ["| `--dialect` | what carries the place | the queue is | from |", "|---|---|---|---|"]
    for it in DIALECTS.values():
        how = "ran" if it.was_run else "read, not run"
        rows.append(f"| `{it.name}` | {it.carrier} | {it.queue} | {it.read_in}: {how} |")
    return "\n".join(rows)


def settings(_: str) -> str:
    """Every setting of the serve lane, as `pars.serving.settings` declares it."""
    from pars.serving.settings import settings_table

    return settings_table()


def api(_: str) -> str:
    """Every public name, from its docstring."""
    from api_reference import reference

    return reference()


def printed(name: str) -> str:
    """What a benchmark printed for people."""
    path = RESULTS / f"{name}.txt"
    if not path.is_file():
        return f"*Not measured yet: `bash benchmarks/all.sh {name}`.*"
    return f"```\n{path.read_text(encoding='utf-8').strip()}\n```"


def tau_table(name: str) -> str:
    """Kendall tau-b of every ranker on every data set, as Markdown."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"*Not measured yet: `bash benchmarks/all.sh {name}`.*"
    results = json.loads(path.read_text())
    rankers = ("lite", "MiniLM", "TF-IDF + ridge", "prompt length")
    lines = [f"| held-out prompts | {' | '.join(rankers)} |", f"|---|{'--:|' * len(rankers)}"]
    for data_set, result in results.items():
        cells = [f"{result[r]['tau_b']['value']:.3f}" if r in result else "-" for r in rankers]
        lines.append(f"| {data_set} ({result['lite']['num_rows']:,}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def latency(name: str) -> str:
    """What a policy's order was worth on a real vLLM: means and tails, fcfs first."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"*Not measured yet: `bash benchmarks/all.sh {name}`.*"
    summary = json.loads(path.read_text())["summary"]
    lines = [
        "| order | s per token: mean | p90 | s end to end: mean | longest | of the gain |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for policy, ntpot in summary["ntpot_s"].items():
        end_to_end = summary["end_to_end_s"][policy]
        figures = f"{ntpot['mean']:.3f} | {ntpot['p90']:.3f} | {end_to_end['mean']:.1f}"
        share = f"{ntpot['share_of_oracle_gain']:.0%}"
        lines.append(f"| {policy} | {figures} | {end_to_end['longest']:.1f} | {share} |")
    return "\n".join(lines)


def own_traffic(start: str) -> str:
    """Tau-b against the number of own requests seen: means over seeds, with their range."""
    path = ROOT / "experiments/own_traffic.jsonl"
    if not path.is_file():
        return "*Not measured yet: `python experiments/own_traffic.py`.*"
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    starts = list(dict.fromkeys(run["start"] for run in runs))
    lines = [
        f"| traffic | requests seen | nothing learned | {' | '.join(starts)} | promoted |",
        f"|---|--:|--:|{'--:|' * len(starts)}--:|",
    ]
    for data, num_requests in dict.fromkeys((run["data"], run["num_requests"]) for run in runs):
        same = [run for run in runs if (run["data"], run["num_requests"]) == (data, num_requests)]
        cells = [_spread([run["tau_b"] for run in same if run["start"] == it]) for it in starts]
        judged = [run["is_promoted"] for run in same if run["start"] == start]
        lines.append(
            f"| {data} | {num_requests:,} | {same[0]['tau_b_bundled']:.3f} | {' | '.join(cells)} "
            f"| {sum(judged)} of {len(judged)} |"
        )
    return "\n".join([*lines[:2], *sorted(lines[2:], key=lambda line: line.split("|")[1])])


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    told = f"{sum(values) / len(values):.3f}"
    return told if len(values) == 1 else f"{told} ({min(values):.2f} to {max(values):.2f})"


def experiment(argument: str) -> str:
    """One experiment as a table: what was changed, by data set; NAME or NAME/accuracy."""
    name, _, statistic = argument.partition("/")
    lines = _experiments()
    own = [line for line in lines if line["experiment"] == name]
    if not own:
        return f"*Not measured yet: `python experiments/run.py {name}`.*"
    if name in ("threshold", "seeds"):  # which grew piece by piece
        own.sort(key=lambda line: _changes(line["spec"]))
    sizes = {_size(line) for line in own}
    unchanged = [line for line in lines if _size(line) in sizes and not _changes(line["spec"])]
    data_sets = list(dict.fromkeys(line["spec"]["data"] for line in own))
    cells: dict[str, dict[str, list[str]]] = {}
    for line in [*unchanged, *own]:
        told = f"{line['filtered_accuracy']:.3f}" if statistic else _interval(line["tau_b"])
        label = _changes(line["spec"]) or "**unchanged**"
        if name == "few":
            label = f"{line['num_train']:,} prompts, {label}"
        row = cells.setdefault(label, {})
        row.setdefault(line["spec"]["data"], [told])
    counts = {line["spec"]["data"]: line["num_train"] for line in own}
    heads = [data if name == "few" else f"{data} ({counts[data]:,})" for data in data_sets]
    rows = [
        f"| {label} | {' | '.join(row.get(data, ['-'])[0] for data in data_sets)} |"
        for label, row in cells.items()
    ]
    return "\n".join([f"| | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}", *rows])


def amount(name: str) -> str:
    """Tau-b by the number of training prompts: means over seeds."""
    own = [line for line in _experiments() if line["experiment"] == name]
    if not own:
        return f"*Not measured yet: `python experiments/run.py {name}`.*"
    data_sets = list(dict.fromkeys(line["spec"]["data"] for line in own))
    rows = []
    for asked in dict.fromkeys(line["spec"]["num_train"] for line in own):
        cells = []
        for data in data_sets:
            same = [
                it for it in own if (it["spec"]["num_train"], it["spec"]["data"]) == (asked, data)
            ]
            cells.append(_spread([it["tau_b"]["value"] for it in same]))
        rows.append(f"| {f'{asked:,}' if asked else 'all'} | {' | '.join(cells)} |")
    return "\n".join(
        [f"| prompts | {' | '.join(data_sets)} |", f"|--:|{'--:|' * len(data_sets)}", *rows]
    )


def across(name: str) -> str:
    """Which traffic a ranker was trained on, by which it orders."""
    own = [line for line in _experiments() if line["experiment"] == name]
    if not own:
        return f"*Not measured yet: `python experiments/run.py {name}`.*"
    tested = list(own[-1]["spec"]["tests"])
    rows = []
    for line in own:
        trained = line["spec"]["data"]
        first = tested[0] if "+" in trained else trained
        told = {first: line["tau_b"]} | {it: order["tau_b"] for it, order in line["tests"].items()}
        label = f"all of them ({line['num_train']:,})" if "+" in trained else trained
        cells = [f"{told[it]['value']:.3f}" if it in told else "-" for it in tested]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(
        [f"| trained on | {' | '.join(tested)} |", f"|---|{'--:|' * len(tested)}", *rows]
    )


def pareto(name: str) -> str:
    """Prompts a second of each network beside its tau-b."""
    path = ROOT / f"experiments/{name}.json"
    if not path.is_file():
        return f"*Not measured yet: `python experiments/{name}.py`.*"
    points = json.loads(path.read_text())
    data_sets = list(dict.fromkeys(point["data"] for point in points))
    lines = [
        f"| | {' | '.join(f'{it}, prompts/s | tau-b' for it in data_sets)} |",
        f"|---|{'--:|' * (2 * len(data_sets))}",
    ]
    for network in dict.fromkeys(point["network"] for point in points):
        told = {it["data"]: it for it in points if it["network"] == network}
        cells = [
            f"{told[it]['prompts_per_s']:,} | {told[it]['tau_b']:.3f}" if it in told else "- | -"
            for it in data_sets
        ]
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


# What a training of experiments/run.py is, as far as it does not say otherwise.
USUAL = {
    "model": "lite", "objective": "soft", "epochs": 3, "learning_rate": 3e-3, "batch_size": 128,
    "reading": [], "network": [], "beyond": "", "seed": 0,
}  # fmt: skip
USUAL_OBJECTIVE = "soft:0.5"  # "soft", spelled out
OBJECTIVES = {
    "margin": "margin, pairs ≥ {} apart", "logistic": "logistic, pairs ≥ {} apart",
    "soft": "logistic, soft labels (temperature {})", "listmle": "listMLE",
    "regression": "regression on log length", "classes": "ten classes", "lognormal": "log-normal",
    "logt": "log-t", "quantiles": "nine quantiles",
}  # fmt: skip


def _experiments() -> list[dict]:
    path = ROOT / "experiments/results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _size(line: dict) -> tuple[str, int, int]:
    spec = line["spec"]
    return spec["data"], spec["num_train"], spec["max_length"]


def _changes(spec: dict) -> str:
    """What makes a training another one than usual, in words; nothing for a usual one."""
    told = []
    for name, value in spec.items():
        if name not in USUAL or value in (USUAL[name], USUAL_OBJECTIVE):
            continue
        if name == "objective":
            kind, _, number = value.partition(":")
            told.append(OBJECTIVES[kind].format(number))
        elif name in ("reading", "network"):
            told += [_option(*option) for option in value]
        else:
            told.append(str(value) if name in ("model", "beyond") else f"{name} {value}")
    return ", ".join(told).replace("_", " ")


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name.removeprefix("is_") if value else f"without {name.removeprefix('is_')}"
    return f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _interval(tau_b: dict) -> str:
    return f"{tau_b['value']:.3f} ±{(tau_b['high'] - tau_b['low']) / 2:.3f}"


PARTS = {
    "files": file_map,
    "dialects": dialects,
    "settings": settings,
    "api": api,
    "printed": printed,
    "latency": latency,
    "tau": tau_table,
    "own_traffic": own_traffic,
    "experiment": experiment,
    "amount": amount,
    "across": across,
    "pareto": pareto,
}

if __name__ == "__main__":
    main()
