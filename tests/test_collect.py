"""Collecting answers: from endpoints that misbehave, on real sockets, and through kill -9."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.learn.collect.client import base_url_of
from pars.learn.collect.collect import collect
from pars.learn.collect.config import CollectConfig, parse_extra_body
from pars.learn.collect.file import meta_path
from pars.learn.collect.prompts import read_prompts
from pars.learn.collect.reply import Failure, delay_s, retry_after_s
from pars.learn.data.records import read_data

from serving import DEADLINE_S, eventually

KEY = "sk-very-secret-1234"
Behaviour = Callable[["Endpoint", "Handler", dict[str, Any]], None]


class Endpoint(ThreadingHTTPServer):
    """An endpoint that does what `behaviours` say, one a request, then answers as it should."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *behaviours: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = iter(behaviours)
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.num_in_flight = 0
        self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def served(self) -> Iterator["Endpoint"]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join(timeout=DEADLINE_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        endpoint = self.server
        with endpoint.lock:
            endpoint.asked.append(body)
            endpoint.headers.append(self.headers)
            endpoint.num_in_flight += 1
            endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.num_in_flight)
            behave = next(endpoint.behaviours, answers)
        try:
            behave(endpoint, self, body)
        finally:
            with endpoint.lock:
                endpoint.num_in_flight -= 1

    def reply(self, content: bytes | str, *, status: int = 200, **headers: str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def page(prompt: str = "", **usage: Any) -> dict[str, Any]:
    """A chat answer whose length is the number of words asked, in tokens of the usage."""
    usage = usage or {"completion_tokens": len(prompt.split()), "prompt_tokens": 9}
    message = {"role": "assistant", "content": f"About {prompt}"}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def answers(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(json.dumps(page(prompt_of(body))))


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def says(content: Any, *, status: int = 200, **headers: str) -> Behaviour:
    """A behaviour: this, whatever was asked."""
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda endpoint, handler, body: handler.reply(text, status=status, **headers)


def breaks_off(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
    """The head promises a whole answer, and half of it comes."""
    whole = json.dumps(page(prompt_of(body))).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole[: len(whole) // 2])
    handler.close_connection = True


def hangs_up(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
    handler.close_connection = True


class Waits(list[float]):
    """Passes for time: every wait is noted, and over at once."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def config_for(
    endpoint: Endpoint, folder: Path, prompts: int | list[str] = 3, **options: Any
) -> Any:
    """Of a collection of `prompts`, or of that many."""
    if isinstance(prompts, int):
        prompts = [f"words {'word ' * number}".strip() for number in range(prompts)]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = {"model": "m", "output": folder / "answers.jsonl", "concurrency": 1, **options}
    return CollectConfig(endpoints=(endpoint.url,), prompts=file, **settings)


def lines_of(config: CollectConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in config.output.read_text().splitlines()]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """One that answers."""
    with Endpoint().served() as served:
        yield served


def test_every_prompt_gets_a_line_with_its_answers_length(endpoint, tmp_path):
    """The prompt, what the endpoint counted and why it ended are kept, and not the answer."""
    config = config_for(endpoint, tmp_path, ["one two three", "four"])

    report = collect(config)

    assert report.exit_code == 0
    first, second = lines_of(config)
    assert first.pop("seconds") >= 0
    assert first == {
        "index": 0,
        "sample": 0,
        "prompt": "one two three",
        "prompt_sha256": first["prompt_sha256"],
        "answer_tokens": 3,
        "finish_reason": "stop",
        "prompt_tokens": 9,
    }
    assert (second["prompt"], second["answer_tokens"]) == ("four", 1)


def test_half_an_emoji_is_asked_as_it_is(endpoint, tmp_path):
    """A lone surrogate, as clients cut prompts, reaches the endpoint in JSON's escape."""
    report = collect(config_for(endpoint, tmp_path, ["Why \ud83d?"]))

    assert report.exit_code == 0
    assert [prompt_of(body) for body in endpoint.asked] == ["Why \ud83d?"]


def test_texts_and_thoughts_are_kept_when_asked_for(tmp_path):
    """With --keep-text the answer and the thinking stand in the line, and thinking is counted."""
    thought = page("x", completion_tokens=7, completion_tokens_details={"reasoning_tokens": 5})
    thought["choices"][0]["message"]["reasoning_content"] = "Hm."
    with Endpoint(says(thought)).served() as endpoint:
        config = config_for(endpoint, tmp_path, 1, keep_text=True)
        collect(config)

    [line] = lines_of(config)
    assert (line["answer"], line["thinking"]) == ("About x", "Hm.")
    assert (line["answer_tokens"], line["thinking_tokens"]) == (7, 5)


def test_samples_are_asked_with_seeds_of_their_own(endpoint, tmp_path):
    """Sample s has seed + s; every prompt has its first sample before any has its second."""
    config = config_for(
        endpoint, tmp_path, ["a", "b"], samples=2, seed=5, temperature=0.7, max_tokens=9,
        extra_body={"top_p": 0.9},
    )  # fmt: skip

    collect(config)

    order = [(line["prompt"], line["sample"]) for line in lines_of(config)]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [body["seed"] for body in endpoint.asked] == [5, 5, 6, 6]
    assert endpoint.asked[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 9,
        "temperature": 0.7,
        "seed": 5,
        "top_p": 0.9,
    }
    settings = json.loads(meta_path(config.output).read_text())
    assert (settings["temperature"], settings["max_tokens"], settings["seed"]) == (0.7, 9, 5)
    assert settings["extra_body"] == {"top_p": 0.9}


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (says("<!doctype html><h1>Welcome</h1>"), "HTML in place of an answer"),
        (says("data: {"), "an answer that is no JSON"),
        (says("[" * 100_000), "an answer that is no JSON"),
        (says({"choices": []}), "JSON that is no answer"),
        (says([1]), "JSON that is no answer"),
        (says({"error": {"message": "overloaded"}}), "an error in place of an answer"),
        (says("worker died", status=500), "HTTP 500"),
        (says("wait", status=429), "HTTP 429"),
        (says("no gzip", Content_Encoding="gzip"), "a body that cannot be decompressed"),
        (breaks_off, "the connection broke off"),
        (hangs_up, "the connection broke off"),
    ],
)
def test_what_is_no_answer_is_asked_for_again(behaviour, kind, tmp_path):
    """One failed request delays the answer, is counted by its kind, and loses nothing."""
    waits = Waits()
    with Endpoint(behaviour).served() as endpoint:
        config = config_for(endpoint, tmp_path, 2)
        report = collect(config, pause=waits)

    assert report.exit_code == 0
    assert dict(report.failures) == {kind: 1}
    assert [line["index"] for line in lines_of(config)] == [0, 1]
    assert len(endpoint.asked) == 3
    assert 0.25 <= waits[0] <= 0.5  # the first back-off, half of it at random


def test_an_endpoint_that_never_answers_is_given_up_and_asked_again(tmp_path):
    """After --timeout-s the connection is closed, and the next request gets its answer."""
    is_over = threading.Event()

    def sleeps(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        is_over.wait(DEADLINE_S)
        handler.close_connection = True

    with Endpoint(sleeps).served() as endpoint:
        config = config_for(endpoint, tmp_path, 1, timeout_s=0.3, max_retries=100)
        report = collect(config, pause=Waits())
        is_over.set()

    assert report.failures["no answer within 0.3 s"] >= 1
    assert len(lines_of(config)) == 1


def test_retry_after_is_honoured(tmp_path):
    """Who is told to come back in 7 seconds waits 7 seconds and a back-off."""
    waits = Waits()
    with Endpoint(says("", status=429, Retry_After="7")).served() as endpoint:
        collect(config_for(endpoint, tmp_path, 1), pause=waits)

    assert 7.25 <= waits[0] <= 7.5


def test_retry_after_may_be_a_date_of_the_servers_clock():
    """A date counts from the server's own Date, even where that clock is a year off."""
    headers = {
        "retry-after": "Wed, 01 Jan 2020 00:01:30 GMT",
        "date": "Wed, 01 Jan 2020 00:00:00 GMT",
    }

    assert retry_after_s(headers) == 90
    assert retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, now_s=20.0) == 40
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None


def test_a_minute_of_429_is_outlasted(tmp_path):
    """An endpoint that refuses all it gets for 60 seconds costs time, and no answer."""
    waits = Waits()

    def refuses(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        is_over = sum(waits) >= 60
        answers(endpoint, handler, body) if is_over else handler.reply("slow down", status=429)

    with Endpoint(*[refuses] * 100).served() as endpoint:
        report = collect(config_for(endpoint, tmp_path, 3), pause=waits)

    assert report.exit_code == 0
    assert report.num_answers == 3


def test_back_off_doubles_to_a_minute():
    """Half a second, one, two ... sixty, the upper half of each at random."""
    failure = Failure("HTTP 500")

    assert [delay_s(failure, attempt, 1.0) for attempt in (0, 1, 2, 10)] == [0.5, 1, 2, 60]
    assert delay_s(failure, 2, 0.0) == 1


def test_a_server_that_asks_for_an_hour_ends_the_run(tmp_path):
    """Nobody sleeps that long; what is missing is for a later run."""
    with Endpoint(says("", status=429, Retry_After="3600")).served() as endpoint:
        report = collect(config_for(endpoint, tmp_path, 3), pause=Waits())

    assert report.stopped == "HTTP 429: the server asks to wait 3,600 s"
    assert (report.exit_code, report.num_missing) == (1, 3)


@pytest.mark.parametrize(
    ("usage", "problem"),
    [
        (None, "no usage"),
        ({"prompt_tokens": 3}, "usage without completion_tokens"),
        ({"completion_tokens": None}, "completion_tokens is null"),
        ({"completion_tokens": 2.5}, "completion_tokens is not a whole number"),
        ({"completion_tokens": True}, "completion_tokens is not a whole number"),
        ({"completion_tokens": -1}, "completion_tokens is negative"),
        ({"completion_tokens": 0}, "completion_tokens is 0, with text"),
        ({"completion_tokens": 51}, "completion_tokens is more than max_tokens"),
    ],
)
def test_wrong_usage_is_no_length_and_is_not_paid_for_again(usage, problem, tmp_path):
    """The line says what was wrong in place of a number, and the next run leaves it alone."""
    with Endpoint(says({**page("x"), "usage": usage})).served() as endpoint:
        config = config_for(endpoint, tmp_path, 1, max_tokens=50)
        first, second = collect(config), collect(config)

    [line] = lines_of(config)
    assert (line["answer_tokens"], line["usage_problem"]) == (None, problem)
    assert "1 answers have no length" in first.render()
    assert len(endpoint.asked) == 1
    assert second.num_before == 1


def test_an_endpoint_without_usage_is_not_asked_for_thousands_of_answers(tmp_path):
    """Twenty answers in a row without a length end the run: the rest would be paid for in vain."""
    useless = says({**page("x"), "usage": None})
    with Endpoint(*[useless] * 100).served() as endpoint:
        report = collect(config_for(endpoint, tmp_path, 100))

    assert report.stopped == "20 answers without a length in a row, the last: no usage"
    assert len(endpoint.asked) == 20


def test_a_wrong_key_ends_the_run_and_is_shown_nowhere(tmp_path):
    """401 stops all asking; a server that repeats the key brings it into no output."""
    refusal = says({"error": {"message": f"Incorrect API key: {KEY}"}}, status=401)
    with Endpoint(refusal).served() as endpoint:
        config = config_for(endpoint, tmp_path, 50)
        report = collect(config, key=KEY)

    assert len(endpoint.asked) == 1
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert report.stopped == "HTTP 401: Incorrect API key: ***"
    assert KEY not in report.render() + "".join(p.read_text() for p in tmp_path.iterdir())


def test_a_prompt_that_is_refused_is_left_out_and_the_others_go_on(tmp_path):
    """400 is final for one prompt: it is asked once, named, and asked again by the next run."""
    refusal = says({"error": {"message": "too long"}}, status=400)
    with Endpoint(refusal).served() as endpoint:
        config = config_for(endpoint, tmp_path, 3)
        report = collect(config)

        assert report.exit_code == 1
        assert "row 1, sample 0: HTTP 400: too long" in report.render()
        assert [line["index"] for line in lines_of(config)] == [1, 2]
        assert collect(config).exit_code == 0
    assert sorted(line["index"] for line in lines_of(config)) == [0, 1, 2]


def test_so_many_are_asked_at_once_and_no_more(tmp_path):
    """Three are in flight together, never four."""
    together = threading.Barrier(3)

    def meets(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        together.wait(DEADLINE_S)
        answers(endpoint, handler, body)

    with Endpoint(*[meets] * 9).served() as endpoint:
        collect(config_for(endpoint, tmp_path, 9, concurrency=3))

    assert endpoint.most_in_flight == 3


def test_requests_go_out_at_the_rate(endpoint, tmp_path):
    """At one in a thousand seconds the second request waits for one thousand, the third for two."""
    waits = Waits()

    collect(config_for(endpoint, tmp_path, 3, rate=0.001), pause=waits)

    assert waits == pytest.approx([1000, 2000], abs=300)


def test_other_settings_are_not_mixed_into_one_file(endpoint, tmp_path):
    """Answers at two temperatures have no common length distribution: that is an error."""
    collect(config_for(endpoint, tmp_path, temperature=0.2))

    with pytest.raises(ParsError, match=r"collected with temperature 0\.2, not 0\.7"):
        collect(config_for(endpoint, tmp_path, temperature=0.7))


def test_prompts_may_be_added_at_the_end_only(endpoint, tmp_path):
    """More prompts and more samples go on where the file stands; other prompts are an error."""
    collect(config_for(endpoint, tmp_path, ["a", "b"]))
    config = config_for(endpoint, tmp_path, ["a", "b", "c"], samples=2)
    collect(config)

    asked = Counter((line["prompt"], line["sample"]) for line in lines_of(config))
    assert asked == {(prompt, sample): 1 for prompt in "abc" for sample in (0, 1)}
    with pytest.raises(DataError, match="other prompts than these"):
        collect(config_for(endpoint, tmp_path, ["b", "a"]))


def test_a_line_cut_short_is_asked_for_again(endpoint, tmp_path):
    """What a full disk left of a last line is taken off, and only its answer is paid for twice."""
    config = config_for(endpoint, tmp_path, 3)
    collect(config)
    whole = config.output.read_bytes()
    config.output.write_bytes(whole[:-5])

    report = collect(config)

    assert "of a line cut short" in report.render()
    assert len(endpoint.asked) == 4
    assert [line["index"] for line in lines_of(config)] == [0, 1, 2]


def test_a_file_of_somebody_else_is_left_alone(endpoint, tmp_path):
    """An output that `pars collect` did not begin is an error, and stays as it was."""
    config = config_for(endpoint, tmp_path)
    config.output.write_text("precious\n")

    with pytest.raises(ParsError, match="not a file of `pars collect`"):
        collect(config)
    assert config.output.read_text() == "precious\n"


def test_answers_go_straight_into_training(tmp_path):
    """`pars prepare records` takes the file as it is, and leaves out answers without a length."""
    with Endpoint(says({**page("x"), "usage": None})).served() as endpoint:
        config = config_for(endpoint, tmp_path, 40)
        collect(config)

    arguments = ["--input", str(config.output), "--output-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(commands, ["prepare", "records", *arguments])

    assert done.exit_code == 0, done.output
    rows = [
        *read_data(tmp_path / "data/train_data.json"),
        *read_data(tmp_path / "data/val_data.json"),
    ]
    assert len(rows) == 39
    assert all(row.answer_length == len(row.prompt.split()) for row in rows)


def test_prompts_come_in_many_shapes(tmp_path):
    """
    Chat logs lose the answer at their end; a .txt has a prompt on each line.

    A chat's note is for the ranker, and a note in a file of texts is not asked.
    """
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": "Because."},
    ]
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": chat}]))
    (tmp_path / "plain.txt").write_text("One?\n\nTwo?\r\n")

    longer = [*chat, {"role": "user", "content": "And why that?"}]
    (tmp_path / "longer.json").write_text(json.dumps([{"messages": longer}]))
    (tmp_path / "noted.json").write_text(json.dumps([{"prompt": "→1 8 0\nAnd why that?"}]))

    [asked] = read_prompts(tmp_path / "chats.json", "chat")
    [second] = read_prompts(tmp_path / "longer.json", "chat")
    [noted] = read_prompts(tmp_path / "noted.json", "completions")
    plain = read_prompts(tmp_path / "plain.txt", "completions")

    assert (asked.text, asked.asked) == ("Why?", chat[:2])
    assert (second.text, second.asked) == ("→1 8 0\nAnd why that?", longer)
    assert (noted.text, noted.asked) == ("And why that?", "And why that?")
    assert [prompt.asked for prompt in plain] == ["One?", "Two?"]
    assert plain[0].checksum != plain[1].checksum
    with pytest.raises(DataError, match="use --api chat"):
        read_prompts(tmp_path / "chats.json", "completions")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ('{"prompt": " "}', "row 1: its prompt is empty"),
        ('{"prompt": "x"}\n{"text": "y"}', "row 2: .*prompt"),
        ('{"prompt": 3}', "row 1: field 'prompt': must be text, not a number"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "no user message with text"),
        ("", "is empty"),
    ],
)
def test_bad_prompts_are_named_before_anything_is_asked(rows, told, tmp_path, endpoint):
    """File and row are told, and no output is begun."""
    config = config_for(endpoint, tmp_path)
    config.prompts.write_text(rows)

    with pytest.raises(DataError, match=told):
        collect(config)
    assert not config.output.exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("samples", 0),
        ("temperature", -1.0),
        ("concurrency", 0),
        ("rate", 0.0),
        ("timeout_s", float("nan")),
        ("max_retries", -1),
        ("extra_body", {"stream": True}),
        ("extra_body", {"temperature": 1}),
        ("api", "completions"),
    ],
)
def test_bad_options_are_named(option, value, tmp_path, endpoint):
    """Each is refused by name."""
    with pytest.raises(ParsError, match=f"--{option}".replace("_", "-")):
        config_for(endpoint, tmp_path, **{option: value})


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "http://", "http://[::1", "http://h:0/", "http://h/v1?key=1", "http://a b"],
)
def test_what_is_no_endpoint_is_refused(url):
    """Not an http URL with a host, or one with a query."""
    with pytest.raises(ParsError, match="--endpoint: want"):
        base_url_of(url)


