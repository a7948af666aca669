"""The score service over HTTP: the wire format, odd input, limits, and clients that leave."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from pars.errors import MissingExtra, ParsError, RankerError
from pars.score_service.endpoint import MOST_PROBLEMS, Limits
from pars.score_service.server import create_app, scorer_from

from serving import DEADLINE_S, GatedScorer, LengthScorer, eventually, serve_in_thread

PATHS = ("/score", "/score_batch", "/compare", "/compare_batch")


@pytest.fixture
def scorer() -> LengthScorer:
    return LengthScorer()


@pytest.fixture
def client(scorer: LengthScorer) -> Iterator[TestClient]:
    with TestClient(create_app(scorer), raise_server_exceptions=False) as client:
        yield client


def test_score_echoes_the_prompt_with_its_score(client: TestClient):
    """POST /score answers {prompt, score}."""
    reply = client.post("/score", json={"prompt": "four"})

    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {"prompt": "four", "score": 4.0}


def test_score_batch_keeps_the_order(client: TestClient):
    """POST /score_batch answers {prompts, scores}, in the order asked."""
    reply = client.post("/score_batch", json={"prompts": ["ccc", "a", "bb"]})

    assert reply.json() == {"prompts": ["ccc", "a", "bb"], "scores": [3.0, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("prompt_a", "prompt_b", "winner"),
    [("long", "s", "prompt_a"), ("s", "long", "prompt_b"), ("same", "size", "prompt_b")],
)
def test_compare_names_the_higher_score(
    client: TestClient, prompt_a: str, prompt_b: str, winner: str
):
    """POST /compare: prompt_a wins with the higher score only; a tie goes to prompt_b."""
    reply = client.post("/compare", json={"prompt_a": prompt_a, "prompt_b": prompt_b})

    expected = {
        "prompt_a": prompt_a,
        "prompt_b": prompt_b,
        "score_a": float(len(prompt_a)),
        "score_b": float(len(prompt_b)),
        "winner": winner,
    }
    assert expected == reply.json()
    assert list(expected) == list(reply.json())


def test_compare_batch_compares_each_pair(client: TestClient):
    """POST /compare_batch answers {results}, one comparison a pair."""
    pairs = [{"prompt_a": "aa", "prompt_b": "b"}, {"prompt_a": "a", "prompt_b": "bbb"}]
    reply = client.post("/compare_batch", json={"pairs": pairs})

    assert {
        "results": [
            {**pairs[0], "score_a": 2.0, "score_b": 1.0, "winner": "prompt_a"},
            {**pairs[1], "score_a": 1.0, "score_b": 3.0, "winner": "prompt_b"},
        ]
    } == reply.json()


def test_root_names_the_model(client: TestClient):
    """GET / answers message, model_path, model_name and device."""
    assert client.get("/").json() == {
        "message": "Predictor score model is running.",
        "model_path": "serving:LengthScorer",
        "model_name": "LengthScorer",
        "device": "cpu",
    }


def test_health_says_which_ranker(client: TestClient):
    """GET /health answers ok with the ranker's facts."""
    health = client.get("/health").json()

    assert health["status"] == "ok"
    assert health["ranker"]["model_name"] == "LengthScorer"


def test_empty_lists_give_empty_results(client: TestClient):
    """No prompts, no pairs: empty results, not an error."""
    prompts, pairs = {"prompts": []}, {"pairs": []}

    assert client.post("/score_batch", json=prompts).json() == {"prompts": [], "scores": []}
    assert client.post("/compare_batch", json=pairs).json() == {"results": []}


@pytest.mark.parametrize(
    "prompt",
    ["", "\x00", "a\x00b", "\ud800", "x\udfffy", "é 漢字 🙂", "\u2028", '"\\', "x" * 1_000_000],
    ids=["empty", "nul", "inner nul", "lead", "trail", "unicode", "separator", "quotes", "1 MB"],
)
def test_odd_text_is_scored_and_echoed(client: TestClient, prompt: str):
    """Whatever a JSON string can carry comes back as it went in, with a score."""
    body = json.dumps({"prompt": prompt}).encode()
    reply = client.post("/score", content=body)

    assert reply.status_code == 200
    assert {"prompt": prompt, "score": float(len(prompt))} == json.loads(reply.content)


