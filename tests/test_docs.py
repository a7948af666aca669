"""Docs that cannot drift."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pars.cli.main import commands

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
COMMAND = re.compile(r"(?:^|[\s;&|])pars ((?!-)[a-z][a-z-]*)(\s[^`]*)?$")


def blocks(text: str) -> Iterator[str]:
    """The code blocks of a page, fenced as bash or indented, and each `pars ...` in its text."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    yield from (match[2] for match in fenced.finditer(text) if match[1] in ("bash", "sh"))
    text = fenced.sub("", text)
    for match in re.finditer(r"(?:^ {4,}.*\n)+", text, flags=re.MULTILINE):
        yield match[0]
    yield from re.findall(r"`(pars [^`\n]+)`", text)


def command_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each call of `pars` on a page: the command and its arguments."""
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*$|\s>>?.*$", "", line).replace("...", "").replace("…", "")
            match = COMMAND.search(line.split(" | ")[0].strip())
            if match:
                yield match[1], shlex.split(match[2] or "")


CALLS = [
    pytest.param(name, arguments, id=f"{page.name}: pars {name} {' '.join(arguments)}")
    for page in DOCUMENTS
    if page.name != "CHANGELOG.md"  # which tells of what was
    for name, arguments in command_lines(page.read_text())
]


def test_generated_parts_of_the_docs_are_current():
    """The file map and every measured number are what their sources say."""
    check = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]

    done = subprocess.run(check, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_commands_that_users_need_are_on_the_pages():
    """Otherwise the test below would hold nothing."""
    named = {call.values[0] for call in CALLS}

    assert {"serve", "prepare", "train", "evaluate", "export", "gateway", "learn"} <= named


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_every_command_line_on_a_page_is_one_that_pars_takes(name: str, arguments: list[str]):
    """Its command exists, and so does each of its options, with a value where one is due."""
    command = commands.commands[name]
    if isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        command = command.commands[arguments.pop(0)]
    if arguments and arguments[-1] in options_with_value(command):
        arguments = [*arguments, "VALUE"]  # a mention in a sentence

    command.make_parser(click.Context(command)).parse_args(list(arguments))


def options_with_value(command: click.Command) -> set[str]:
    """The options of a command that are no flags."""
    options = (it for it in command.params if isinstance(it, click.Option) and not it.is_flag)
    return {name for option in options for name in option.opts}


def python_blocks(text: str) -> list[str]:
    """The code blocks of a page that are fenced as Python."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


PAGES_WITH_PYTHON = [
    pytest.param(page, id=page.name) for page in DOCUMENTS if python_blocks(page.read_text())
]


def test_the_api_has_a_page_with_examples():
    """Otherwise the test below would hold nothing."""
    assert "api.md" in [page.values[0].name for page in PAGES_WITH_PYTHON]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
def test_every_python_block_on_a_page_runs(page: Path, tmp_path: Path):
    """Block by block, as a reader would type them, in an empty folder; warnings are errors."""
    code = "\n".join(python_blocks(page.read_text()))
    call = [sys.executable, "-W", "error", "-c", code]

    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_every_target_of_make_on_a_page_exists():
    """`make NAME` in a code block is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        name
        for page in DOCUMENTS
        for block in blocks(page.read_text())
        for name in re.findall(r"^\s*make ([a-z-]+)", block, flags=re.MULTILINE)
    }

    assert {"demo", "test"} <= named <= targets


def test_every_benchmark_named_on_a_page_exists():
    """`bash benchmarks/all.sh NAME` is one that all.sh knows, and a script is there."""
    known = set(re.findall(r"^    \[(\w+)\]=", (ROOT / "benchmarks/all.sh").read_text(), re.M))
    text = "\n".join(page.read_text() for page in DOCUMENTS)
    named = {
        name
        for told in re.findall(r"benchmarks/all\.sh ([\w ]+)[`:)]", text)
        for name in told.split()
    }
    scripts = re.findall(r"(?<!/)\b(?:benchmarks|experiments|demo|docs)/\w+\.(?:py|sh)\b", text)

    assert {"vllm_latency"} <= named <= known | {"NAME"}
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_every_link_between_pages_leads_somewhere():
    """The file exists, and the heading too."""
    broken = []
    for page in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.name}: {target}")

    assert broken == []


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", it.lower()).strip().replace(" ", "-") for it in headings}


def test_every_commands_summary_fits_its_line():
    """In a terminal of 80 columns none is cut to "..."."""
    done = CliRunner().invoke(commands, ["--help"], terminal_width=80)

    summaries = done.output.partition("Commands:\n")[2].splitlines()
    assert len(summaries) >= len(commands.commands)
    assert [line for line in summaries if line.endswith("...")] == []
