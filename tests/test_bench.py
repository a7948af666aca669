"""`pars bench` against servers that behave, and against servers that do not, on real sockets."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import ParsError
from pars.prove.live.bench import run_bench
from pars.prove.live.bench_plan import BenchOptions, scores_for
from pars.prove.report.times import read_result
from pars.prove.workload.scores import RankerSource
from pars.prove.workload.workload import WorkloadRequest, read_workload, write_workload
from pars.ranking.ranker import bundled_ranker

from fake_engine import FakeEngine
from rankers import lite_ranker
from serving import DEADLINE_S, eventually, serve_in_thread

SSE = [(b"content-type", b"text/event-stream")]


class Server:
    """
    Answers as the prompt says; well where it says nothing of the kind. Remembers what it got.

    Args:
        num_together: Answers begin once so many requests are here.
    """

    def __init__(self, version: str = "0.32.0", num_together: int = 1, metrics: str = "") -> None:
        self.version = version
        self.num_together = num_together
        self.metrics = metrics
        self.bodies: list[dict] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.arrived: asyncio.Event | None = None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        pages = {
            "/version": self.version and json.dumps({"version": self.version}),
            "/v1/models": '{"data": [{"id": "first"}, {"id": "second"}]}',
            "/metrics": self.metrics,
        }
        if scope["method"] == "GET":
            there = bool(pages.get(scope["path"]))
            await reply(send, 200 if there else 404, pages.get(scope["path"], "").encode())
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        asked = json.loads(body)
        if asked["max_tokens"] > 8:  # not the warm-up
            self.bodies.append(asked)
            self.headers.append(dict(scope["headers"]))
            await self.all_here()
        await self.answer(asked, send)

    async def all_here(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.arrived = self.arrived or asyncio.Event()
        if len(self.bodies) >= self.num_together:
            self.arrived.set()
        await self.arrived.wait()

    def let_go(self) -> None:
        """Answer those that wait, so that the server can end."""
        self.loop.call_soon_threadsafe(self.arrived.set)

    async def answer(self, asked, send) -> None:
        prompt = asked["prompt"] if "prompt" in asked else asked["messages"][0]["content"]
        count = asked["max_tokens"]
        if prompt == "429":
            await reply(send, 429, b'{"error": {"message": "slow down"}}')
        elif prompt == "html":
            await reply(send, 200, b"<html>please log in</html>", b"text/html; charset=utf-8")
        elif prompt == "whole":
            await reply(send, 200, b'{"choices": []}')
        elif prompt == "empty":
            await stream(send, 0, usage=False)
        elif prompt == "no json":
            await reply(send, 200, b"data: {oops\n\n", SSE[0][1])
        elif prompt == "error":
            await reply(send, 200, b'data: {"error": {"message": "out of memory"}}\n\n', SSE[0][1])
        elif prompt == "no end":
            await stream(send, count, end=b"")
        elif prompt == "broken":
            await stream(send, count // 2, end=None)
        elif prompt == "few":
            await stream(send, count - 1)
        elif prompt == "many":
            await stream(send, count + 1)
        else:
            await stream(send, count, usage=prompt != "no usage")


async def reply(send, status, body, content_type=b"application/json"):
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send, num_tokens, *, usage=True, end=b"data: [DONE]\n\n"):
    """Events of a token each; `end` None breaks the connection off after the last one."""
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    for _ in range(num_tokens):
        event = {"choices": [{"index": 0, "text": "x", "finish_reason": None}]}
        body = b"data: " + json.dumps(event).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    if end is None:
        raise ConnectionAbortedError("meant by the test")
    if usage:
        counts = {"prompt_tokens": 7, "completion_tokens": num_tokens}
        event = {"choices": [], "usage": counts}
        end = b"data: " + json.dumps(event).encode() + b"\n\n" + end
    await send({"type": "http.response.body", "body": end})


def workload(folder: Path, prompts: list[str], lengths: list[int] | None = None, gap_s=0.0) -> Path:
    path = folder / "load.jsonl"
    requests = [
        WorkloadRequest(f"r{n}", n * gap_s, prompt, 5, lengths[n] if lengths else 10)
        for n, prompt in enumerate(prompts)
    ]
    write_workload(path, {"source": "test"}, requests)
    return path


def bench(folder: Path, url: str, prompts: list[str], *policies: str, **options):
    """The result of a whole bench; one repeat unless told."""
    lengths, gap_s = options.pop("lengths", None), options.pop("gap_s", 0.0)
    asked = {"repeats": 1, **options}
    assert run_bench(
        BenchOptions(
            url=url,
            workload=workload(folder, prompts, lengths, gap_s),
            policies=policies or ("fcfs",),
            output_dir=folder / "out",
            **asked,
        )
    )
    return read_result(folder / "out")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_each_failure_is_counted_by_its_kind(tmp_path, caplog):
    """A dozen ways to answer wrongly; the good answer among them is the only one without error."""
    kinds = {
        "good": None,
        "no usage": None,
        "429": "HTTP 429",
        "html": "no stream but text/html",
        "whole": "no stream but application/json",
        "empty": "no token in the answer",
        "no json": "an event that is no JSON of a completion",
        "error": "an error in the stream",
        "no end": "the stream ended without [DONE]",
        "broken": "the stream broke off",
        "few": "too few tokens",
        "many": "too many tokens",
    }
    caplog.set_level("CRITICAL", "uvicorn.error")  # it tells of the connection we break off
    with serve_in_thread(Server(), log_level="critical") as url:
        result = bench(tmp_path, url, list(kinds), lengths=[20] * len(kinds))

    found = {r.request_id: r.error for r in result.requests}
    assert found == {f"r{n}": kind for n, kind in enumerate(kinds.values())}
    [run] = result.runs
    assert run.facts["error_excerpts"]["HTTP 429"] == '{"error": {"message": "slow down"}}'
    good = result.requests[[r.request_id for r in result.requests].index("r0")]
    assert (good.output_tokens, good.prompt_tokens, good.asked_tokens) == (20, 7, 20)
    assert not result.interrupted


def test_requests_do_not_wait_for_answers(tmp_path):
    """The server answers nobody until all thirty are there: a closed loop would hang."""
    with serve_in_thread(Server(num_together=30)) as url:
        result = bench(tmp_path, url, ["good"] * 30, gap_s=0.001)

    assert [r.error for r in result.requests] == [None] * 30


def test_what_a_request_looks_like(tmp_path):
    """Exact length, a stream with usage, a priority, and a salt for the prefix cache."""
    server = Server()
    with serve_in_thread(server) as url:
        bench(tmp_path, url, ["hello"], api_key="sesame", extra_body={"temperature": 0.5})

    salt = server.bodies[0].pop("cache_salt")
    assert salt.startswith("fcfs-")
    assert server.bodies[0] == {
        "model": "first",
        "prompt": "hello",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 10,
        "ignore_eos": True,
        "temperature": 0.5,
    }
    assert int(server.headers[0][b"x-vllm-priority"]) > 0
    assert server.headers[0][b"authorization"] == b"Bearer sesame"


def test_the_models_own_end(tmp_path):
    """No ignore_eos, greedy, and whatever length comes is right; a chat has one user message."""
    server = Server()
    with serve_in_thread(server) as url:
        result = bench(tmp_path, url, ["few"], own_eos=True, endpoint="chat", model="second")

    assert result.requests[0].error is None
    assert result.requests[0].output_tokens == 1023
    assert "ignore_eos" not in server.bodies[0]
    assert server.bodies[0]["temperature"] == 0
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "few"}]
    assert server.bodies[0]["model"] == "second"


@pytest.mark.parametrize(
    ("version", "secret", "in_header"),
    [("0.32.0", None, True), ("0.27.0", None, False), ("0.27.0", "s3", True)],
)
def test_the_priority_goes_where_the_engine_reads_it(tmp_path, version, secret, in_header):
    """Since 0.28 a header, before it the body; a trusted gateway takes it by header always."""
    server = Server(version)
    with serve_in_thread(server) as url:
        bench(tmp_path, url, ["a", "b"], "oracle", lengths=[30, 20], secret=secret)

    values = {
        body["max_tokens"]: (headers.get(b"x-vllm-priority"), body.get("priority"))
        for body, headers in zip(server.bodies, server.headers, strict=True)
    }
    keys = {n: int(values[n][0] if in_header else values[n][1]) for n in (20, 30)}
    assert keys[20] < keys[30]
    assert all((header is not None) == in_header for header, _ in values.values())
    assert all((field is not None) != in_header for _, field in values.values())
    assert {h.get(b"x-pars-secret") for h in server.headers} == {
        secret.encode() if secret else None
    }


def test_a_gateway_gets_no_priority(tmp_path):
    """The policy `gateway` sends neither priority nor secret: the URL ranks by itself."""
    server = Server()
    with serve_in_thread(server) as url:
        bench(tmp_path, url, ["a"], "gateway", secret="s3")

    assert b"x-vllm-priority" not in server.headers[0]
    assert b"x-pars-secret" not in server.headers[0]
    assert "priority" not in server.bodies[0]


def test_policies_that_a_middleware_would_override_are_refused(tmp_path):
    """Where pars ranks already and no secret is given, fcfs would not be fcfs."""
    server = Server(metrics='pars_decisions_total{outcome="scored"} 3.0\n')
    with (
        serve_in_thread(server) as url,
        pytest.raises(ParsError, match=r"replace the priorities of fcfs: give --secret-env"),
    ):
        bench(tmp_path, url, ["a"])


def test_an_engine_that_takes_no_priority_is_refused(tmp_path):
    """Neither vLLM nor SGLang: the oracle could not be obeyed, and --engine is named."""
    with (
        serve_in_thread(Server(version="")) as url,
        pytest.raises(ParsError, match=r"priorities .*--engine"),
    ):
        bench(tmp_path, url, ["a"], "fcfs", "oracle")


def test_policies_take_turns_and_rotate(tmp_path):
    """Each repeat begins with the next policy; every run has its own share of the prefix cache."""
    server = Server()
    with serve_in_thread(server) as url:
        result = bench(tmp_path, url, ["a"] * 2, "fcfs", "oracle@5", "reversed", repeats=3)

    order = [run.policy for run in result.runs]
    assert " ".join(order) == (
        "fcfs oracle@5 reversed oracle@5 reversed fcfs reversed fcfs oracle@5"
    )
    assert len(result.requests) == 18
    salts = {body["cache_salt"] for body in server.bodies}
    assert len(salts) == 9
    assert not any(set(salt) & set("@/\\") for salt in salts)  # vLLM refuses these


def test_rates_scale_the_arrivals(tmp_path):
    """Eleven requests over 10 s, at 100 and 200 a second: over 0.1 and 0.05 s."""
    with serve_in_thread(Server()) as url:
        result = bench(tmp_path, url, ["a"] * 11, gap_s=1.0, rates=(100.0, 200.0))

    last = {r.rate: max(q.arrival_s for q in result.requests if q.rate == r.rate)
            for r in result.runs}  # fmt: skip
    assert last == {100.0: pytest.approx(0.1), 200.0: pytest.approx(0.05)}


def test_a_note_is_for_the_ranker_and_not_for_the_engine(tmp_path):
    """What came before a message is not part of what is asked, by either interface."""
    server = Server()
    with serve_in_thread(server) as url:
        bench(tmp_path / "a", url, ["→2 1024 768\nhello"], endpoint="completions")
        bench(tmp_path / "b", url, ["→2 1024 768\nhello"], endpoint="chat")

    assert server.bodies[0]["prompt"] == "hello"
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.torch
def test_a_ranker_beside_a_gateway_sees_what_that_sees(tmp_path):
    """With the gateway among the policies a ranker scores the bare message, else its note too."""
    folder = lite_ranker(tmp_path / "noted", reads_notes=True)
    path = workload(tmp_path, ["→2 1024 768\nWrite a story", "Write a story"])
    scores = {
        policies: scores_for(
            BenchOptions(
                url="http://127.0.0.1:1",
                workload=path,
                policies=policies,
                sources={"ranker:noted": RankerSource(folder)},
                output_dir=tmp_path / "out",
            ),
            read_workload(path),
        )["ranker:noted"].values
        for policies in (("fcfs", "ranker:noted"), ("ranker:noted", "gateway"))
    }

    noted, bare = scores.values()
    assert noted[0] != noted[1]
    assert bare[0] == bare[1] == noted[1]


def test_the_ranker_is_asked_before_the_run_and_its_cost_is_told(tmp_path):
    """The bundled ranker's scores become priorities; milliseconds a prompt stand in the header."""
    server = Server()
    prompts = ["What is 2 + 2?", "Write a detailed essay on the history of Rome."]
    with serve_in_thread(server) as url:
        result = bench(tmp_path, url, prompts, "ranker", lengths=[90, 20])

    key = {b["prompt"]: int(h[b"x-vllm-priority"]) for b, h in
           zip(server.bodies, server.headers, strict=True)}  # fmt: skip
    assert key[prompts[0]] < key[prompts[1]]  # although its answer here is the longer one
    assert result.header["rankers"]["ranker"]["scoring_ms_per_prompt"] > 0
    assert result.runs[0].scoring_s is not None


