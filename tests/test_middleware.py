"""Every generation request gets a priority of our choosing, and nothing here costs a request."""

import asyncio
import hashlib
import json
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pars.errors import DataError, RankerError
from pars.outcomes.metrics import ServeMetrics
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import START_S, keys_of
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.live_ranker import LiveRanker, keep_fresh
from pars.scheduling.demand import Calibration
from pars.scheduling.engines import ENGINES, scheduling_policy, vllm_engine
from pars.scheduling.keys import EPOCH_S
from pars.serving.middleware import PriorityMiddleware
from pars.serving.settings import NO_OVERTAKE_BOUND, Settings

from serving import DEADLINE_S, GatedScorer, LengthScorer, eventually

NOW_S = EPOCH_S + 1000.0
TOKENS_PER_CHAR = 1 / 4  # of a prompt
LONG_TOKENS = 900.0  # at quantile 0.9 of the calibration below
INFO = SimpleNamespace(score_quantiles=[0.0, 1000.0], expected_tokens=[0.0, 1000.0])


def expected_key(tokens: float, prompt_chars: int, now_s: float = NOW_S) -> int:
    """The key worked out: linear up to 900 tokens, which is 0.95 of 30 s, in microseconds."""
    cost = math.sqrt(tokens * (tokens + prompt_chars * TOKENS_PER_CHAR))
    return int((now_s - EPOCH_S) * 1e6) + int(0.95 * cost / LONG_TOKENS * 30_000_000)


class Recorder:
    """An ASGI app that keeps what it was asked, reads the whole body and answers 200."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.bodies: list[bytes] = []
        self.types: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.types.append(scope["type"])
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.headers.append(scope["headers"])
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    @property
    def priority(self) -> int | None:
        """The header's priority in the last request."""
        values = [value for name, value in self.headers[-1] if name == b"x-vllm-priority"]
        assert len(values) <= 1
        return int(values[0]) if values else None


def live(tmp_path: Path, scorer: Any) -> LiveRanker:
    """A ranker folder whose loading gives `scorer` with the calibration above."""
    (tmp_path / "ranker.json").write_text("{}")
    loaded = SimpleNamespace(info=INFO, score=scorer.score)
    return LiveRanker(tmp_path, load=lambda folder: loaded)