def test_ten_thousand_prompts_in_one_call(client: TestClient):
    """A batch of 10,000 prompts is one call."""
    prompts = [f"prompt {n}" for n in range(10_000)]
    reply = client.post("/score_batch", json={"prompts": prompts})

    assert [float(len(prompt)) for prompt in prompts] == reply.json()["scores"]


@pytest.mark.parametrize(
    ("path", "body", "place", "problem"),
    [
        ("/score", b"", ["body"], "Field required"),
        ("/score", b"{}", ["body", "prompt"], "Field required"),
        ("/score", b'{"prompt": 5}', ["body", "prompt"], "Input should be a valid string"),
        ("/score", b'{"prompt": null}', ["body", "prompt"], "Input should be a valid string"),
        ("/score", b'{"prompt": NaN}', ["body", "prompt"], "Input should be a valid string"),
        ("/score", b'["a"]', ["body"], "Input should be a valid dictionary or object"),
        ("/score", b"Infinity", ["body"], "Input should be a valid dictionary or object"),
        ("/score", b"{'prompt'}", ["body", 1], "JSON decode error: Expecting property name"),
        ("/score", b'{"prompt": "\xff"}', ["body"], "JSON decode error: invalid start byte"),
        ("/score", b"9" * 5000, ["body"], "JSON decode error: a number is too long"),
        ("/score", b"[" * 30_000, ["body"], "JSON decode error: nested too deeply"),
        ("/score_batch", b'{"prompts": "a"}', ["body", "prompts"], "Input should be a valid list"),
        (
            "/score_batch",
            b'{"prompts": ["a", 5, "\\ud800"]}',
            ["body", "prompts", 1],
            "Input should be a valid string",
        ),
        ("/compare", b'{"prompt_a": "a"}', ["body", "prompt_b"], "Field required"),
        (
            "/compare_batch",
            b'{"pairs": [{"prompt_a": "a"}]}',
            ["body", "pairs", 0, "prompt_b"],
            "Field required",
        ),
    ],
)
def test_wrong_input_names_its_place(
    client: TestClient, path: str, body: bytes, place: list[Any], problem: str
):
    """A 422 in FastAPI's form says where the first problem is, and what would be right."""
    reply = client.post(path, content=body)

    assert reply.status_code == 422
    [detail] = reply.json()["detail"]
    assert place == detail["loc"]
    assert detail["msg"].startswith(problem)


@pytest.mark.parametrize(
    "items", [b"[]," * 5_000_000 + b"[]", b"5," * 7_000_000 + b"5", b"[" * 7_000_000]
)
def test_a_flood_of_wrong_items_is_refused_at_the_first_of_them(client: TestClient, items: bytes):
    """Nothing is built of the others, whatever they are, and the answer names the one."""
    reply = client.post("/score_batch", content=b'{"prompts": [%s]}' % items)

    assert reply.status_code == 422
    [detail] = reply.json()["detail"]
    assert detail["msg"].startswith("Expected `str`, got `")
    assert detail["msg"].endswith("at `$.prompts[0]`")


def test_an_answer_names_no_more_than_the_first_faults(client: TestClient):
    """Ten thousand wrong items are as many bytes of request, and no megabyte of answer."""
    reply = client.post("/score_batch", content=b'{"prompts": [%s5]}' % (b"5," * 10_000))

    assert reply.status_code == 422
    assert [it["loc"][-1] for it in reply.json()["detail"]] == list(range(MOST_PROBLEMS))


@pytest.mark.parametrize("odd", ["\\ud800", "x"])
def test_a_large_body_is_scored_as_a_small_one(client: TestClient, odd: str):
    """Also one with what only Python's parser takes, and fields that nobody looks at."""
    body = '{"more": [[], {}], "prompt": "' + odd + "x" * 100_000 + '"}'
    reply = client.post("/score", content=body)

    assert reply.json()["score"] == 100_001


def test_bodies_of_all_calls_are_bounded_and_the_oldest_upload_gives_way():
    """So that whoever sends slowly takes no room from who sends now."""
    limits = Limits(max_body_bytes=1000, max_buffered_bytes=1500)
    app = create_app(LengthScorer(), limits=limits)
    body = b'{"prompt": "%s"}' % (b"x" * 900)
    head = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with serve_in_thread(app) as url, connected(url) as slow, connected(url) as quick:
        slow.sendall(head + body[:800])
        for _ in range(2):  # the slow one's bytes are there by the second at the latest
            quick.sendall(head + body)
            assert read_reply(quick)[0] == 200
        status, detail = read_reply(slow)

    assert status == 503
    assert detail == {"detail": "1500 bytes of calls are held, as many as may"}


