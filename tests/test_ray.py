"""A real Ray on this machine: `pars score --ray`, and the score service on Ray Serve."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from pars.score_service.server import create_app

from serving import DEADLINE_S

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


SERVE = """
import sys
import ray
from ray import serve
from pars.score_service.ray_app import Wanted, app

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app(Wanted(max_prompts_per_call=4)))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@contextmanager
def ray_serves(folder: Path) -> Iterator[httpx.Client]:
    """The app on Ray Serve, in two replicas; its client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipe = subprocess.PIPE
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-c", SERVE, str(port)]
        environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}
        ray = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment
        )
    assert ray.stdout is not None
    assert any(line == "ready\n" for line in ray.stdout), (folder / "log").read_text()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        yield client
    ray.communicate(timeout=4 * DEADLINE_S)


CALLS = [
    ("/score", {"prompt": "Name a sea."}),
    ("/score", {"prompt": 3}),
    ("/score", {}),
    ("/score_batch", {"prompts": ["Name a sea.", "", "\udc00 half a pair"]}),
    ("/score_batch", {"prompts": ["more", "than", "four", "of", "them"]}),
    ("/compare", {"prompt_a": "Name a sea.", "prompt_b": "Write an essay on the sea."}),
    ("/compare_batch", {"pairs": [{"prompt_a": "a", "prompt_b": "b"}]}),
    ("/nothing", {}),
]


def test_ray_serve_answers_as_pars_serve_does(tmp_path):
    """Each route, what is refused among them, and the pages; of one app, so nothing can differ."""
    from pars.score_service.ray_app import Wanted

    with (
        ray_serves(tmp_path) as on_ray,
        TestClient(create_app(limits=Wanted(max_prompts_per_call=4).limits)) as alone,
    ):
        for path, body in CALLS:
            content = json.dumps(body)
            there, here = (it.post(path, content=content) for it in (on_ray, alone))
            assert (there.status_code, there.json()) == (here.status_code, here.json()), path
        for path in ("/", "/health", "/openapi.json"):
            assert on_ray.get(path).json() == alone.get(path).json()
        page = on_ray.get("/metrics").text
    assert "pars_prompts_scored_total" in page
