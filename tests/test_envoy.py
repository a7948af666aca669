"""A real Envoy, with the configuration that is shipped, before an engine that remembers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import exchange
from pars.request.paths import UNGENERATING
from pars.request.prompts import READERS
from pars.scheduling.dialects import DIALECT_HEADERS

from engine import ROOT, free_port, wait_until
from fake_engine import FakeEngine
from serving import eventually

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]
ENVOY = ROOT / ".envoy/bin/envoy"
CONFIG = ROOT / "deploy/envoy/envoy.yaml"
PATH = "/v1/completions"
US = 1_000_000


@dataclass
class Bench:
    """An Envoy with pars and an engine, all on free ports."""

    folder: Path
    engine: FakeEngine = field(default_factory=lambda: FakeEngine(num_slots=64))
    clients: int = field(default_factory=free_port)
    pars_port: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    pars: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.clients}"

    def start_pars(self) -> None:
        words = [sys.executable, "-m", "pars", "ext-proc", "--port", str(self.pars_port)]
        words += ["--metrics-port", str(self.metrics), "--outcomes", str(self.folder / "outcomes")]
        with (self.folder / "pars.log").open("ab") as log:
            environ = {**os.environ, **self.settings}
            self.pars = subprocess.Popen(words, stdout=log, stderr=log, env=environ)
        wait_until(self._has_pars, "pars ext-proc", 60)

    def _has_pars(self) -> bool:
        assert self.pars is not None
        assert self.pars.poll() is None, (self.folder / "pars.log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{self.metrics}/metrics").is_success
        except httpx.TransportError:
            return False

    def end_pars(self, number: int = signal.SIGKILL) -> int:
        assert self.pars is not None
        self.pars.send_signal(signal.SIGCONT)
        self.pars.send_signal(number)
        return self.pars.wait(30)

    def ask(self, prompt: str = "x", headers: dict[str, str] | None = None, **more: Any) -> Any:
        body = {"prompt": prompt, "max_tokens": 4, **more}
        return httpx.post(self.url + PATH, json=body, headers=headers, timeout=30)

    def priority(self, *arguments: Any, **more: Any) -> int:
        """Of a request, as the engine got it."""
        assert self.ask(*arguments, **more).status_code == 200
        return self.engine.asked[-1].priority

    def counted(self, line: str) -> float:
        """A sample of pars's metrics."""
        page = httpx.get(f"http://127.0.0.1:{self.metrics}/metrics").text
        found = re.search(rf"^{re.escape(line)} (\S+)$", page, re.M)
        return float(found[1]) if found else 0.0

    def is_scored(self) -> bool:
        before = self.counted('pars_decisions_total{outcome="scored"}')
        self.ask()
        return self.counted('pars_decisions_total{outcome="scored"}') > before