def test_large_bodies_take_no_room_from_small_ones():
    """A small one is scored however many large ones wait."""
    scorer = GatedScorer()
    limits = Limits(max_body_bytes=50_000, max_buffered_bytes=50_000)
    large = {"prompt": "x" * 49_000}
    with serve_in_thread(create_app(scorer, limits=limits)) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx.post, f"{url}/score", json=large)
        assert scorer.entered.wait(DEADLINE_S)
        assert httpx.post(f"{url}/score", json=large).status_code == 503
        small = pool.submit(httpx.post, f"{url}/score", json={"prompt": "x" * 2000})
        eventually(lambda: metric(url, "pars_queued_prompts") == 1)
        scorer.gate.set()
        assert (first.result().status_code, small.result().status_code) == (200, 200)


def test_duplicate_key_last_one_counts(client: TestClient):
    """As in Python's own parser, the last of two equal keys is the one that counts."""
    reply = client.post("/score", content=b'{"prompt": "a", "prompt": "bb"}')

    assert reply.json() == {"prompt": "bb", "score": 2.0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score_batch", {"prompts": ["a"] * 5}),
        ("/score_batch", {"prompts": [5] * 5}),
        ("/compare_batch", {"pairs": [{"prompt_a": "a", "prompt_b": "b"}] * 3}),
    ],
)
def test_too_many_prompts_are_refused(path: str, body: dict[str, Any]):
    """The bound on prompts a call is a 422 that names the list; a pair counts as two prompts."""
    scorer = LengthScorer()
    with TestClient(create_app(scorer, limits=Limits(max_prompts_per_call=4))) as client:
        reply = client.post(path, json=body)

    assert reply.status_code == 422
    [detail] = reply.json()["detail"]
    assert ["body", next(iter(body))] == detail["loc"]
    assert "List should have at most" in detail["msg"]
    assert scorer.batches == []


def test_limits_must_agree():
    """A call that could never be queued is refused when the service is set up."""
    with pytest.raises(ParsError, match="could never be queued"):
        Limits(max_prompts_per_call=10, max_queued_prompts=9)
    with pytest.raises(ParsError, match="at least 1"):
        Limits(max_body_bytes=0)
    with pytest.raises(ParsError, match="could never be held"):
        Limits(max_body_bytes=10, max_buffered_bytes=9)


def test_declared_length_beyond_the_bound_is_refused_unread():
    """A 413 comes on the Content-Length alone, before a byte of the body is sent."""
    app = create_app(LengthScorer(), limits=Limits(max_body_bytes=1000))
    with serve_in_thread(app) as url, connected(url) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n")
        status, detail = read_reply(raw)

    assert status == 413
    assert detail == {"detail": "the body is larger than 1000 bytes"}


def test_chunked_body_beyond_the_bound_is_refused_while_read():
    """Without a Content-Length the 413 comes as soon as the bound is passed, not at the end."""
    app = create_app(LengthScorer(), limits=Limits(max_body_bytes=1000))
    with serve_in_thread(app) as url, connected(url) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        raw.sendall(b"258\r\n" + b"x" * 600 + b"\r\n")
        raw.sendall(b"258\r\n" + b"x" * 600 + b"\r\n")
        status, _ = read_reply(raw)

    assert status == 413


def test_body_of_many_chunks_is_put_together():
    """A chunked body within the bound is scored like any other."""
    with serve_in_thread(create_app(LengthScorer())) as url:
        body = (piece.encode() for piece in ('{"pro', 'mpt": "', "x" * 100_000, '"}'))
        reply = httpx.post(f"{url}/score", content=body)

    assert reply.json()["score"] == 100_000


