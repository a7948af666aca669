"""Learning from own traffic: what teaches, what is promoted, and what a kill leaves."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gateways import counted
from own_traffic import outcome, terse_stories, traffic, write
from pars.cli.main import commands
from pars.errors import ParsError, RankerError
from pars.learn.own_traffic.own_traffic import Part, split_by_time, teaching
from pars.learn.own_traffic.versions import Versions
from pars.learn.training.warm_start import warm_start
from pars.ranking.live_ranker import LiveRanker
from pars.ranking.ranker import Ranker, bundled_ranker
from pars.serving.gateway import UVICORN_OPTIONS, Gateway
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine
from rankers import lite_ranker
from serving import DEADLINE_S, eventually, serve_in_thread

pytestmark = pytest.mark.torch


def pars_learn(*arguments):
    """`pars learn …` in this process."""
    return CliRunner().invoke(commands, ["learn", *map(str, arguments)])


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder whose second version was learned from 300 requests; (ranker, printed report)."""
    folder = tmp_path_factory.mktemp("learned")
    write(folder / "outcomes", traffic(300, terse_stories))
    ran = pars_learn("--outcomes", folder / "outcomes", "--ranker", folder / "ranker", "--json")
    assert ran.exit_code == 0, ran.output
    return folder / "ranker", json.loads(ran.stdout)


# What teaches


def test_only_one_prompt_with_one_answer_and_a_kept_text_teaches():
    """What is left out is counted by reason; a cut answer without a token says nothing."""
    taught = teaching(
        [
            outcome(0),
            outcome(1, num_prompts=2),
            outcome(2, num_answers=3),
            outcome(3, prompt=None),
            outcome(4, answer_tokens=None),
            outcome(5, answer_tokens=0, finish_reason="abort"),
        ]
    )

    assert [request.row.prompt for request in taught.requests] == ["p0"]
    assert taught.left_out == {
        "no answer, or none whose length is known": 2,
        "several prompts": 1,
        "several answers": 1,
        "the prompt's text was not kept": 1,
    }


@pytest.mark.parametrize(
    ("fields", "is_censored"),
    [
        ({"finish_reason": "stop"}, False),
        ({"finish_reason": "tool_calls"}, False),
        ({"finish_reason": None}, False),
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "abort"}, True),
        ({"finish_reason": None, "status": 500}, True),
        ({"finish_reason": "stop", "status": 500}, True),
    ],
)
def test_an_answer_that_did_not_end_by_itself_is_censored(fields, is_censored):
    """At the limit, by a client who left, or by an error: its length is a lower bound."""
    [request] = teaching([outcome(**fields)]).requests

    assert request.row.is_censored is is_censored


def test_a_prompt_of_the_newest_part_is_in_no_older_one():
    """Of p0 p1 p0 p2 | p1 the newest fifth is the last, and its p1 leaves the older part."""
    requests = teaching(outcome(n, prompt=f"p{'01021'[n]}") for n in range(5)).requests

    older, newest = split_by_time(requests, 0.2)

    assert [request.row.prompt for request in older] == ["p0", "p0", "p2"]
    assert [request.row.prompt for request in newest] == ["p1"]
    assert Part.of(older).num_prompts == 2
    assert Part.of(older).first == "2001-09-09T01:46:40Z"


def test_the_same_message_after_another_answer_is_the_same_prompt():
    """p1 with a note leaves the older part, since the newest has p1 with another."""
    prompts = ["p0", "→1 8 0\np1", "p2", "p3", "→1 64 0\np1"]
    requests = teaching(outcome(n, prompt=prompt) for n, prompt in enumerate(prompts)).requests

    older, _ = split_by_time(requests, 0.2)

    assert [request.row.prompt for request in older] == ["p0", "p2", "p3"]
    assert Part.of(requests).num_prompts == 4


# What is promoted