@contextmanager
def bench(folder: Path, config: str | None = None, **settings: str) -> Iterator[Bench]:
    it = Bench(folder, settings=settings)
    with it.engine.served() as up:
        text = config or CONFIG.read_text()
        ports = {8100: it.clients, 9002: it.pars_port, 9901: it.admin}
        ports[8000] = int(up.rpartition(":")[2])
        for shipped, port in ports.items():
            text = text.replace(f"port_value: {shipped}}}", f"port_value: {port}}}")
        (folder / "envoy.yaml").write_text(text)
        words = [ENVOY, "-c", folder / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"]
        words += ["--log-level", "warn"]
        with (folder / "envoy.log").open("wb") as log:
            envoy = subprocess.Popen([*map(str, words)], stdout=log, stderr=log)
        try:
            it.start_pars()
            wait_until(lambda: _is_live(it.admin), "Envoy", 30)
            yield it
        finally:
            envoy.kill()
            envoy.wait()
            if it.pars is not None and it.pars.poll() is None:
                it.end_pars()


def _is_live(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").text.strip() == "LIVE"
    except httpx.TransportError:
        return False


def is_now(priority: int) -> bool:
    """Whether it is an arrival of this minute, in microseconds since 1970."""
    return abs(priority / US - time.time()) < 60


def test_the_shipped_configuration_is_valid() -> None:
    """Envoy itself says so."""
    words = [ENVOY, "-c", CONFIG, "--mode", "validate"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_path_with_a_priority_asks_pars() -> None:
    """The expression in the configuration knows every path that pars reads, and no other."""
    regex = "|".join(re.findall(r'safe_regex: \{regex: "(.*?)"\}', CONFIG.read_text()))
    assert [
        path for path in (*READERS, *UNGENERATING) if not re.fullmatch(regex, "/team" + path)
    ] == []
    assert re.fullmatch(regex, "/v1/completions%0A")
    assert not re.fullmatch(regex, "/v1/models")


def test_requests_get_keys_in_one_epoch_and_the_answers_are_learned(tmp_path: Path) -> None:
    """Scored, the client's own priority gone; what the engine answered is in the outcomes."""
    with bench(tmp_path) as it:
        first = it.priority("a", {"X-Vllm-Priority": "-5", "X-Pars-Id": "mine"})
        assert first > 0
        names = [name for name, _ in it.engine.asked[-1].headers]
        assert names.count(b"x-vllm-priority") == 1
        assert not {b"x-pars-id", b"x-pars-secret"} & set(names)
        assert it.is_scored()
        assert it.ask("b", stream=True, max_tokens=7).status_code == 200
        eventually(lambda: len(outcomes(tmp_path)) == 3)
        lengths = sorted(one.get("answer_tokens") for one in outcomes(tmp_path))
        assert lengths == [4, 4, 7]
        assert it.end_pars(signal.SIGTERM) == 0


BY_DIALECT: dict[str, tuple[set[bytes], tuple[str, ...]]] = {
    "vllm-router": ({b"x-vllm-priority"}, ("priority",)),
    "litellm": (set(), ("extra_body", "priority")),
    "llm-d": ({b"x-vllm-priority", b"x-llm-d-slo-ttft-ms"}, ()),
    "dynamo": (
        {b"x-dynamo-request-priority", b"x-dynamo-request-strict-priority"},
        ("nvext", "agent_hints", "osl"),
    ),
}


@pytest.mark.parametrize("dialect", BY_DIALECT)
def test_the_place_goes_where_the_router_reads_it(tmp_path: Path, dialect: str) -> None:
    """By --dialect; what the client says itself is gone, and so is a key that would say another."""
    own = {it.decode(): "77777" for it in DIALECT_HEADERS}
    names, path = BY_DIALECT[dialect]
    with bench(tmp_path, PARS_DIALECT=dialect) as it:
        it.ask("a", own)
        got = it.engine.asked[-1]
        told = {name: value for name, value in got.headers if name in DIALECT_HEADERS}
        it.end_pars()
        it.ask("a", own)
        without_pars = {name for name, _ in it.engine.asked[-1].headers if name in DIALECT_HEADERS}

    assert told.keys() == names
    assert b"77777" not in told.values()
    value = got.json()
    for part in path:
        value = value[part]
    assert not path or isinstance(value, int)
    assert without_pars == {b"x-vllm-priority"}  # Envoy's own first-come key


def test_tenants_are_told_by_a_header(tmp_path: Path) -> None:
    """With --tenants; the share of each is counted under its name."""
    (tmp_path / "tenants.toml").write_text('header = "X-Tenant"\n[tenants.batch]\nweight = 1\n')
    with bench(tmp_path, PARS_TENANTS=str(tmp_path / "tenants.toml")) as it:
        assert it.ask("a", {"X-Tenant": "batch"}).status_code == 200
        eventually(lambda: it.counted('pars_tenant_work_tokens_total{tenant="batch"}') > 0)


def test_another_spelling_of_a_path_has_its_place_too(tmp_path: Path) -> None:
    """FastAPI takes the first for the plain one, and reads the escapes of both."""
    with bench(tmp_path) as it:
        for path in ("/v1/completions%0A", "/v1/%63ompletions"):
            httpx.post(it.url + path, json={"prompt": "a"}, headers={"X-Vllm-Priority": "-5"})
            sent = dict(it.engine.asked[-1].headers)[b"x-vllm-priority"]
            assert int(sent) > 0
        eventually(lambda: sum(one["decision"] != "trusted" for one in outcomes(tmp_path)) == 2)


def test_what_generates_nothing_loses_its_own_priority(tmp_path: Path) -> None:
    """And no other byte, though it gets no place."""
    with bench(tmp_path) as it:
        body = b'{"input" : "x", "priority": -9, "n":1.0 }'
        httpx.post(it.url + "/v1/embeddings", content=body)
        assert it.engine.asked[-1].body == b'{"input" : "x", "n":1.0 }'


def outcomes(folder: Path) -> list[dict[str, Any]]:
    lines = [
        line
        for path in (folder / "outcomes").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [one for line in lines if "path" in (one := json.loads(line))]


def test_a_pars_that_is_gone_slow_or_back_costs_no_request(tmp_path: Path) -> None:
    """Unscored requests stand by their arrival; once it is back, they are scored again."""
    with bench(tmp_path, PARS_MAX_OVERTAKE_S="30") as it:
        assert it.is_scored()
        assert it.priority("a") > time.time() * US, "behind its arrival, by what is expected"
        assert it.pars is not None
        it.pars.send_signal(signal.SIGSTOP)
        assert is_now(it.priority(headers={"X-Vllm-Priority": "-5"}))
        it.end_pars()
        assert is_now(it.priority(headers={"X-Vllm-Priority": "-5"}))
        it.start_pars()
        eventually(it.is_scored)


def test_restarts_under_load_lose_no_request(tmp_path: Path) -> None:
    """Killed and started again while requests come: each gets 200 and a priority."""
    with bench(tmp_path) as it, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(it.ask, "x" * (at % 50), stream=at % 2 == 0) for at in range(300)]
        for number in (signal.SIGKILL, signal.SIGTERM):
            it.end_pars(number)
            it.start_pars()
        assert {one.result().status_code for one in asked} == {200}
        assert all(one.priority > 0 for one in it.engine.asked)


def test_large_bodies_pass_whole_and_streams_piece_by_piece(tmp_path: Path) -> None:
    """3 MB arrive as sent, by their size; a stream's first piece comes before its last is made."""
    with bench(tmp_path, PARS_MAX_OVERTAKE_S="30") as it:
        prompt = "y" * 3_000_000
        assert it.ask(prompt).status_code == 200
        assert it.engine.asked[-1].json()["prompt"] == prompt
        assert it.counted('pars_decisions_total{outcome="too_large"}') == 1
        it.engine.token_s = 0.01
        body = {"prompt": "x", "max_tokens": 200, "stream": True}
        with httpx.stream("POST", it.url + PATH, json=body, timeout=30) as answer:
            pieces = answer.iter_raw()
            first = next(pieces)
            assert b"tok0" in first
            assert it.engine.num_running == 1
            it.end_pars()
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"prompt":' + b"[" * 500, b"null"]
)
def test_bodies_that_are_no_requests_are_the_engines_to_refuse(
    one_bench: Bench, content: bytes
) -> None:
    """The engine's own 400 comes back, and pars lives."""
    answer = httpx.post(one_bench.url + PATH, content=content, timeout=30)
    assert answer.status_code == 400
    assert "want a prompt" in answer.text
    assert one_bench.engine.asked[-1].body == content


@pytest.fixture(scope="module")
def one_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("envoy")) as it:
        yield it


def test_other_paths_do_not_wake_pars(one_bench: Bench) -> None:
    """They have no priority, the client's own neither."""
    headers = {"X-Vllm-Priority": "-5"}
    for answer in (
        httpx.get(one_bench.url + "/v1/models", headers=headers),
        httpx.post(one_bench.url + "/echo", content=b"{}", headers=headers),
    ):
        assert answer.status_code == 200
        assert b"x-vllm-priority" not in dict(one_bench.engine.asked[-1].headers)


JSON = b'{"prompt":"x"}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
LENGTH, CHUNKED = b"content-length: 14\r\n", b"transfer-encoding: chunked\r\n"
CHUNKS = b"e\r\n" + JSON + b"\r\n0\r\n\r\n"
INNER = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
SMUGGLING: dict[str, tuple[bytes, int]] = {
    "length and coding": (HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS, 400),
    "a request behind chunks": (
        HEAD + b"content-length: 40\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + INNER,
        400,
    ),
    "two lengths": (HEAD + LENGTH + b"content-length: 2\r\n\r\n" + JSON, 400),
    "a list of lengths": (HEAD + b"content-length: 14, 14\r\n\r\n" + JSON, 400),
    "length +14": (HEAD + b"content-length: +14\r\n\r\n" + JSON, 400),
    "coding xchunked": (HEAD + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKS, 501),
    "coding gzip, chunked": (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKS, 501),
    "a NUL": (HEAD + b"x-a: 1\0\r\n" + LENGTH + b"\r\n" + JSON, 400),
    "%2f in the path": (
        HEAD.replace(b"/v1/", b"/v1%2f") + LENGTH + b"\r\n" + JSON,
        400,
    ),
    "connection: content-length": (
        HEAD.replace(b"close", b"close, content-length") + LENGTH + b"\r\n" + JSON,
        200,
    ),
    "connection: x-vllm-priority": (
        HEAD.replace(b"close", b"close, x-vllm-priority")
        + b"x-vllm-priority: -1\r\n"
        + LENGTH
        + b"\r\n"
        + JSON,
        200,
    ),
    "x_vllm_priority": (HEAD + b"x_vllm_priority: -1\r\n" + LENGTH + b"\r\n" + JSON, 200),
    "a priority in trailers": (
        HEAD + CHUNKED + b"\r\ne\r\n" + JSON + b"\r\n0\r\nx-vllm-priority: -7\r\n\r\n",
        200,
    ),
    "path ..": (HEAD.replace(b"/v1/", b"/v1/models/../") + LENGTH + b"\r\n" + JSON, 200),
}


@pytest.mark.parametrize("case", SMUGGLING)
def test_what_leaves_a_doubt_does_not_pass(one_bench: Bench, case: str) -> None:
    """Refused, or one request with one priority of ours and the body that was meant."""
    sent, status = SMUGGLING[case]
    before = len(one_bench.engine.asked)
    got = exchange(one_bench.url, sent)
    assert int(got.split(b" ")[1]) == status
    came = one_bench.engine.asked[before:]
    assert len(came) == (status == 200)
    for asked in came:
        fields = [(name, value) for name, value in asked.headers if b"priority" in name]
        assert len(fields) == 1
        assert int(fields[0][1]) > 0
        assert asked.body == JSON


def duplex(config: str) -> str:
    """The configuration in the mode of the Gateway API inference extension, of one filter."""
    config = config.replace(
        "request_header_mode: SEND, request_body_mode: BUFFERED_PARTIAL, response_header_mode:"
        " SKIP, response_body_mode: NONE",
        "request_header_mode: SEND, request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode:"
        " SEND, response_header_mode: SEND, response_body_mode: FULL_DUPLEX_STREAMED,"
        " response_trailer_mode: SEND",
    )
    start = config.index("          # Answers are seen")
    end = config.index("          # What is said to pars")
    return (config[:start] + config[end:]).replace("                  pars-lengths: *off\n", "")


def test_duplex_streams_are_scored_given_back_and_learned(tmp_path: Path) -> None:
    """Small bodies, 3 MB, and answers pass whole; the client's priority is gone."""
    with bench(tmp_path, duplex(CONFIG.read_text())) as it:
        assert it.priority("a", {"X-Vllm-Priority": "-5"}) > 0
        assert it.is_scored()
        prompt = "y" * 3_000_000
        assert it.ask(prompt).status_code == 200
        assert it.engine.asked[-1].json()["prompt"] == prompt
        assert it.ask("b", stream=True, max_tokens=7).text.endswith("data: [DONE]\n\n")
        assert httpx.post(it.url + PATH, content=b"{", timeout=30).status_code == 400
        eventually(lambda: len(outcomes(tmp_path)) == 5)
        lengths = [one.get("answer_tokens") for one in outcomes(tmp_path)]
        assert sorted(lengths, key=str) == [4, 4, 4, 7, None]
