"""
Fill the generated parts of README.md and docs/results.md; --check says whether they are current.

    python docs/generate.py [--check]

A generated part stands between `<!-- NAME ARGUMENT -->` and `<!-- end -->`. The file map comes from
the first lines of the modules, every number from benchmarks/results/, which `make bench` writes.
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/results.md")


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


PARTS = {"files": file_map, "printed": printed, "tau": tau_table}

if __name__ == "__main__":
    main()
