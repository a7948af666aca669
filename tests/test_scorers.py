"""Anything that scores prompts is a ranker: objects of one's own, and scores from elsewhere."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError, RankerError
from pars.prove.report.times import read_result
from pars.prove.workload.score_files import FileSource
from pars.prove.workload.scores import RankerSource
from pars.prove.workload.workload import WorkloadRequest, write_workload
from pars.ranking.live_ranker import LiveRanker
from pars.ranking.ranker import Ranker, bundled_ranker
from pars.ranking.scorers import (
    Scale,
    calibration_of,
    is_object_name,
    load_scorer,
    scored,
    scored_offline,
)
from pars.scheduling.demand import Calibration
from pars.score_service.server import scorer_from
from pars.serving.gateway import Gateway
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine
from serving import serve_in_thread

MODULE = """
import numpy as np


class ByLength:
    def score(self, prompts):
        return np.array([float(len(prompt)) for prompt in prompts])


class InTokens(ByLength):
    def expected_tokens(self, prompts):
        return [10.0 * len(prompt) for prompt in prompts]


class Pairs(ByLength):
    def score(self, prompts):
        return [[1.0, 2.0] for _ in prompts]


class NotANumber(ByLength):
    def score(self, prompts):
        return [float("nan") if "bad" in prompt else 1.0 for prompt in prompts]


class Broken(ByLength):
    def score(self, prompts):
        raise KeyError("no such word")


ranker, nothing = ByLength(), 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[str]:
    """A user's module in the working directory; its name."""
    (tmp_path / "my_rankers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [it for it in sys.path if it])
    yield "my_rankers"
    sys.modules.pop("my_rankers", None)


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("my_module:ranker", True),
        ("pkg.sub:holder.ranker", True),
        ("run/ranker", False),
        ("C:\\rankers", False),
        ("name=module:object", False),
        ("a:b:c", False),
    ],
)
def test_module_colon_object_is_told_from_a_path(text, is_name):
    """By its form, unless a file of that name is there."""
    assert is_object_name(text) == is_name