def test_a_better_candidate_is_promoted_and_says_what_it_was_trained_on(learned):
    """Trained on the older 240, judged on the newest 60; the bundled ranker is version 1."""
    ranker, report = learned

    note = json.loads((ranker / "learn.json").read_text())
    assert (report["is_promoted"], report["version"], report["parent"]) == (True, 2, 1)
    assert report["tau_b"]["difference"]["low"] > 0
    assert (note["version"], note["parent"]) == (2, 1)
    assert note["trained_on"]["num_requests"] == 240
    assert note["held_out"]["num_requests"] == 60
    assert note["tau_b"] == report["tau_b"]
    assert note["trained_on"]["last"] < note["held_out"]["first"]
    story, name = Ranker.load(ranker).score(
        ["Write a long story about the sea", "Name in one word"]
    )
    assert story < name
    first = ranker.parent / "ranker.versions/0001"
    assert (first / "model.onnx").read_bytes() == (bundled_ranker() / "model.onnx").read_bytes()


def test_a_candidate_that_may_be_better_by_chance_is_not_promoted(tmp_path):
    """Lengths that no prompt tells: nothing to learn, exit code 0, and the same ranker serves."""
    lengths = random.Random(1)
    write(tmp_path / "out", traffic(300, lambda number, is_story: lengths.randint(1, 500)))

    ran = pars_learn("--outcomes", tmp_path / "out", "--ranker", tmp_path / "ranker")

    assert ran.exit_code == 0
    assert "Not promoted: " in ran.stdout
    assert Versions(tmp_path / "ranker").numbers() == [1]
    assert Versions(tmp_path / "ranker").served_number() == 1
    assert sorted(it.name for it in (tmp_path / "ranker.versions").iterdir()) == ["0001", "lock"]


def test_too_little_traffic_is_said_with_what_would_be_enough(tmp_path):
    """50 held-out prompts at a fifth of the requests are 250 requests; it is no error."""
    write(tmp_path / "out", traffic(40, terse_stories))

    ran = pars_learn("--outcomes", tmp_path / "out", "--ranker", tmp_path / "ranker")

    assert ran.exit_code == 0
    assert "Not enough: 32 prompts to train on, and it takes 100, which some 250 " in ran.stdout
    assert Ranker.load(tmp_path / "ranker").info.kind == "lite"  # to serve from the first day


def test_answers_of_one_length_teach_nothing_and_are_no_error(tmp_path):
    """There is no order in them."""
    write(tmp_path / "out", traffic(300, lambda number, is_story: 7))

    ran = pars_learn("--outcomes", tmp_path / "out", "--ranker", tmp_path / "ranker")

    assert ran.exit_code == 0
    assert "Not enough: " in ran.stdout
    assert "all answers have one length" in ran.stdout


def test_damaged_outcomes_are_counted_and_the_rest_is_read(tmp_path):
    """A line that a killed process cut, and one that is no outcome."""
    folder = write(tmp_path / "out", traffic(40, terse_stories))
    with next(folder.glob("outcomes-*")).open("a") as file:
        file.write('{"path": 3}\n{"arrival_s": 1e9, "pa')

    ran = pars_learn("--outcomes", folder, "--ranker", tmp_path / "ranker", "--json")

    assert json.loads(ran.stdout)["num_damaged"] == 2
    assert json.loads(ran.stdout)["num_outcomes"] == 40


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--outcomes", "none"], "none: no such folder of outcomes"),
        ([], "give one of --outcomes, --rollback and --history"),
        (["--outcomes", "o", "--rollback"], "give one of --outcomes, --rollback and --history"),
        (["--outcomes", "o", "--newest-share", "1"], "--newest-share must be between 0 and 1"),
        (["--rollback"], "is no link to a version"),
    ],
)
def test_bad_input_is_one_line_and_no_ranker(tmp_path, monkeypatch, arguments, told):
    """Nothing appears under the ranker's name."""
    monkeypatch.chdir(tmp_path)

    ran = pars_learn("--ranker", "ranker", *arguments)

    assert isinstance(ran.exception, ParsError)
    assert told in str(ran.exception)
    assert not os.path.lexists(tmp_path / "ranker")


# Versions