@pytest.mark.parametrize("url", ["http://xn--a", "http://ä..de"])
def test_a_host_that_cannot_be_encoded_is_refused(url, tmp_path, endpoint):
    """International names have rules; one that breaks them is named."""
    config = config_for(endpoint, tmp_path)

    with pytest.raises(ParsError, match="has no name of a host"):
        collect(replace(config, endpoints=(url,)))


def test_v1_is_added_where_there_is_no_path():
    """As OpenAI's clients are told: with /v1, or with the provider's own path."""
    assert base_url_of("http://h:8000/") == "http://h:8000/v1"
    assert base_url_of("https://[::1]:8/v1/") == "https://[::1]:8/v1"
    assert base_url_of("https://h/openai/v2") == "https://h/openai/v2"


def test_secrets_on_the_command_line_are_refused(tmp_path):
    """Neither a password in the URL nor a key in place of a variable's name is taken or shown."""
    with pytest.raises(ParsError, match="holds a user or password"):
        base_url_of(f"http://user:{KEY}@host")
    files = ["--prompts", str(tmp_path / "p"), "--output", str(tmp_path / "o")]
    asked = ["collect", "--endpoint", "http://h", "--model", "m", *files, "--api-key-env", KEY]

    done = CliRunner().invoke(commands, asked)

    assert done.exit_code != 0
    assert KEY not in done.output + str(done.exception)