def test_a_folder_that_looks_like_an_object_is_a_folder(tmp_path, monkeypatch):
    """Whoever has such a folder means it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()

    assert not is_object_name("a:b")


@pytest.mark.parametrize("name", ["ranker", "ByLength"])
def test_an_object_or_its_class_is_loaded_from_the_working_directory(module, name):
    """A class is called without arguments."""
    scorer = load_scorer(f"{module}:{name}")

    assert scored(scorer, ["ab", "abc"], name).tolist() == [2.0, 3.0]


def test_a_folder_is_loaded_as_ever():
    """The same function takes both."""
    assert isinstance(load_scorer(bundled_ranker()), Ranker)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module:ranker", "cannot be imported: ModuleNotFoundError"),
        ("my_rankers:missing", "cannot be imported: AttributeError"),
        ("my_rankers:nothing", r"a int has no score\(list\[str\]\) -> array"),
    ],
)
def test_an_object_that_is_no_ranker_is_named(module, name, problem):
    """One line with what would be right."""
    with pytest.raises(RankerError, match=f"ranker {name}: {problem}"):
        load_scorer(name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Pairs", r"score\(\) must give one number a prompt, an array of shape \(2,\), not \(2, 2"),
        ("NotANumber", r"score\(\) gave nan for prompt 2 of 2: want finite numbers"),
        ("Broken", "scoring failed: KeyError: 'no such word'"),
    ],
)
def test_scores_that_cannot_be_are_named(module, name, problem):
    """The object's name, the shape or the prompt's number."""
    with pytest.raises(RankerError, match=f"ranker mine: {problem}"):
        scored_offline(load_scorer(f"{module}:{name}"), ["good", "bad"], "mine")


def test_tokens_are_asked_for_before_scores(module):
    """And stand for themselves: 50 at the middle of 10, 20, ... 90."""
    scorer = load_scorer(f"{module}:InTokens")
    values = scored(scorer, ["x" * n for n in range(1, 10)], "mine")

    assert values.tolist() == [10.0 * n for n in range(1, 10)]
    calibration = calibration_of(scorer, values)
    assert [calibration.expected_tokens(it) for it in (10.0, 50.0, 90.0)] == [10.0, 50.0, 90.0]
    assert calibration.neutral_tokens == 50.0


def test_an_object_is_shown_bare_messages(module):
    """What came before in a conversation is a note of ours, which it does not know."""
    assert scored(load_scorer(f"{module}:ranker"), ["→2 1024 768\nhi"], "mine").tolist() == [2.0]


def test_scores_in_any_scale_are_spread_by_their_rank():
    """A million and one, or a millionth: the middle one of three stands for sqrt(16 * 2048)."""
    for factor in (1e6, 1e-6):
        calibration = Calibration.of_scores([3 * factor, 1 * factor, 2 * factor])

        assert calibration.expected_tokens(1 * factor) == 16.0
        assert calibration.expected_tokens(2 * factor) == pytest.approx(181.02, abs=0.01)
        assert calibration.expected_tokens(3 * factor) == 2048.0


def test_without_two_scores_the_scale_is_the_assumed_one():
    """Nothing can be ranked yet."""
    assert Calibration.of_scores([5.0]) == Calibration.of_tokens([]) == Calibration()


def test_a_live_scale_learns_from_what_it_sees(module):
    """Scores of a thousand are no longer all the longest once a few were seen."""
    scale = Scale(load_scorer(f"{module}:ranker"))
    for score in (1000.0, 3000.0, 2000.0):
        scale.see([score])

    tokens = [scale.calibration.expected_tokens(score) for score in (1000.0, 2000.0, 3000.0)]
    assert tokens == sorted(tokens)
    assert tokens[0] == 16.0


def test_a_live_ranker_takes_an_object_once(module):
    """It is loaded, orders, and is not loaded again; its name makes its fingerprint."""
    live = LiveRanker(Path(f"{module}:ranker"))

    assert live.refresh()
    assert not live.refresh()
    short, long = live.expect(["a", "a" * 50])
    assert (short.score, long.score) == (1.0, 50.0)
    assert short.tokens < long.tokens
    assert live.model_name == "ByLength"
    assert len(live.fingerprint) == 12


@pytest.mark.parametrize("name", ["Pairs", "Broken"])
def test_a_server_finds_out_at_its_start_that_an_object_cannot_score(module, name):
    """And not with the first request."""
    with pytest.raises(RankerError, match=f"ranker {module}:{name}: "):
        scorer_from({"PREDICTOR_MODEL_PATH": f"{module}:{name}"})
    with pytest.raises(RankerError, match=f"ranker {module}:{name}: "):
        LiveRanker(Path(f"{module}:{name}")).refresh()


def test_the_score_service_takes_an_object(module):
    """PREDICTOR_MODEL_PATH may name one."""
    scorer = scorer_from({"PREDICTOR_MODEL_PATH": f"{module}:ranker"})

    assert scorer.score(["abc"]).tolist() == [3.0]


def test_a_gateway_orders_by_an_object(module):
    """`--ranker module:object`: requests are scored by it, and its name is told."""
    engine = FakeEngine()
    with engine.served() as upstream:
        app = Gateway(
            Upstream(upstream, timeout_s=30, max_connections=8),
            Settings(ranker=f"{module}:ranker", learn="off", engine="vllm"),
        )
        with serve_in_thread(app) as url:
            for prompt in ("a" * 40, "a"):
                body = {"model": "m", "prompt": prompt, "max_tokens": 3}
                httpx.post(f"{url}/v1/completions", json=body).raise_for_status()
            page = httpx.get(f"{url}/pars/metrics").text

    assert 'pars_decisions_total{outcome="scored"} 2.0' in page
    assert "ByLength" in page


# Scores of another system, from a file


def workload(folder: Path) -> Path:
    """Four requests at once: the first keeps the engine's only place, three wait."""
    path = folder / "load.jsonl"
    requests = [WorkloadRequest(str(n), 0.0, f"prompt {n}", 5, 20 + n) for n in range(4)]
    write_workload(path, {"source": "test"}, requests)
    return path


