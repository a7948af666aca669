"""Docs that cannot drift."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_parts_of_the_docs_are_current():
    """The file map and every measured number are what their sources say."""
    check = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]

    done = subprocess.run(check, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_every_command_named_in_the_readme_exists():
    """`pars NAME` in the README is a command of `pars`."""
    import re

    from pars.cli.main import commands

    named = re.findall(r"^    pars (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)

    assert {"serve", "prepare", "train", "evaluate", "export", "gateway"} <= set(named)
    assert set(named) <= set(commands.commands)