def test_a_rollback_serves_the_version_before_and_says_so(learned, tmp_path):
    """From 2 to 1, and no further."""
    ranker = tmp_path / "ranker"
    shutil.copytree(learned[0].parent, tmp_path, symlinks=True, dirs_exist_ok=True)

    ran = pars_learn("--ranker", ranker, "--rollback")
    again = pars_learn("--ranker", ranker, "--rollback")
    history = pars_learn("--ranker", ranker, "--history")

    assert ran.stdout == f"{ranker}: version 1 serves again, in place of 2\n"
    assert ranker.readlink() == Path("ranker.versions/0001")
    assert "version 1 serves, and none is kept before it" in str(again.exception)
    assert "1 (serves)" in history.stdout


def test_a_version_after_a_rollback_gets_a_new_number(tmp_path):
    """Version 3 comes after 1, when 2 was rolled back; a number is never given twice."""
    versions = Versions(tmp_path / "ranker")
    with versions.locked():
        versions.start(bundled_ranker())
        promote(versions)
        versions.roll_back()
        assert promote(versions) == 3

    assert versions.note(3)["parent"] == 1
    assert [(it["version"], it["is_serving"]) for it in versions.history()] == [
        (1, False),
        (2, False),
        (3, True),
    ]


def test_a_plain_folder_becomes_version_1_with_all_that_it_holds(tmp_path):
    """The ranker that served so far, and whatever else lay there."""
    served = lite_ranker(tmp_path / "ranker")
    (served / "notes.txt").write_text("mine")
    before = {file.name: file.read_bytes() for file in served.iterdir()}
    versions = Versions(served)

    with versions.locked():
        assert versions.start(bundled_ranker()) == 1

    assert served.is_symlink()
    assert {file.name: file.read_bytes() for file in served.iterdir()} == before
    assert sorted(it.name for it in tmp_path.iterdir()) == ["ranker", "ranker.versions"]