def test_several_rankers_run_side_by_side(tmp_path):
    """Each under its own name, and its cost too; a name without a folder is an error."""
    with serve_in_thread(Server()) as url:
        named = {"ranker:own": RankerSource(bundled_ranker())}
        result = bench(tmp_path, url, ["a", "b"], "ranker", "ranker:own@30", sources=named)

        with pytest.raises(ParsError, match="policy ranker:other: give its folder: --ranker other"):
            bench(tmp_path / "other", url, ["a"], "ranker:other")

    assert {request.policy for request in result.requests} == {"ranker", "ranker:own@30"}
    assert set(result.header["rankers"]) == {"ranker", "ranker:own"}


def test_the_engines_queue_is_looked_at(tmp_path):
    """Two slots and six requests: some look sees a queue, and the last one an idle engine."""
    page = 'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 4.0\n'
    with serve_in_thread(Server(metrics=page)) as url:
        result = bench(tmp_path, url, ["a"])

    [run] = result.runs
    assert {(s.num_running, s.num_waiting) for s in run.queue} == {(2, 4)}


def test_the_oracle_ends_shortest_first(tmp_path):
    """With one slot, what waits ends by length under the oracle, by arrival under fcfs."""
    lengths = [300, 40, 10, 30, 20]
    expected = {
        "fcfs": [0, 1, 2, 3, 4],
        "oracle": [0, 2, 4, 3, 1],
        "oracle@1x": [0, 1, 2, 3, 4],  # nothing is express
        "oracle@infx": [0, 2, 4, 3, 1],  # everything is
    }
    engine = FakeEngine(num_slots=1, token_s=0.001)
    with engine.served() as url:
        result = bench(tmp_path, url, list("abcde"), *expected, lengths=lengths, gap_s=0.02)

    for policy, order in expected.items():
        ends = [r for r in result.requests if r.policy == policy]
        ends.sort(key=lambda r: r.finished_s)
        assert [int(r.request_id[1:]) for r in ends] == order
        assert {r.error for r in ends} == {None}