def test_requests_that_arrive_together_are_scored_together():
    """Twenty connections that come while the ranker works make one batch."""
    scorer = GatedScorer()
    with serve_in_thread(create_app(scorer)) as url, ThreadPoolExecutor(21) as callers:

        def score(prompt: str) -> float:
            return httpx.post(f"{url}/score", json={"prompt": prompt}).json()["score"]

        first = callers.submit(score, "first")
        scorer.entered.wait()
        others = [callers.submit(score, "x" * n) for n in range(20)]
        eventually(lambda: metric(url, "pars_queued_prompts") == 20)
        scorer.gate.set()
        scores = [other.result() for other in others]

    assert first.result() == 5.0
    assert list(range(20)) == scores
    assert [len(batch) for batch in scorer.batches] == [1, 20]


def test_client_that_leaves_drops_its_queued_work():
    """When a connection closes, its queued prompts are never scored; the others are."""
    scorer = GatedScorer()
    with serve_in_thread(create_app(scorer)) as url, ThreadPoolExecutor(2) as callers:
        ask = f"{url}/score_batch"
        first = callers.submit(httpx.post, ask, json={"prompts": ["first"]})
        scorer.entered.wait()
        stayer = callers.submit(httpx.post, ask, json={"prompts": ["wanted"]})
        with connected(url) as leaver:
            body = json.dumps({"prompts": ["unwanted"] * 50}).encode()
            head = b"POST /score_batch HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
            leaver.sendall(head % len(body) + body)
            eventually(lambda: metric(url, "pars_queued_prompts") == 51)
        eventually(lambda: metric(url, "pars_queued_prompts") == 1)
        scorer.gate.set()
        assert first.result().json()["scores"] == [5.0]
        assert stayer.result().json()["scores"] == [6.0]
        assert metric(url, "pars_cancelled_total") == 1

    assert scorer.batches == [["first"], ["wanted"]]


def test_full_queue_says_when_to_come_back():
    """A full queue is a 503 with Retry-After; what was queued before is still answered."""
    scorer = GatedScorer()
    limits = Limits(max_queued_prompts=2, max_prompts_per_call=2)
    with serve_in_thread(create_app(scorer, limits=limits)) as url, ThreadPoolExecutor(2) as pool:
        ask = f"{url}/score_batch"
        first = pool.submit(httpx.post, ask, json={"prompts": ["first"]})
        scorer.entered.wait()
        queued = pool.submit(httpx.post, ask, json={"prompts": ["a", "bb"]})
        eventually(lambda: metric(url, "pars_queued_prompts") == 2)
        refused = httpx.post(f"{url}/score", json={"prompt": "x"})
        scorer.gate.set()
        assert [first.result().status_code, queued.result().status_code] == [200, 200]
        assert metric(url, "pars_rejected_total") == 1

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "bound of 2" in refused.json()["detail"]


def test_failed_ranker_is_a_500_without_the_prompt(caplog: pytest.LogCaptureFixture):
    """A ranker that raises is a plain 500; neither answer nor log quotes the prompt."""

    class Broken:
        def score(self, prompts):
            raise ValueError(f"cannot score {prompts}")

    with TestClient(create_app(Broken())) as client:
        reply = client.post("/score", json={"prompt": "my secret"})

    assert reply.status_code == 500
    assert reply.json() == {"detail": "scoring failed with ValueError"}
    assert "scoring failed" in caplog.text
    assert "secret" not in caplog.text


def test_metrics_count_what_happened(client: TestClient):
    """Requests by path and status, prompts and batches; unknown paths share a label."""
    client.post("/score", json={"prompt": "a"})
    client.post("/score_batch", json={"prompts": ["a", "b"]})
    client.post("/score", json={})
    client.get("/no/such/path")
    text = client.get("/metrics").text

    for line in (
        'pars_requests_total{path="/score",status="200"} 1.0',
        'pars_requests_total{path="/score",status="422"} 1.0',
        'pars_requests_total{path="other",status="404"} 1.0',
        "pars_prompts_scored_total 3.0",
        'pars_batch_prompts_bucket{le="1.0"} 1.0',
        "pars_batch_prompts_count 2.0",
        "pars_scoring_seconds_count 2.0",
        "pars_queued_prompts 0.0",
    ):
        assert line in text.splitlines()
    assert "_created" not in text


def test_two_apps_share_nothing():
    """Each app has metrics of its own, so that several can live in one process."""
    with (
        TestClient(create_app(LengthScorer())) as one,
        TestClient(create_app(LengthScorer())) as two,
    ):
        one.post("/score", json={"prompt": "a"})

        assert "pars_prompts_scored_total 1.0" in one.get("/metrics").text
        assert "pars_prompts_scored_total 0.0" in two.get("/metrics").text