def test_a_folder_that_holds_no_ranker_is_left_alone(tmp_path):
    """Somebody's photos do not become a version."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/sea.jpg").write_bytes(b"")
    versions = Versions(tmp_path / "photos")

    with versions.locked(), pytest.raises(RankerError, match=r"ranker\.json is missing"):
        versions.start(bundled_ranker())

    assert (tmp_path / "photos/sea.jpg").exists()
    assert versions.numbers() == []


def test_a_link_that_is_lost_points_to_the_newest_version_again(tmp_path):
    """As after a kill between the two steps that some file systems need."""
    versions = Versions(tmp_path / "ranker")
    with versions.locked():
        versions.start(bundled_ranker())
        promote(versions)
        versions.served.unlink()

        assert versions.start(bundled_ranker()) == 2

    assert versions.served_number() == 2


def test_two_runs_do_not_collide(tmp_path):
    """The second says so and changes nothing."""
    versions = Versions(tmp_path / "ranker")
    write(tmp_path / "out", traffic(40, terse_stories))

    with versions.locked():
        ran = pars_learn("--outcomes", tmp_path / "out", "--ranker", tmp_path / "ranker")

    assert "another `pars learn` is at work on it" in str(ran.exception)
    assert not os.path.lexists(versions.served)


def test_old_versions_go_but_not_the_one_that_serves_nor_the_one_before(tmp_path):
    """Of 25 versions the newest 20 stay, and 1, to which a rollback of 25 would go."""
    versions = Versions(tmp_path / "ranker")
    with versions.locked():
        versions.start(bundled_ranker())
        for number in range(2, 26):
            (versions.folder / f"{number:04}").mkdir()
        (versions.folder / "0025").rmdir()
        promote(versions)

    assert versions.numbers() == [1, *range(6, 26)]


def promote(versions):
    """A copy of the bundled ranker as the next version."""
    with versions.staging() as staging:
        shutil.copytree(bundled_ranker(), staging / "ranker")
        return versions.promote(staging / "ranker", {})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_what_serves_whole(tmp_path, signum):
    """Ctrl-C and kill -9 in the middle of a training; the next run clears what is left."""
    write(tmp_path / "out", traffic(20_000, terse_stories))  # half a minute's training
    ranker, versions = tmp_path / "ranker", tmp_path / "ranker.versions"
    command = ["-m", "pars", "learn", "--outcomes", tmp_path / "out", "--ranker", ranker]
    # A shell starts what runs in the background deaf to Ctrl-C; a child inherits that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    assert run.stderr
    heard_so_far = ""
    while "Epoch 1/" not in heard_so_far:  # the progress bar, which appears as training begins
        letter = run.stderr.read(1)
        assert letter, heard_so_far
        heard_so_far += letter
    run.send_signal(signum)
    told = run.communicate()[1]

    assert run.returncode == (130 if signum == signal.SIGINT else -signal.SIGKILL), told
    assert Versions(ranker).served_number() == 1
    assert Ranker.load(ranker).score(["a"]).shape == (1,)
    assert any(versions.glob(".candidate.*")) == (signum == signal.SIGKILL)
    with Versions(ranker).locked():
        assert sorted(it.name for it in versions.iterdir()) == ["0001", "lock"]


# The warm start


def test_a_warm_start_knows_what_the_ranker_knew_and_learns_new_words(tmp_path):
    """Before the first step it scores known prompts as the ranker does, to rounding."""
    folder = lite_ranker(tmp_path / "ranker")
    known = ["Write a story about the sea number 3", "Name dog 7"]

    model = warm_start(folder, ["frobnicate the widget", "frobnicate the sprocket"])

    model.network.eval()
    with torch.no_grad():
        inputs = model.collate(model.encode(known), torch.device("cpu"))
        scores = model.network(**inputs).numpy()
    np.testing.assert_allclose(scores, Ranker.load(folder).score(known), atol=1e-5)
    old = json.loads((folder / "tokenizer.json").read_text())["vocabulary"]
    assert model.tokenizer.vocabulary == (*old, "frobnicate")


def test_a_warm_start_refuses_what_is_no_lite_ranker(tmp_path):
    """An encoder, and a graph whose weights are not where they should be."""
    folder = lite_ranker(tmp_path / "ranker")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RankerError, match="its weights cannot be read"):
        warm_start(folder, ["a"])
    info = json.loads((folder / "ranker.json").read_text())
    (folder / "ranker.json").write_text(json.dumps({**info, "kind": "encoder"}))
    with pytest.raises(RankerError, match="only a lite ranker can be learned on"):
        warm_start(folder, ["a"])


# While it serves


def test_a_running_gateway_takes_a_new_version_and_loses_no_request(tmp_path):
    """Clients ask all the time while versions change; every request is answered, and scored."""
    versions = Versions(tmp_path / "ranker")
    with versions.locked():
        versions.start(bundled_ranker())
    settings = Settings(
        engine="vllm", budget_ms=DEADLINE_S * 1000, max_wait_ms=DEADLINE_S * 1000, reload_s=0.01
    )
    engine, stop, statuses = FakeEngine(), threading.Event(), []
    ranker = LiveRanker(versions.served)
    with engine.served() as up:
        app = Gateway(Upstream(up, timeout_s=DEADLINE_S), settings, ranker=ranker)

        def ask(url):
            with httpx.Client(timeout=DEADLINE_S) as client:
                while not stop.is_set():
                    body = {"model": "m", "prompt": "Name a tree", "max_tokens": 2}
                    statuses.append(client.post(f"{url}/v1/completions", json=body).status_code)

        with serve_in_thread(app, **UVICORN_OPTIONS) as url:
            clients = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
            for client in clients:
                client.start()
            try:
                for number in (2, 3, 4):
                    before, asked = ranker.fingerprint, len(statuses)
                    with versions.locked():
                        assert promote(versions) == number
                    # learn.json differs, so the folder does; and requests are served after it.
                    eventually(lambda before=before: ranker.fingerprint != before)
                    eventually(lambda asked=asked: len(statuses) > asked + 8)
            finally:
                stop.set()
                for client in clients:
                    client.join()

    assert set(statuses) == {200}
    assert counted(app, "pars_decisions_total", outcome="scored") == len(statuses)
    assert counted(app, "pars_ranker_loads_total", result="failed") == 0