def test_an_express_lane_hears_the_engine_as_in_a_gateway(tmp_path):
    """
    Six answers tell how fast the engine is; then short ones pass a long one that waits.

    A lane that heard neither beginnings nor ends would have an empty bucket: all by arrival.
    """
    lengths = [50] * 6 + [300, 200, 10, 11, 12]
    arrivals_s = [0.06 * n for n in range(6)] + [0.5, 0.52, 0.54, 0.56, 0.58]
    path = tmp_path / "load.jsonl"
    requests = [
        WorkloadRequest(f"{n:02d}", at_s, "a", 5, lengths[n]) for n, at_s in enumerate(arrivals_s)
    ]
    write_workload(path, {"source": "test"}, requests)
    with FakeEngine(num_slots=1, token_s=0.001).served() as url:
        options = BenchOptions(
            url=url, workload=path, policies=("oracle@2x",), output_dir=tmp_path / "out", repeats=1
        )
        assert run_bench(options)

    ends = sorted(read_result(tmp_path / "out").requests, key=lambda r: r.finished_s)
    assert [it.output_tokens for it in ends][6:] == [300, 10, 11, 12, 200]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"policies": ("best",)}, "policy 'best'"),
        ({"policies": ("fcfs", "fcfs")}, "names one twice"),
        ({"policies": ()}, "at least one policy"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, told):
    """Before anything is read or sent."""
    with pytest.raises(ParsError, match=told):
        BenchOptions(url="http://x", workload=tmp_path, output_dir=tmp_path, **options)