class Bench:
    """The middleware around a recorder, with a scorer under the test's control."""

    def __init__(
        self, tmp_path: Path, scorer: Any = None, ranker: LiveRanker | None = None, **values: Any
    ) -> None:
        self.app = Recorder()
        self.metrics = ServeMetrics(CollectorRegistry())
        patient = {"budget_ms": DEADLINE_S * 1000, "max_wait_ms": DEADLINE_S * 1000}
        values = {"engine": "vllm", "max_overtake_s": 30.0, **patient, **values}
        self.middleware = PriorityMiddleware(
            self.app,
            Settings(**values),
            ranker=ranker or live(tmp_path, scorer or LengthScorer()),
            metrics=self.metrics,
            clock=lambda: NOW_S,
        )

    def count(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value("pars_decisions_total", {"outcome": outcome})
        assert value is not None
        return value

    def post(self, path: str, *pieces: bytes, **kwargs: Any) -> None:
        asyncio.run(self.apost(path, *pieces, **kwargs))

    async def apost(
        self,
        path: str,
        *pieces: bytes,
        method: str = "POST",
        headers: Sequence[tuple[bytes, bytes]] = (),
        peer: str | None = "9.9.9.9",
    ) -> list[Any]:
        parts = pieces or (b"",)
        messages = [
            {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
            for i, part in enumerate(parts)
        ]
        held = iter([*messages, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(held)

        async def send(message: Any) -> None:
            sent.append(message)

        length = b"%d" % sum(map(len, parts))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(b"content-length", length), *headers],
            "client": (peer, 1234) if peer else None,
        }
        await self.middleware(scope, receive, send)
        return sent


def chat(text: str, **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


def completion(text: Any, **fields: Any) -> bytes:
    return json.dumps({"prompt": text, "max_tokens": 1 << 20, **fields}).encode()


# What a priority is


@pytest.mark.parametrize("prefix", ["", "/team-a"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", completion("abcd" * 25)),
        ("/v1/chat/completions", chat("abcd" * 25)),
        ("/v1/responses", json.dumps({"input": "abcd" * 25}).encode()),
        ("/v1/messages", chat("abcd" * 25)),
        ("/invocations", chat("abcd" * 25)),
    ],
)
def test_priority_is_arrival_plus_expected_length(
    tmp_path: Path, prefix: str, path: str, body: bytes
) -> None:
    """A prompt that scores 100 gets the key of 100 expected tokens, in the header."""
    bench = Bench(tmp_path)
    bench.post(prefix + path, body)
    assert bench.app.priority == expected_key(100, 100)
    assert bench.app.bodies == [body]
    assert bench.count("scored") == 1


def test_limits_and_lists_count(tmp_path: Path) -> None:
    """Each of two prompts is capped at 10 tokens and asked for 3 times: 60 tokens in all."""
    bench = Bench(tmp_path)
    bench.post("/v1/completions", completion(["a" * 50, "b" * 50], max_tokens=10, n=3))
    assert bench.app.priority == expected_key(60, 100)


def test_a_long_list_is_scored_in_part(tmp_path: Path) -> None:
    """Of 10 prompts 4 are scored; the other 6 are taken to be like them."""
    scorer = LengthScorer()
    bench = Bench(tmp_path, scorer, max_prompts=4)
    bench.post("/v1/completions", completion(["a" * 10] * 10))
    assert sum(map(len, scorer.batches)) == 4
    assert bench.app.priority == expected_key(100, 100)


def test_a_ranker_sees_the_whole_prompt(tmp_path: Path) -> None:
    """As in training: it takes a bounded part of start and end by itself."""
    scorer = LengthScorer()
    Bench(tmp_path, scorer, max_prompt_chars=5).post("/v1/completions", completion("abcdefgh"))
    assert scorer.batches == [["abcdefgh"]]


def test_token_ids_go_by_their_limit(tmp_path: Path) -> None:
    """A prompt without text is expected to take the middle length, 500, or its limit if less."""
    bench = Bench(tmp_path)
    bench.post("/v1/completions", json.dumps({"prompt": [1] * 400, "max_tokens": 20}).encode())
    assert bench.app.priority == expected_key(20, 1600)
    assert bench.count("no_text") == 1


def test_limits_may_be_set_aside(tmp_path: Path) -> None:
    """With obey_limits off, max_tokens does not count."""
    bench = Bench(tmp_path, obey_limits=False)
    bench.post("/v1/completions", completion("a" * 50, max_tokens=1))
    assert bench.app.priority == expected_key(50, 50)


# What stays as it was


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/embeddings"), ("GET", "/v1/responses"), ("POST", "/")],
)
def test_other_requests_pass_unscored(tmp_path: Path, method: str, path: str) -> None:
    """A request that generates nothing passes as it came, less what only we may say."""
    bench = Bench(tmp_path)
    headers = [(b"x-other", b"1"), (b"X-Vllm-Priority", b"-5"), (b"x-pars-secret", b"guess")]
    bench.post(path, b'{"prompt": 1}', method=method, headers=headers)
    assert bench.app.headers == [[(b"content-length", b"13"), (b"x-other", b"1")]]
    assert bench.app.bodies == [b'{"prompt": 1}']


def test_websockets_and_lifespan_pass(tmp_path: Path) -> None:
    """Other kinds of connection reach the app."""
    bench = Bench(tmp_path)

    async def connect() -> None:
        for kind in ("lifespan", "websocket"):
            await bench.middleware({"type": kind}, None, None)  # type: ignore[arg-type]

    asyncio.run(connect())
    assert bench.app.types == ["lifespan", "websocket"]


def test_body_in_pieces_and_disconnect_are_replayed(tmp_path: Path) -> None:
    """The app sees the body in one piece and then the client's departure."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())

    bench = Bench(tmp_path)
    bench.middleware.app = app
    body = chat("hello")
    bench.post("/v1/chat/completions", body[:7], body[7:])
    assert [m.get("body") for m in seen] == [body, None]


def test_an_engine_that_takes_no_priority_gets_none(tmp_path: Path) -> None:
    """For engine `none` nothing is scored; the client's own priority goes, and no other byte."""
    scorer = LengthScorer()
    bench = Bench(tmp_path, scorer, engine="none")
    body = b'{"prompt":  "x", "priority": -9, "n": 1.50}'
    bench.post("/v1/completions", body, headers=[(b"x-vllm-priority", b"3")])
    assert bench.app.priority is None
    assert bench.app.bodies == [b'{"prompt":  "x", "n": 1.50}']
    assert dict(bench.app.headers[0])[b"content-length"] == b"%d" % len(bench.app.bodies[0])
    assert scorer.batches == []
    assert bench.count("unordered") == 1


# Engines that take the priority from the body


def test_body_engine_gets_the_priority_in_the_body(tmp_path: Path) -> None:
    """For an engine without the header only the body's priority is set, and its length is right."""
    bench = Bench(tmp_path, engine="vllm-body")
    body = b'{"prompt": "aaaa", "priority": -99, "temperature": 1.50}'
    bench.post("/v1/completions", body, headers=[(b"x-vllm-priority", b"3")])
    key = str(expected_key(4, 4)).encode()
    assert bench.app.bodies == [body.replace(b"-99", key)]
    assert bench.app.priority is None
    assert dict(bench.app.headers[0])[b"content-length"] == b"%d" % len(bench.app.bodies[0])


def test_sglang_takes_larger_first(tmp_path: Path) -> None:
    """For SGLang's default direction the key is negated."""
    bench = Bench(tmp_path, engine="sglang")
    bench.post("/generate", json.dumps({"text": "aaaa"}).encode())
    assert json.loads(bench.app.bodies[0])["priority"] == -expected_key(4, 4)


@pytest.mark.parametrize("path", ["/v1/chat/completions/batch", "/inference/v1/generate"])
def test_paths_where_vllm_reads_only_the_body(tmp_path: Path, path: str) -> None:
    """On paths where vLLM does not read the header, the body's priority is set instead."""
    bench = Bench(tmp_path)
    bench.post(path, b'{"messages": [], "priority": -1}')
    assert json.loads(bench.app.bodies[0])["priority"] > 0
    assert bench.app.priority is None


def test_a_body_too_large_to_hold_still_gets_ours(tmp_path: Path) -> None:
    """An oversize body streams through with our priority appended after the client's own."""
    bench = Bench(tmp_path, engine="vllm-body", max_body_bytes=16)
    body = b'{"priority": -99, "prompt": "' + b"a" * 100 + b'"}'
    bench.post("/v1/completions", body[:20], body[20:60], body[60:])
    sent = json.loads(bench.app.bodies[0])["priority"]
    assert sent == expected_key(500, 20)
    assert dict(bench.app.headers[0])[b"content-length"] == b"%d" % len(bench.app.bodies[0])


# What a client may not say


def test_a_clients_own_priority_is_dropped(tmp_path: Path) -> None:
    """A spoofed header, in any case and number, is gone; ours overrides the body's in vLLM."""
    bench = Bench(tmp_path)
    spoof = [(b"x-vllm-priority", b"-5"), (b"X-VLLM-Priority", b"-6"), (b"x-pars-offset-s", b"-9")]
    bench.post("/v1/completions", completion("aaaa", priority=-7), headers=spoof)
    assert bench.app.priority == expected_key(4, 4)


def test_a_trusted_proxy_may_move_a_request(tmp_path: Path) -> None:
    """From a trusted address an offset counts in seconds, and a priority as it is, clamped."""
    bench = Bench(tmp_path, trusted_proxies="10.0.0.0/8, ::1")
    offset = [(b"x-pars-offset-s", b"-2.5")]
    bench.post("/v1/completions", completion("aaaa"), headers=offset, peer="10.1.2.3")
    assert bench.app.priority == expected_key(4, 4, NOW_S - 2.5)
    bench.post("/v1/completions", completion("aaaa"), headers=offset, peer="11.1.2.3")
    assert bench.app.priority == expected_key(4, 4)
    priority = [(b"x-vllm-priority", b"9" * 30)]
    bench.post("/v1/completions", completion("aaaa"), headers=priority, peer="::ffff:10.1.2.3")
    assert bench.app.priority == 2**63 - 1
    assert bench.count("trusted") == 1


def test_a_secret_makes_a_caller_trusted_and_goes_no_further(tmp_path: Path) -> None:
    """With the secret an offset counts from anywhere; the secret is not passed on."""
    bench = Bench(tmp_path, trusted_secret="s3cret")
    headers = [(b"x-pars-offset-s", b"60"), (b"x-pars-secret", b"s3cret")]
    bench.post("/v1/completions", completion("aaaa"), headers=headers, peer=None)
    assert bench.app.priority == expected_key(4, 4, NOW_S + 60)
    assert {name for name, _ in bench.app.headers[0]} == {b"content-length", b"x-vllm-priority"}
    wrong = [(b"x-pars-offset-s", b"60"), (b"x-pars-secret", b"s3creT")]
    bench.post("/v1/completions", completion("aaaa"), headers=wrong)
    assert bench.app.priority == expected_key(4, 4)


@pytest.mark.parametrize("value", [b"nan", b"", b"soon", b"1e400"])
def test_an_odd_offset_never_breaks_a_key(tmp_path: Path, value: bytes) -> None:
    """Whatever a trusted proxy sends, the key is an integer of 64 bits."""
    bench = Bench(tmp_path, trusted_proxies="10.0.0.0/8")
    headers = [(b"x-pars-offset-s", value)]
    bench.post("/v1/completions", completion("aaaa"), headers=headers, peer="10.1.2.3")
    assert bench.app.priority is not None
    assert abs(bench.app.priority) < 2**63


def test_api_keys_may_have_offsets(tmp_path: Path) -> None:
    """A key in the offsets file moves its requests; its header still reaches the engine."""
    path = tmp_path / "offsets"
    path.write_text(json.dumps({hashlib.sha256(b"sk-batch").hexdigest(): 600}))
    bench = Bench(tmp_path / "..", key_offsets=str(path))
    bearer = [(b"authorization", b"Bearer sk-batch")]
    bench.post("/v1/completions", completion("aaaa"), headers=bearer)
    assert bench.app.priority == expected_key(4, 4, NOW_S + 600)
    assert bearer[0] in bench.app.headers[0]
    for name in (b"api-key", b"x-api-key"):  # a key that is not in the file goes before
        shown = [(b"authorization", b"Bearer sk"), (name, b"sk-batch")]
        bench.post("/v1/completions", completion("aaaa"), headers=shown)
        assert bench.app.priority == expected_key(4, 4, NOW_S + 600)
    bench.post("/v1/completions", completion("aaaa"), headers=[(b"authorization", b"Bearer sk")])
    assert bench.app.priority == expected_key(4, 4)


@pytest.mark.parametrize("content", ["[]", "{", '{"sk-plain": 1}', '{"' + "a" * 64 + '": "x"}'])
def test_a_wrong_offsets_file_is_refused(tmp_path: Path, content: str) -> None:
    """A file of key offsets must map SHA-256 digests to seconds."""
    path = tmp_path / "offsets"
    path.write_text(content)
    with pytest.raises(DataError, match="offsets"):
        Settings(key_offsets=str(path)).trust()


# Failing open


NEUTRAL = expected_key(500, 0)


class FailingScorer:
    def score(self, prompts: Sequence[str]) -> Any:
        raise RuntimeError("out of order")


class NanScorer:
    def score(self, prompts: Sequence[str]) -> Any:
        return np.full(len(prompts), math.nan, dtype=np.float32)


@pytest.mark.parametrize("scorer", [FailingScorer(), NanScorer()])
def test_a_scorer_that_fails_costs_nothing(tmp_path: Path, scorer: Any) -> None:
    """When scoring fails, the request goes on as one of middle length."""
    bench = Bench(tmp_path, scorer)
    bench.post("/v1/completions", completion("aaaa"))
    assert bench.app.priority == expected_key(500, 4)
    assert bench.count("scorer_failed") == 1


def test_a_failed_score_still_obeys_the_limit(tmp_path: Path) -> None:
    """Without a score, max_tokens 5 still says that the answer is short."""
    bench = Bench(tmp_path, FailingScorer())
    bench.post("/v1/completions", completion("aaaa", max_tokens=5))
    assert bench.app.priority == expected_key(5, 4)


def test_a_slow_scorer_is_not_waited_for(tmp_path: Path) -> None:
    """After the budget the request goes on unscored, and its prompt is scored no more."""
    scorer = GatedScorer()
    bench = Bench(tmp_path, scorer, budget_ms=1.0)

    async def run() -> None:
        for _ in range(3):
            await bench.apost("/v1/completions", completion("aaaa"))
        scorer.gate.set()

    asyncio.run(run())
    assert bench.app.priority == expected_key(500, 4)
    assert bench.count("over_budget") == 3
    assert sum(map(len, scorer.batches)) <= 1


class PlodScorer(LengthScorer):
    """Scores, but takes 100 ms a batch."""

    def score(self, prompts: Sequence[str]) -> np.ndarray:
        threading.Event().wait(0.1)
        return super().score(prompts)


@pytest.mark.parametrize(
    ("budget_ms", "max_wait_ms", "outcome"),
    [(900.0, DEADLINE_S * 1000, "scored"), (1.0, 1.0, "over_budget")],
)
def test_a_burst_is_waited_for_while_scores_come(
    tmp_path: Path, budget_ms: float, max_wait_ms: float, outcome: str
) -> None:
    """Ten batches of 100 ms each are all waited for with a budget of 900 ms, up to max_wait_ms."""
    bench = Bench(tmp_path, PlodScorer(), budget_ms=budget_ms, max_wait_ms=max_wait_ms)

    async def run() -> None:
        body = completion("aaaa")
        await asyncio.gather(*(bench.apost("/v1/completions", body) for _ in range(320)))

    asyncio.run(run())
    assert bench.count(outcome) == 320


def test_a_full_queue_refuses_nothing(tmp_path: Path) -> None:
    """When too many prompts wait for the scorer, further requests go on unscored at once."""
    scorer = GatedScorer()
    bench = Bench(tmp_path, scorer, max_queued_prompts=2)

    async def run() -> None:
        bodies = [completion("a")] + [completion("b")] * 2 + [completion("c")] * 3
        tasks = []
        for body in bodies:
            tasks.append(asyncio.create_task(bench.apost("/v1/completions", body)))
            await asyncio.sleep(0)
            await asyncio.to_thread(scorer.entered.wait, DEADLINE_S)
        await asyncio.gather(*tasks[3:])
        scorer.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert bench.count("queue_full") == 3
    assert bench.count("scored") == 3
    assert len(bench.app.bodies) == 6


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 9999, b"9" * 9999])
def test_a_body_that_cannot_be_read_goes_on(tmp_path: Path, body: bytes) -> None:
    """What is not a JSON object is the engine's to refuse; it stands in the middle, or behind."""
    bench = Bench(tmp_path)
    bench.post("/v1/chat/completions", body, headers=[(b"x-vllm-priority", b"-1")])
    assert bench.app.priority is not None
    assert bench.app.priority >= NEUTRAL
    assert bench.app.bodies == [body]
    assert bench.count("undecodable") == 1


