"""
Fill the generated parts of README.md and docs/; --check says whether they are current.

    python docs/generate.py [--check]

A generated part stands between `<!-- NAME ARGUMENT -->` and `<!-- end -->`. The file map comes from
the first lines of the modules, every number from benchmarks/results/, which `make bench` writes, or
from a results file of experiments/.
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/results.md", ROOT / "docs/learning.md")


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
    """One line a file of a package: the first sentence of its docstring."""
    lines = []
    for path in sorted((ROOT / "src" / folder).glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.split("\n\n")[0].replace("\n", " ")
        if not path.name.startswith("__"):
            lines.append(f"| `{path.name}` | {first} |")
    return "\n".join(["| file | what for |", "|---|---|", *lines])


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
            f"| {data} | {num_requests:,} | {same[0]['tau_b_boxed']:.3f} | {' | '.join(cells)} "
            f"| {sum(judged)} of {len(judged)} |"
        )
    return "\n".join([*lines[:2], *sorted(lines[2:], key=lambda line: line.split("|")[1])])


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    told = f"{sum(values) / len(values):.3f}"
    return told if len(values) == 1 else f"{told} ({min(values):.2f} to {max(values):.2f})"


PARTS = {"files": file_map, "printed": printed, "tau": tau_table, "own_traffic": own_traffic}

if __name__ == "__main__":
    main()