def test_nobody_at_the_address(tmp_path):
    """One line says so, and no result is begun."""
    path = workload(tmp_path, ["a"])
    asked = ["bench", "http://127.0.0.1:1", "--workload", str(path), "--output-dir"]
    outcome = CliRunner().invoke(commands, [*asked, str(tmp_path / "out")])

    assert isinstance(outcome.exception, ParsError)
    assert "is the engine up?" in str(outcome.exception)
    assert not (tmp_path / "out").exists()


def test_a_server_that_answers_nothing_is_told_at_once(tmp_path):
    """When the whole warm-up fails, the server's own words are shown and no run begins."""
    with (
        serve_in_thread(Server()) as url,
        pytest.raises(ParsError, match=r"answers no request: HTTP 429: .*slow down"),
    ):
        bench(tmp_path, url, ["429"])


def heeding_ctrl_c() -> None:
    """A background job's children inherit that SIGINT is ignored; here it must not be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def bench_process(folder: Path, url: str, path: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "pars", "bench", url, "--workload", str(path)]
    command += ["--policies", "fcfs,oracle", "--repeats", "1", "--output-dir", str(folder)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=heeding_ctrl_c,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_everywhere(tmp_path, end):
    """Open requests are errors of their own kind; terminal, JSON and page begin with it."""
    server = Server(num_together=3)  # so that the two get no answer
    path, out = workload(tmp_path, ["a", "b"]), tmp_path / "out"
    with serve_in_thread(server) as url, bench_process(out, url, path) as process:
        eventually(lambda: len(server.bodies) == 2)
        process.send_signal(end)
        told, _ = process.communicate(timeout=DEADLINE_S)
        server.let_go()

    assert process.returncode == 130
    assert told.startswith("INTERRUPTED")
    result = read_result(out)
    assert result.interrupted
    assert {r.error for r in result.requests} == {"interrupted"}
    report = json.loads((out / "report.json").read_text())
    assert report["interrupted"]
    assert report["verdict"].startswith("INTERRUPTED")
    assert '<p class="verdict">INTERRUPTED' in (out / "report.html").read_text()


def test_a_killed_run_can_be_reported(tmp_path):
    """What ended before the kill is in the folder, and `pars report` makes all outputs of it."""
    server = Server()
    path, out = workload(tmp_path, ["a"] * 5, gap_s=3600.0), tmp_path / "out"
    with serve_in_thread(server) as url, bench_process(out, url, path) as process:
        eventually(
            lambda: (out / "requests.jsonl").exists() and len(read_result(out).requests) == 1
        )
        process.kill()

    outcome = CliRunner().invoke(commands, ["report", str(out)])

    assert outcome.output.startswith("INTERRUPTED")
    assert "1 of 1" in outcome.output
    assert json.loads((out / "report.json").read_text())["interrupted"]