def test_openapi_examples_are_true(client: TestClient):
    """Every documented example is accepted, and the reply has the fields that are documented."""
    document = client.get("/openapi.json").json()

    def example(schema: dict[str, Any]) -> Any:
        if "$ref" in schema:
            return example(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        if "examples" in schema:
            return schema["examples"][0]
        if schema["type"] == "array":
            return [example(schema["items"])]
        return {name: example(value) for name, value in schema["properties"].items()}

    for path in PATHS:
        operation = document["paths"][path]["post"]
        asked = operation["requestBody"]["content"]["application/json"]["schema"]
        answered = operation["responses"]["200"]["content"]["application/json"]["schema"]
        reply = client.post(path, json=example(asked))
        assert reply.status_code == 200
        assert shape(example(answered)) == shape(reply.json())
        assert {"200", "413", "422", "500", "503"} == set(operation["responses"])
    assert client.get("/docs").status_code == 200


def shape(value: Any) -> Any:
    """Field names and types of a JSON value."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


def test_middleware_of_the_user_sees_every_path(scorer: LengthScorer):
    """What is added to the app stands in front of the scoring paths too: a guard guards them."""
    app = create_app(scorer)

    @app.middleware("http")
    async def closed(request: Any, go_on: Any) -> PlainTextResponse:
        return PlainTextResponse("closed", status_code=401)

    with TestClient(app) as client:
        assert client.post("/score", json={"prompt": "a"}).status_code == 401
    assert scorer.batches == []


def test_service_can_be_mounted_in_another_app(scorer: LengthScorer):
    """Under a prefix of another app, whose lifespan knows nothing of it, it scores all the same."""
    outer = FastAPI()
    outer.mount("/ranker", create_app(scorer))

    with TestClient(outer) as client:
        reply = client.post("/ranker/score", json={"prompt": "four"})
        refused = client.post("/ranker/score", json={})
    assert reply.json() == {"prompt": "four", "score": 4.0}
    assert refused.status_code == 422


def test_get_on_a_scoring_path_is_405(client: TestClient):
    """The scoring paths take POST only, and say so."""
    reply = client.get("/score")

    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"


fields = st.sampled_from(["prompt", "prompts", "prompt_a", "prompt_b", "pairs"]) | st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[TestClient]:
    with TestClient(create_app(LengthScorer()), raise_server_exceptions=False) as client:
        yield client


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(PATHS), body=st.binary() | json_values.map(json.dumps))
def test_no_body_is_a_server_error(fuzzed: TestClient, path: str, body: bytes | str):
    """Any bytes and any JSON give 200 or 422, with a body that is strict JSON."""
    content = body if isinstance(body, bytes) else body.encode()
    reply = fuzzed.post(path, content=content)

    assert reply.status_code in (200, 422)
    json.loads(reply.content, parse_constant=pytest.fail)


def test_service_never_imports_torch():
    """Importing the server and building an app loads neither torch nor transformers."""
    code = (
        "import sys, numpy; from pars.score_service.server import create_app\n"
        "class Zeros:\n    def score(self, prompts): return numpy.zeros(len(prompts))\n"
        "create_app(Zeros())\n"
        "print([name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"PREDICTOR_MODEL_PATH": "/no/such"}, "/no/such"),
        ({"PREDICTOR_MAX_LENGTH": "many"}, "PREDICTOR_MAX_LENGTH is 'many'"),
        ({"PREDICTOR_MAX_LENGTH": "0"}, "PREDICTOR_MAX_LENGTH is '0'"),
    ],
)
def test_wrong_environment_is_one_clear_line(environment: dict[str, str], problem: str):
    """A variable that cannot be meant is named with its value."""
    with pytest.raises(RankerError, match=re.escape(problem)):
        scorer_from(environment)


@pytest.fixture(scope="module")
def lite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ranker folder with weights that nobody trained."""
    pytest.importorskip("torch")
    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import LiteModel

    model = LiteModel.untrained(["one two three", "two three four"], max_length=16)
    folder = tmp_path_factory.mktemp("rankers") / "lite"
    export_ranker(model, folder, model_name="small")
    return folder


@pytest.mark.torch
@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"PREDICTOR_MAX_LENGTH": "128"}, "PREDICTOR_MAX_LENGTH is 128, but .* made for 16"),
        ({"PREDICTOR_DEVICE": "cuda"}, "PREDICTOR_DEVICE is 'cuda', but .* runs on the cpu"),
    ],
)
def test_environment_that_disagrees_with_the_ranker_is_refused(
    lite_folder: Path, environment: dict[str, str], problem: str
):
    """A length or device that the ranker folder cannot have is an error, not silently ignored."""
    with pytest.raises(RankerError, match=problem):
        scorer_from({"PREDICTOR_MODEL_PATH": str(lite_folder), **environment})