def test_extra_body_must_be_an_object():
    """A list or broken JSON is named."""
    assert parse_extra_body('{"top_k": 5}') == {"top_k": 5}
    for text in ("[1]", "{"):
        with pytest.raises(ParsError, match="--extra-body"):
            parse_extra_body(text)


def started(config: CollectConfig, concurrency: int) -> subprocess.Popen[str]:
    """A process of `pars collect`."""
    options = [
        "--endpoint",
        config.endpoints[0],
        "--model",
        config.model,
        "--prompts",
        config.prompts,
    ]
    options += ["--output", config.output, "--concurrency", concurrency]
    return subprocess.Popen(
        [sys.executable, "-m", "pars", "collect", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )


def test_kill_9_at_ten_moments_costs_only_what_was_in_flight(tmp_path):
    """Every answer is there once; asked twice are only those in flight, four at most a kill."""
    chance = random.Random(7)
    concurrency, num_prompts = 4, 240  # more than ten starts can have asked for
    process: subprocess.Popen[str] | None = None
    kill_at: Iterator[int] = iter(())  # requests of this start until it is killed
    asked: list[str] = []  # by the start that runs

    def may_kill(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        """Answer; one request of each start kills: before its answer, halfway through, or after."""
        with endpoint.lock:
            asked.append(prompt_of(body))
            kills = next(kill_at, -1) == 0
        moment = chance.choice(["before", "halfway", "after", "later"]) if kills else ""
        if moment == "before":
            kill()
        if moment == "halfway":
            breaks_off(endpoint, handler, body)
        elif moment != "before":
            answers(endpoint, handler, body)
        if moment == "later":
            time.sleep(chance.random() / 50)  # to meet the writing of the line, or its end
        if moment:
            kill()

    def kill() -> None:
        assert process is not None
        process.kill()

    def prompts_written() -> list[str]:
        """Of whole lines."""
        whole, _, _ = config.output.read_text().rpartition("\n")
        return [json.loads(line)["prompt"] for line in whole.splitlines()]

    written: list[str] = []
    num_asked = 0
    with Endpoint(*[may_kill] * 10_000).served() as endpoint:
        config = config_for(endpoint, tmp_path, num_prompts)
        for is_last in [*[False] * 10, True]:
            with endpoint.lock:  # a request of the last start may still be on its way
                asked.clear()
                kill_at = iter([] if is_last else range(chance.randrange(1, 10), -1, -1))
                process = started(config, concurrency)
            output, _ = process.communicate(timeout=10 * DEADLINE_S)
            assert process.returncode == (0 if is_last else -signal.SIGKILL), output
            eventually(lambda: endpoint.num_in_flight == 0)
            assert not set(asked) & set(written), "an answer that was there is asked for again"
            written = prompts_written()
            assert len(set(asked) - set(written)) <= concurrency, "lost more than was in flight"
            num_asked += len(asked)

    assert Counter(line["index"] for line in lines_of(config)) == Counter(range(num_prompts))
    assert num_asked - num_prompts <= 10 * concurrency


def test_ctrl_c_lets_answers_on_their_way_come_in(tmp_path):
    """What is in flight is kept, nothing more is asked, and the exit code is 130."""
    may_answer = threading.Event()

    def waits(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        may_answer.wait(DEADLINE_S)
        answers(endpoint, handler, body)

    with Endpoint(*[waits] * 100).served() as endpoint:
        config = config_for(endpoint, tmp_path, 20)
        process = started(config, 2)
        eventually(lambda: endpoint.num_in_flight == 2)
        process.send_signal(signal.SIGTERM)  # as SIGINT, which a background job's children ignore
        assert process.stdout is not None
        told = next(line for line in process.stdout if "on their way" in line)
        may_answer.set()
        output, _ = process.communicate(timeout=10 * DEADLINE_S)

    assert "2 answers are on their way" in told
    assert process.returncode == 130, output
    assert len(lines_of(config)) == len(endpoint.asked) == 2
    assert "asks for the 18 that are missing" in output


def test_two_processes_do_not_fill_one_file(endpoint, tmp_path):
    """The second is told, and the first one's answers stay whole."""
    config = config_for(endpoint, tmp_path)
    collect(config)
    with config.output.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ParsError, match="another `pars collect`"):
            collect(config)


# Several endpoints


def config_of(folder: Path, prompts: int, *urls: str, **options: Any) -> CollectConfig:
    """Of a collection from several."""
    config = config_for(SimpleNamespace(url=""), folder, prompts, **options)
    return replace(config, endpoints=urls)


def answered_all(config: CollectConfig, num: int) -> bool:
    """One line for each prompt, and no more."""
    return sorted(line["index"] for line in lines_of(config)) == list(range(num))


def test_two_endpoints_are_asked_at_once(tmp_path):
    """Each first answer waits until the other endpoint has a request, too."""
    together = threading.Barrier(2)

    def meets(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        together.wait(DEADLINE_S)
        answers(endpoint, handler, body)

    with Endpoint(meets).served() as a, Endpoint(meets).served() as b:
        config = config_of(tmp_path, 6, a.url, b.url)
        report = collect(config)

    assert report.exit_code == 0
    assert answered_all(config, 6)
    assert len(a.asked) + len(b.asked) == 6


def test_who_has_room_is_asked(tmp_path):
    """One endpoint takes as long for its first answer as the other for all the rest."""
    rest_is_there = threading.Event()

    def waits(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        rest_is_there.wait(DEADLINE_S)
        answers(endpoint, handler, body)

    def counts(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        answers(endpoint, handler, body)
        if len(endpoint.asked) == 8:
            rest_is_there.set()

    with Endpoint(waits).served() as slow, Endpoint(*[counts] * 8).served() as fast:
        config = config_of(tmp_path, 9, slow.url, fast.url)
        collect(config)

    assert (len(slow.asked), len(fast.asked)) == (1, 8)
    assert answered_all(config, 9)


def test_an_endpoint_that_is_dead_is_left_out_and_said(tmp_path):
    """Nobody listens there: after twenty refused connections the other is asked alone."""
    with Endpoint() as nobody:
        dead = nobody.url
    with Endpoint(*[hangs_up] * 3).served() as alive:
        config = config_of(tmp_path, 60, dead, alive.url, concurrency=2)
        report = collect(config, pause=Waits())

    assert report.exit_code == 0
    assert answered_all(config, 60)
    told = f"left out: {base_url_of(dead)}: 20 requests failed in a row, the last: no connection"
    assert told in report.render()


def test_an_endpoint_that_refuses_the_key_is_left_out_at_once(tmp_path):
    """Its prompt goes to the other, and is not given up."""
    with Endpoint(*[says("no", status=401)] * 9).served() as a, Endpoint().served() as b:
        config = config_of(tmp_path, 5, a.url, b.url)
        report = collect(config)

    assert report.exit_code == 0
    assert answered_all(config, 5)
    assert len(a.asked) == 1
    assert f"left out: {a.url}/v1: HTTP 401: no" in report.render()


def test_what_fails_last_goes_to_an_endpoint_that_had_nothing_left_to_do(tmp_path):
    """Its worker waits for what is out, and does not end with the list."""
    others_are_there = threading.Event()

    def fails_late(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        others_are_there.wait(DEADLINE_S)
        hangs_up(endpoint, handler, body)

    def counts(endpoint: Endpoint, handler: Handler, body: dict[str, Any]) -> None:
        answers(endpoint, handler, body)
        if len(endpoint.asked) == 3:
            others_are_there.set()

    with Endpoint(fails_late).served() as a, Endpoint(*[counts] * 3).served() as b:
        config = config_of(tmp_path, 4, a.url, b.url)
        report = collect(config)

    assert report.exit_code == 0
    assert answered_all(config, 4)


def test_an_endpoint_that_is_busy_is_not_left_out(tmp_path):
    """429 says that it has no room, thirty times; the run goes on with both."""
    busy = says("later", status=429)
    with Endpoint(*[busy] * 30).served() as a, Endpoint().served() as b:
        config = config_of(tmp_path, 40, a.url, b.url, max_retries=40)
        report = collect(config, pause=Waits())

    assert report.exit_code == 0
    assert answered_all(config, 40)
    assert report.left_out == {}


def test_without_any_endpoint_left_the_run_ends_and_goes_on_later(tmp_path):
    """Both refuse; the next run, with both well, asks for all."""
    refuses = says("no", status=403)
    with Endpoint(refuses).served() as a, Endpoint(refuses).served() as b:
        config = config_of(tmp_path, 3, a.url, b.url)
        first = collect(config)
        second = collect(config)

    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.stopped == "HTTP 403: no"
    assert answered_all(config, 3)
    assert json.loads(meta_path(config.output).read_text())["endpoint"] == [
        f"{a.url}/v1",
        f"{b.url}/v1",
    ]


def test_an_endpoint_given_twice_is_named(endpoint, tmp_path):
    """With /v1 or without, it is one."""
    with pytest.raises(ParsError, match=r"--endpoint: .*/v1 is given twice"):
        collect(config_of(tmp_path, 1, endpoint.url, f"{endpoint.url}/v1"))