def order(folder: Path, policy: str, *options: str) -> list[str]:
    """The ids in the order in which `pars simulate` ends them, with one place in the engine."""
    out = folder / f"out-{policy.replace(':', '-')}"
    asked = ["simulate", "--workload", str(workload(folder)), "--policies", policy]
    asked += ["--max-num-seqs", "1", "--output-dir", str(out), *options]
    done = CliRunner().invoke(commands, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    ends = sorted(read_result(out).requests, key=lambda it: it.finished_s)
    return [it.request_id for it in ends]


FILES = {
    "ids.jsonl": [json.dumps({"request_id": str(n), "score": -n}) for n in range(4)],
    "numbers.jsonl": [json.dumps({"id": n, "score": -n}) for n in range(5)],
    "prompts.jsonl": [json.dumps({"prompt": f"prompt {n}", "score": -n}) for n in range(4)],
    "ids.csv": ["id,score", *(f"{n},{-n}" for n in range(4))],
    "tokens.csv": ["request_id,expected_tokens", *(f"{n},{100 - n}" for n in range(4))],
}


@pytest.mark.parametrize("name", FILES)
def test_a_policy_goes_by_the_scores_of_another_system(tmp_path, name):
    """By id or prompt, JSON lines or CSV, scores or tokens: the last request is the shortest."""
    (tmp_path / name).write_text("\n".join(FILES[name]) + "\n")

    assert order(tmp_path, "theirs", "--scores", f"theirs={tmp_path / name}") == list("3210")


def test_scores_have_a_bound_like_any_policy(tmp_path):
    """NAME@0 is first come, first served, whatever the scores say."""
    path = tmp_path / "ids.csv"
    path.write_text("id,score\n" + "".join(f"{n},{-n}\n" for n in range(4)))

    assert order(tmp_path, "theirs@0", "--scores", f"theirs={path}") == list("0123")
    assert order(tmp_path, "theirs@infx", "--scores", f"theirs={path}") == list("3210")


def test_simulate_takes_an_object(module, tmp_path):
    """`--ranker module:object`, and under a name; longer prompts come later."""
    assert order(tmp_path, "ranker", "--ranker", f"{module}:ranker") == list("0123")
    named = order(tmp_path, "ranker:mine@30", "--ranker", f"mine={module}:ranker")
    assert named == list("0123")


def requests(*ids: str) -> list[WorkloadRequest]:
    return [WorkloadRequest(it, 0.0, f"prompt {it}", 5, 5) for it in ids]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,score\n0,1\n", "has no row with id '1': want one a request"),
        ("prompt,score\nprompt 0,1\n", "has no row with the prompt of request '1'"),
        ("id,score\n0,1\n1,nan\n", "row 2: field 'score' must be a finite number, not"),
        ("id,score\n0,1\n1,high\n", "row 2: field 'score' must be a finite number, not 'high'"),
        ("id,score\n0,1\n0,2\n1,1\n", "row 2: '0' has another score above"),
        ("id,rank\n0,1\n", "row 1: has none of the fields score, expected_tokens; its fields"),
        ("name,score\n0,1\n", "has none of the fields request_id, id, prompt"),
        ("id,score\n", "rows|empty"),
    ],
)
def test_scores_that_do_not_fit_are_named(tmp_path, content, problem):
    """File, row and field, in one line."""
    path = tmp_path / "theirs.csv"
    path.write_text(content)

    with pytest.raises(DataError, match=problem) as caught:
        FileSource(path).scores(requests("0", "1"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    """Not a traceback."""
    with pytest.raises(DataError, match=r"missing\.csv"):
        FileSource(tmp_path / "missing.csv").scores(requests("0"))


def test_rows_of_no_request_are_counted(tmp_path):
    """A file may hold more than the workload; how much stands in the facts."""
    path = tmp_path / "theirs.csv"
    path.write_text("id,score\n0,1\n1,2\n2,3\n")

    scores = FileSource(path).scores(requests("1"))

    assert scores.values.tolist() == [2.0]
    assert scores.facts == {"file": str(path), "rows": 3, "rows_of_no_request": 2}


def test_a_prompt_behind_a_note_is_found_by_its_message(tmp_path):
    """Another system knows nothing of our notes."""
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"prompt": "hello", "score": 2}\n')
    noted = WorkloadRequest("0", 0.0, "→2 1024 768\nhello", 5, 5)

    assert FileSource(path).scores([noted]).values.tolist() == [2.0]


def test_an_object_in_hand_is_a_source(module):
    """As `pars.simulate` takes it; what it cost is told."""
    scores = RankerSource(load_scorer(f"{module}:ranker")).scores(requests("0", "11"))

    np.testing.assert_array_equal(scores.values, [8.0, 9.0])
    assert scores.facts["folder"] == "ByLength"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--scores", "theirs"], "--scores theirs: want NAME=FILE"),
        (["--scores", "oracle=a.csv"], "scores 'oracle': want a name of letters"),
        (["--scores", "a:b=a.csv"], "scores 'a:b': want a name"),
        (["--scores", "a=a.csv", "--scores", "a=b.csv"], "two files for one name"),
        (["--scores", "a=a.csv"], "--scores a=a.csv: no policy is a"),
        (["--policies", "theirs"], "'theirs' is none of fcfs, ranker"),
    ],
)
def test_names_of_scores_are_checked(tmp_path, options, problem):
    """Before anything is read."""
    asked = ["simulate", "--workload", str(workload(tmp_path)), "--output-dir", str(tmp_path / "o")]
    done = CliRunner().invoke(commands, [*asked, *options])

    assert isinstance(done.exception, ParsError)
    assert problem in str(done.exception)


@pytest.mark.torch  # the baselines beside it come with the train extra
def test_evaluate_takes_an_object(module, tmp_path):
    """Beside its baselines, under its own name."""
    rows = [{"prompt": "word " * n, "answer_length": n * 7} for n in range(1, 25)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["evaluate", "--ranker", f"{module}:ranker", "--data", str(path), "--resamples", "100"]

    done = CliRunner().invoke(
        commands, [*asked, "--output-dir", str(tmp_path / "out")], catch_exceptions=False
    )

    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert told["overall"]["ranker"]["tau_b"]["value"] == 1.0
    assert (told["ranker"], told["calibration"]) == (f"{module}:ranker", None)
