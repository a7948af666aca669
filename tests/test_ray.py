"""A real Ray on this machine: `pars score --ray`, and the score service on Ray Serve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SOURCE = Path(__file__).parents[1] / "src"
PROMPTS = [f"Write {n} words about the sea. {'More. ' * (n % 7)}" for n in range(40)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}


def pars(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command, in a process of its own: Ray leaves threads behind."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def logs(folder: Path) -> list[Path]:
    """Two files of prompts, one of them with half a surrogate pair."""
    paths = [folder / "a.jsonl", folder / "b.jsonl"]
    for path in paths:
        rows = [{"id": n, "prompt": it} for n, it in enumerate([*PROMPTS, "\udc00 and so on"])]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {it.name: it.read_bytes() for it in folder.glob("*.jsonl")}


def test_ray_scores_the_same_parts_as_this_machine_alone(tmp_path):
    """Byte for byte; and a part that is there is not scored again."""
    asked = ("score", *logs(tmp_path), "--rows-a-part", 20, "--output")
    alone = pars(*asked, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    there = tmp_path / "ray" / "0000-00001.jsonl"
    there.parent.mkdir()
    there.write_bytes(b"")
    unfinished = json.loads((tmp_path / "alone" / "score.json").read_text())
    unfinished["files"] = [{**it, "num_parts": None, "num_rows": 0} for it in unfinished["files"]]
    (tmp_path / "ray" / "score.json").write_text(json.dumps(unfinished))

    done = pars(*asked, tmp_path / "ray", "--ray", "local")

    assert done.returncode == 0, done.stderr
    assert "62 prompts scored" in done.stdout
    assert "20 were there" in done.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone") | {there.name: b""}


def test_what_ray_cannot_read_is_named_as_ever(tmp_path):
    """One line, and no page of Ray's own."""
    (tmp_path / "log.jsonl").write_text('{"prompt": 3}\n')

    done = pars("score", tmp_path / "log.jsonl", "--output", tmp_path / "out", "--ray", "local")

    assert done.returncode == 2
    [told] = [it for it in done.stderr.splitlines() if it.startswith("pars: error")]
    assert told.endswith("log.jsonl, row 1: field 'prompt' must be text, not a number")
    assert "Traceback" not in done.stderr