@pytest.mark.torch
def test_environment_names_the_ranker(lite_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The app factory without arguments serves the folder in PREDICTOR_MODEL_PATH."""
    monkeypatch.setenv("PREDICTOR_MODEL_PATH", str(lite_folder))
    monkeypatch.setenv("PREDICTOR_MAX_LENGTH", "16")
    monkeypatch.setenv("PREDICTOR_DEVICE", "cpu")
    with TestClient(create_app()) as client:
        root = client.get("/").json()
        odd = client.post("/score_batch", content=rb'{"prompts": ["", "\ud800", "\u0000", "one"]}')

    assert (root["model_path"], root["model_name"]) == (str(lite_folder), "small")
    assert len(odd.json()["scores"]) == 4


@pytest.mark.torch
def test_serve_says_where_it_listens(lite_folder: Path):
    """`pars serve` prints its ranker and address in one line, and answers there."""
    command = [sys.executable, "-um", "pars", "serve", "--ranker", str(lite_folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        url = re.search(r"http://\S+", line)[0]
        try:
            health = httpx.get(f"{url}/health", timeout=20).json()
        finally:
            process.terminate()

    assert str(lite_folder) in line
    assert health["ranker"]["kind"] == "lite"


def test_checkpoint_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A .pt path without torch says which extra is missing."""
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtra, match="train"):
        scorer_from({"PREDICTOR_MODEL_PATH": str(tmp_path / "best_model.pt")})


def run_pars(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pars", *arguments], capture_output=True, text=True, timeout=60
    )


def test_serve_without_its_ranker_is_one_line():
    """`pars serve` with a missing ranker: one line on stderr, exit code 2."""
    done = run_pars("serve", "--ranker", "/no/such")

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "/no/such" in done.stderr


def test_port_in_use_is_one_line():
    """A port that is taken is named in a ParsError."""
    from pars.cli.serve import run_app

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ParsError, match=f"port {port} on 127.0.0.1 is in use"):
            run_app(FastAPI(), "127.0.0.1", port, "never said")


SERVE_GATED = """
import sys, numpy
from pars.cli.serve import run_app
from pars.score_service.server import create_app

class WaitsForALine:
    def score(self, prompts):
        print("entered", flush=True)
        sys.stdin.readline()
        return numpy.ones(len(prompts))

run_app(create_app(WaitsForALine()), "127.0.0.1", 0, "listens on {url}")
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_request_in_flight_is_answered_before_the_end(stop: signal.Signals):
    """After SIGTERM or Ctrl-C the running request gets its answer; then the process ends."""
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    process = subprocess.Popen([sys.executable, "-uc", SERVE_GATED], text=True, **pipes)
    with process, ThreadPoolExecutor(1) as pool:
        url = process.stdout.readline().split()[-1]
        reply = pool.submit(httpx.post, f"{url}/score", json={"prompt": "a"}, timeout=20)
        assert process.stdout.readline() == "entered\n"
        process.send_signal(stop)
        process.stdin.write("\n")
        process.stdin.flush()
        assert reply.result().json() == {"prompt": "a", "score": 1.0}
        _, errors = process.communicate(timeout=20)

    assert process.returncode in (0, -stop)
    assert errors == ""


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as raw:
        yield raw


def read_reply(raw: socket.socket) -> tuple[int, Any]:
    """Status and JSON body of the next HTTP reply on the socket."""
    reply = http.client.HTTPResponse(raw)
    reply.begin()
    with reply:
        return reply.status, json.loads(reply.read())


def metric(url: str, name: str) -> float:
    """The value of an unlabelled metric of a running service."""
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])