def test_a_body_too_large_streams_through(tmp_path: Path) -> None:
    """Beyond max_body_bytes a body is passed on unread, and stands where its size says."""
    bench = Bench(tmp_path, max_body_bytes=10)
    bench.post("/v1/completions", b"a" * 6, b"b" * 6, b"c" * 6)
    assert bench.app.priority == expected_key(500, 12)
    assert bench.app.bodies == [b"aaaaaabbbbbbcccccc"]
    assert bench.count("too_large") == 1


def test_all_bodies_together_are_bounded(tmp_path: Path) -> None:
    """When the bytes held for others fill the bound, a body streams through; then there is room."""
    bench = Bench(tmp_path, max_buffered_bytes=150)
    body = completion("a" * 80)
    release = asyncio.Event()
    first_is_held = asyncio.Event()

    async def slow_receive() -> Any:
        if not first_is_held.is_set():
            first_is_held.set()
            return {"type": "http.request", "body": body, "more_body": True}
        await release.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ignore(message: Any) -> None: ...

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        slow = asyncio.create_task(bench.middleware(scope, slow_receive, ignore))
        await first_is_held.wait()
        await bench.apost("/v1/completions", body)
        release.set()
        await slow
        await bench.apost("/v1/completions", body)

    asyncio.run(run())
    assert bench.count("buffers_full") == 1
    assert bench.count("scored") == 2
    assert len(bench.app.bodies) == 3


