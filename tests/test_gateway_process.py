"""A gateway that an operator runs: its log, and what it reads again without a restart."""

import json
import logging
import shutil
import signal
import sys
from pathlib import Path

import httpx
import pytest

from gateway_process import started
from gateways import exchange, post
from pars.cli.logs import JsonLine, TextLine
from pars.ranking.ranker import bundled_ranker

from fake_engine import FakeEngine
from serving import eventually

NOWHERE = "http://127.0.0.1:1"
FORGED = 'x\n{"level": "info", "message": "forged"}\r\n\x1b[2J\u2028CRITICAL pars: forged'


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("pars", logging.WARNING, __file__, 1, "%s", (message,), None)


# The log


@pytest.mark.parametrize("form", [TextLine(), JsonLine()])
def test_no_text_forges_a_line(form: logging.Formatter) -> None:
    """Line ends of any kind and escape sequences come as their codes."""
    line = form.format(record(FORGED))

    assert len(line.splitlines()) == 1
    assert line.isprintable()


def test_a_line_of_json_has_time_level_logger_message_and_exception() -> None:
    """And the message is the very text."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        with_trace = record(FORGED)
        with_trace.exc_info = sys.exc_info()
        with_trace.created = 1_700_000_000.5

    told = json.loads(JsonLine().format(with_trace))

    assert told.pop("exception").startswith("Traceback (most recent call last)")
    assert told == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "warning",
        "logger": "pars",
        "message": FORGED,
    }


@pytest.mark.parametrize("how", ["option", "variable"])
def test_all_that_a_gateway_says_is_json_if_asked_for(tmp_path: Path, how: str) -> None:
    """Its greeting, warnings, faults of the upstream and shutdown, whatever a client sends."""
    options = ("--log-format", "json") if how == "option" else ()
    given = {"PARS_LOG_FORMAT": "json"} if how == "variable" else {}
    with started(tmp_path, "--upstream", NOWHERE, *options, PARS_NO="1", **given) as gateway:
        exchange(gateway.url, post("/v1/completions%0aCRITICAL", b'{"prompt": "a\\nb"}'))
        exchange(gateway.url, b"GET / HTTP/1.1\r\nnonsense\r\n\r\n")

    said_first = json.loads(gateway.greeting)
    lines = [said_first, *map(json.loads, gateway.log.splitlines())]
    assert {tuple(line) for line in lines} <= {("time", "level", "logger", "message")}
    messages = " ".join(line["message"] for line in lines)
    for said in ("is served at", "PARS_NO is not a setting", "cannot connect to the upstream"):
        assert said in messages


def test_the_error_that_ends_a_command_is_json_too(tmp_path: Path) -> None:
    """With the exit code of ever."""
    given = ("--upstream", NOWHERE, "--ranker", "/no/such", "--log-format", "json")
    with pytest.raises(AssertionError), started(tmp_path, *given) as gateway:
        pytest.fail(gateway.url)

    last = json.loads((tmp_path / "stderr").read_text().splitlines()[-1])
    assert last["level"] == "critical"
    assert "/no/such" in last["message"]


# What is read again


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A ranker, the upstream's key and key offsets, as an operator has them."""
    shutil.copytree(bundled_ranker(), tmp_path / "ranker")
    (tmp_path / "key").write_text("first-key")
    (tmp_path / "offsets.json").write_text("{}")
    return tmp_path


def options(files: Path, upstream: str) -> list[str]:
    given = ["--upstream", upstream, "--ranker", str(files / "ranker"), "--state", "none"]
    return [*given, "--upstream-api-key-file", str(files / "key")]


def environment(files: Path) -> dict[str, str]:
    return {"PARS_KEY_OFFSETS": str(files / "offsets.json"), "PARS_RELOAD_S": "0"}


def test_sighup_has_the_files_read_again(files: Path) -> None:
    """The ranker, the upstream's key, key offsets; the log says each, and no request is lost."""
    engine = FakeEngine()
    with (
        engine.served() as upstream,
        started(files, *options(files, upstream), **environment(files)) as gateway,
    ):
        before = fingerprint(gateway.url)
        card = files / "ranker" / "MODEL_CARD.md"
        card.write_text("another")
        (files / "key").write_text("second-key")
        (files / "offsets.json").write_text(json.dumps({"0" * 64: 1.0}))
        gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: gateway.has_said("read again: the upstream's API key"))
        eventually(lambda: fingerprint(gateway.url) != before)  # the page is a second old
        httpx.get(f"{gateway.url}/v1/models", trust_env=False)

    assert "read again: the ranker: " in gateway.log
    assert "read again: the file of key offsets: 1 keys" in gateway.log
    keys = [value for it in engine.asked for name, value in it.headers if name == b"authorization"]
    assert (keys[0], keys[-1]) == (b"Bearer first-key", b"Bearer second-key")
    assert "second-key" not in gateway.log


def test_what_cannot_be_read_again_stays_as_it_was(files: Path) -> None:
    """It is named with the reason, and the rest is read all the same."""
    with (
        FakeEngine().served() as upstream,
        started(files, *options(files, upstream), **environment(files)) as gateway,
    ):
        before = fingerprint(gateway.url)
        (files / "ranker" / "ranker.json").write_text("{")
        (files / "offsets.json").write_text("[")
        (files / "key").write_text("second-key")
        gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: gateway.has_said("read again: the upstream's API key"))
        assert fingerprint(gateway.url) == before
        answer = httpx.post(f"{gateway.url}/v1/completions", json={"prompt": "x"}, trust_env=False)
        assert answer.status_code == 200

    assert "ERROR pars: the ranker stays as it was: " in gateway.log
    assert "ERROR pars: the file of key offsets stays as it was: " in gateway.log


def fingerprint(url: str) -> str:
    told: str = httpx.get(f"{url}/pars/health", trust_env=False).json()["ranker"]["fingerprint"]
    return told
