"""A client's own priority gets to the engine on no path, and no other byte of a body changes."""

import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import gateway_to
from pars.request.paths import UNGENERATING
from pars.scheduling.dialects import DIALECTS
from pars.scheduling.stamping import reads_priority
from pars.serving.replies import send_json

from serving import answered_lifespan, serve_in_thread, whole_body

ROOT = Path(__file__).parents[1]
JSON = {"content-type": "application/json"}
OWN = b'{"input" : "x", "priority": -9, "n":1.0 }'
FREE = b'{"input" : "x", "n":1.0 }'


class Recording:
    """An upstream that keeps the bodies it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if await answered_lifespan(scope, receive, send):
            return
        content = await whole_body(receive)
        if scope["method"] != "GET":  # else it is the gateway that asks
            self.bodies.append(content)
        await send_json(send, 200, {})


@contextmanager
def before(engine: str, folder: Path, **settings: Any) -> Iterator[tuple[str, Recording]]:
    """A gateway to an engine, or to a router by the name of its dialect."""
    upstream = Recording()
    if engine in DIALECTS:
        engine, settings = "auto", {**settings, "dialect": engine}
    with (
        serve_in_thread(upstream) as up,
        gateway_to(up, folder, settings={"engine": engine, "hold": "off", **settings}) as (url, _),
    ):
        yield url, upstream


def sent(url: str, path: str, body: bytes, method: str = "POST", **headers: str) -> int:
    return httpx.request(method, url + path, content=body, headers=headers or JSON).status_code


@pytest.mark.parametrize("path", UNGENERATING)
@pytest.mark.parametrize("engine", ["vllm", "vllm-body", "sglang", "none", "litellm"])
def test_what_generates_nothing_passes_without_a_priority(
    tmp_path: Path, path: str, engine: str
) -> None:
    """However the path is spelled, and whatever the engine is known as; no other byte changes."""
    with before(engine, tmp_path) as (url, upstream):
        for spelled in (path, f"/v1{path}", f"/team{path}/", f"/v1/{path}"):
            for method in ("POST", "PUT"):
                assert sent(url, spelled, OWN, method) == 200
        assert sent(url, path, FREE) == 200
    assert upstream.bodies == [FREE] * 9


def test_a_large_one_has_its_priority_outdone(tmp_path: Path) -> None:
    """A 0 behind it, as the last of repeated names counts."""
    large = b'{"priority": -9, "input": "%s"}' % (b"x" * 5000)
    with before("vllm", tmp_path, max_body_bytes=4096) as (url, upstream):
        assert sent(url, "/v1/embeddings", large) == 200
    assert json.loads(upstream.bodies[0]) == {"priority": 0, "input": "x" * 5000}


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "application/octet-stream"])
def test_what_is_no_json_passes_as_it_came(tmp_path: Path, kind: str) -> None:
    """An engine reads no priority in it."""
    body = b"x" * 5000 + b'"priority"'
    with before("vllm", tmp_path, max_body_bytes=4096) as (url, upstream):
        assert sent(url, "/v1/embeddings", body, **{"content-type": kind}) == 200
    assert upstream.bodies == [body]


@pytest.mark.parametrize("name", ["content-encoding", "x-body-compressed", "X_Body_Compressed"])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/embeddings"])
def test_what_may_hide_in_a_compressed_body_does_not_pass(
    tmp_path: Path, path: str, name: str
) -> None:
    """SGLang unpacks one, if it is told to. To what takes no priority it passes as it came."""
    body = gzip.compress(OWN)
    told = {name: "gzip", **JSON}
    with before("sglang", tmp_path) as (url, upstream):
        assert sent(url, path, body, **told) == 415
        assert sent(url, path, FREE, **{"content-encoding": "identity", **JSON}) == 200
    assert len(upstream.bodies) == 1
    with before("none", tmp_path) as (url, upstream):
        assert sent(url, path, body, **told) == 200
    assert upstream.bodies == [body]


def test_a_path_that_nobody_knows_loses_it_at_an_engine_only(tmp_path: Path) -> None:
    """Engines get new paths; what is no engine may mean something else by the word."""
    for engine, passing in (("vllm", FREE), ("sglang", FREE), ("none", OWN), ("litellm", OWN)):
        with before(engine, tmp_path) as (url, upstream):
            assert sent(url, "/v9/new", OWN) == 200
        assert upstream.bodies == [passing]


def test_sglang_s_put_is_a_generation_too(tmp_path: Path) -> None:
    """It takes /generate by either method."""
    with before("sglang", tmp_path) as (url, upstream):
        assert sent(url, "/generate", b'{"text":"x","priority":9e9}', "PUT") == 200
    assert json.loads(upstream.bodies[0])["priority"] < 0


# Vertex AI


def test_vertex_s_priority_stands_among_its_parameters(tmp_path: Path) -> None:
    """The client's own there gives way to ours, and no other byte changes."""
    body = b'{"instances" : [{"text": "x"}], "parameters": {"priority":9, "a" : 1.0} }'
    with before("sglang", tmp_path) as (url, upstream):
        assert sent(url, "/vertex_generate", body) == 200
        assert sent(url, "/vertex_generate", b'{"instances":[],"parameters":null}') == 200
    ours = re.fullmatch(re.escape(body).replace(b":9,", rb":(-\d+),"), upstream.bodies[0])
    assert ours, upstream.bodies[0]
    assert json.loads(upstream.bodies[1])["parameters"]["priority"] < 0


@pytest.mark.parametrize(
    ("text", "parameters"),
    [(b"x", {"a": 1.0}), (b"x" * 100_000, {"a": 1.0}), (b"\\ud800" + b"x" * 100_000, {})],
)
def test_vertex_s_priority_is_gone_where_none_is_set(
    tmp_path: Path, text: bytes, parameters: dict[str, Any]
) -> None:
    """From each of repeated ones, from a large body, and with all of them where one is odd."""
    told = b'"parameters": {"a": 1.0, "priority": 9}'
    body = b'{%s, "instances": [{"text": "%s"}], %s}' % (told, text, told)
    with before("none", tmp_path) as (url, upstream):
        assert sent(url, "/vertex_generate", body) == 200
    assert json.loads(upstream.bodies[0])["parameters"] == parameters


def test_vertex_s_door_may_have_any_path(tmp_path: Path) -> None:
    """AIP_PREDICT_ROUTE names it: what generates there has no place before ours."""
    body = b'{"instances": [{"text": "x"}], "parameters": {"priority":9, "a": 1.0}}'
    with before("sglang", tmp_path) as (url, upstream):
        assert sent(url, "/predict", body) == 200
    assert upstream.bodies == [b'{"instances": [{"text": "x"}], "parameters": {"a": 1.0}}']


def test_a_vertex_body_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Nothing at its end outdoes what stands inside."""
    body = b'{"parameters": {"priority": 9}, "instances": [{"text": "%s"}]}' % (b"x" * 5000)
    with before("sglang", tmp_path, max_body_bytes=4096) as (url, upstream):
        assert sent(url, "/vertex_generate", body) == 413
    assert upstream.bodies == []


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_each_path_on_which_vllm_reads_a_priority_is_known() -> None:
    """By its own models; what only renders a prompt runs nothing."""
    done = subprocess.run(
        [str(ROOT / ".engine/bin/python"), str(ROOT / "tests/vllm_priority_paths.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    told = next(line for line in done.stdout.splitlines() if line.startswith("PATHS "))
    paths = json.loads(told.removeprefix("PATHS "))
    assert "/pooling" in paths
    unknown = [path for path in paths if not reads_priority(path)]
    assert [path for path in unknown if not path.endswith("/render")] == []