def test_a_client_that_leaves_while_sending_is_told_to_the_app(tmp_path: Path) -> None:
    """A disconnect in mid-body reaches the app, which decides what it means."""
    bench = Bench(tmp_path)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    bench.middleware.app = app
    messages = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(bench.middleware(scope, receive, None))  # type: ignore[arg-type]
    assert [m["type"] for m in seen] == ["http.request", "http.disconnect"]
    assert bench.count("client_left") == 1


def test_an_exception_of_the_app_is_the_apps(tmp_path: Path) -> None:
    """What the app raises passes through, and the bytes it held are given back."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("the app's own")

    bench = Bench(tmp_path)
    bench.middleware.app = broken
    with pytest.raises(LookupError, match="the app's own"):
        bench.post("/v1/completions", completion("a"))
    assert bench.middleware.byte_budget.num_bytes == 0


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None
)
@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate"]),
    body=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["prompt", "messages", "input", "max_tokens", "n", "priority", "text"]
                ),
                inner,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    engine=st.sampled_from(list(ENGINES)),
)
def test_no_body_breaks_it(tmp_path: Path, path: str, body: bytes, engine: str) -> None:
    """Any body reaches the app, once, with a priority that fits 64 bits."""
    bench = Bench(tmp_path, engine=engine)
    bench.post(path, body)
    assert len(bench.app.bodies) == 1
    if bench.app.priority is not None:
        assert abs(bench.app.priority) < 2**63
    has_own = b'"priority"' in body
    if bench.count("undecodable") or (ENGINES[engine].wants_header(path) and not has_own):
        assert bench.app.bodies == [body]
    if engine == "none" and b"priority" not in body:
        assert bench.app.bodies == [body]


# The ranker on disk


class Versions:
    """Stands for `Ranker.load`: a folder whose file says how many tokens to expect, or "bad"."""

    def __init__(self) -> None:
        self.num_loads = 0

    def load(self, folder: Path) -> Any:
        self.num_loads += 1
        try:
            content = (folder / "ranker.json").read_text()
        except OSError as error:
            raise RankerError(f"{folder}: no ranker") from error
        if content == "bad":
            raise RankerError(f"{folder}: damaged")
        tokens = float(content)
        info = SimpleNamespace(score_quantiles=[0.0, 1.0], expected_tokens=[tokens, tokens])
        return SimpleNamespace(
            info=info, score=lambda prompts: np.zeros(len(prompts), dtype=np.float32)
        )


def write(folder: Path, content: str, at_ns: int) -> None:
    (folder / "ranker.json").write_text(content)
    os.utime(folder / "ranker.json", ns=(at_ns, at_ns))


def test_a_new_ranker_on_disk_takes_over(tmp_path: Path) -> None:
    """A folder that changed is loaded once; unchanged it is not loaded again."""
    versions = Versions()
    ranker = LiveRanker(tmp_path, load=versions.load)
    write(tmp_path, "10", at_ns=1)
    assert ranker.refresh() is True
    assert ranker.refresh() is False
    assert [it.tokens for it in ranker.expect(["a", "b"])] == [10.0, 10.0]
    write(tmp_path, "20", at_ns=2)
    assert ranker.refresh() is True
    assert [it.tokens for it in ranker.expect(["a"])] == [20.0]
    assert versions.num_loads == 2


def test_a_damaged_ranker_leaves_the_old_one_serving(tmp_path: Path) -> None:
    """A folder that cannot be loaded is tried once a change, and the old ranker goes on."""
    versions = Versions()
    ranker = LiveRanker(tmp_path, load=versions.load)
    write(tmp_path, "10", at_ns=1)
    ranker.refresh()
    write(tmp_path, "bad", at_ns=2)
    with pytest.raises(RankerError, match="damaged"):
        ranker.refresh()
    assert ranker.refresh() is False
    assert [it.tokens for it in ranker.expect(["a"])] == [10.0]


def test_upkeep_outlives_failures(tmp_path: Path) -> None:
    """The watch over the folder goes on after a damaged ranker and picks up the next good one."""
    ranker = LiveRanker(tmp_path, load=Versions().load)
    write(tmp_path, "bad", at_ns=1)
    results: list[str] = []

    async def run() -> None:
        heard = asyncio.Event()

        def on_result(result: str) -> None:
            results.append(result)
            heard.set()

        task = asyncio.create_task(keep_fresh(ranker, 0.001, on_result))
        await asyncio.wait_for(heard.wait(), DEADLINE_S)
        heard.clear()
        write(tmp_path, "10", at_ns=2)
        await asyncio.wait_for(heard.wait(), DEADLINE_S)
        task.cancel()

    asyncio.run(run())
    assert results == ["failed", "loaded"]


def test_serving_goes_on_without_any_ranker(tmp_path: Path) -> None:
    """With no ranker folder at start every request passes, counted, until one appears."""
    folder = tmp_path / "later"
    ranker = LiveRanker(folder, load=Versions().load)
    bench = Bench(tmp_path, ranker=ranker)
    bench.post("/v1/completions", completion("aaaa"))
    assert bench.count("no_ranker") == 1
    assert bench.app.priority is not None
    folder.mkdir()
    write(folder, "7", at_ns=5)
    assert ranker.refresh() is True
    assert ranker.is_loaded


# Inside vLLM


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.32.0+cpu", "vllm"),
        ("0.28.0", "vllm"),
        ("0.27.3", "vllm-body"),
        ("0.9.1", "vllm-body"),
        ("1.0.0", "vllm"),
        ("0.1.dev17423+gabcdef", "vllm"),
        ("", "vllm"),
        (None, "vllm"),
    ],
)
def test_the_header_is_used_from_the_version_that_has_it(version: str | None, name: str) -> None:
    """vLLM takes the header from 0.28 on; what cannot be read counts as new."""
    assert vllm_engine(version).name == name


def vllm_app(policy: str) -> Any:
    config = SimpleNamespace(scheduler_config=SimpleNamespace(policy=policy))
    return SimpleNamespace(state=SimpleNamespace(vllm_config=config))


@pytest.mark.parametrize(("policy", "gauge"), [("priority", 1.0), ("fcfs", 0.0)])
def test_a_vllm_that_ignores_priorities_is_named(
    tmp_path: Path, policy: str, gauge: float, caplog: pytest.LogCaptureFixture
) -> None:
    """At start-up vLLM's scheduling policy is read off its app, said in the log and as a metric."""
    bench = Bench(tmp_path)
    scope = {"type": "lifespan", "app": vllm_app(policy)}
    with caplog.at_level("INFO", logger="pars"):
        asyncio.run(bench.middleware(scope, None, None))  # type: ignore[arg-type]
    assert ("IGNORES every priority" in caplog.text) == (policy == "fcfs")
    registry = bench.metrics.registry
    assert registry.get_sample_value("pars_engine_schedules_by_priority") == gauge


def test_scheduling_policy_of_other_hosts_is_unknown() -> None:
    """An app that is not vLLM's has no policy; vLLM's arguments do where its config is missing."""
    assert scheduling_policy(None) is None
    assert scheduling_policy(SimpleNamespace(state=SimpleNamespace())) is None
    args = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(scheduling_policy="fcfs")))
    assert scheduling_policy(args) == "fcfs"


def test_a_scorer_that_hangs_does_not_hold_up_shutdown(
    tmp_path: Path,
) -> None:
    """The server stops although the scorer's thread never comes back."""
    scorer = GatedScorer()
    bench = Bench(tmp_path, scorer, budget_ms=1.0)
    bench.middleware.max_closing_s = 0.01

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await bench.apost("/v1/completions", completion("a"))

    bench.middleware.app = app
    asyncio.run(bench.middleware({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    scorer.gate.set()


def test_threads_do_not_pile_up(tmp_path: Path) -> None:
    """A middleware that has stopped leaves no scorer thread behind."""
    bench = Bench(tmp_path)
    before = threading.active_count()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await bench.apost("/v1/completions", completion("a"))

    bench.middleware.app = app
    asyncio.run(bench.middleware({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert bench.count("scored") == 1
    eventually(lambda: threading.active_count() <= before)


# The same order everywhere


@pytest.mark.parametrize(
    ("policy", "bound"),
    [
        ("ranker@30", {"max_overtake_s": 30.0}),
        ("ranker@1x", {"max_overtake_s": NO_OVERTAKE_BOUND, "max_slowdown": 1.0}),
        ("ranker@infx", {"max_overtake_s": NO_OVERTAKE_BOUND, "max_slowdown": math.inf}),
    ],
)
@pytest.mark.parametrize("prompt_chars", [4, 400, 4000])
def test_simulate_and_bench_give_a_request_the_key_that_the_middleware_gives(
    tmp_path: Path, policy: str, bound: dict[str, float], prompt_chars: int
) -> None:
    """From the same prompt, limit and ranker; a key that holds the arrival moves with it."""
    prompt = "x" * prompt_chars
    request = WorkloadRequest("0", 0.0, prompt, prompt_chars // 4, 7, max_tokens=300)
    contender, scores = Contender.parse(policy), [float(prompt_chars)]
    [key] = keys_of(contender, [request], scores, Calibration.of(INFO))

    bench = Bench(tmp_path, **bound)
    bench.post("/v1/completions", json.dumps({"prompt": prompt, "max_tokens": 300}).encode())

    holds_arrival = policy != "ranker@infx"
    moved = round((START_S - NOW_S) * 1e6) if holds_arrival else 0
    assert bench.app.priority == key - moved
