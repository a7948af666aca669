"""The public Python API: what `import pars` loads, and what its names do."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pars
from pars.scheduling.demand import Calibration
from pars.scheduling.keys import EPOCH_S

SHORT, LONG = "What is the capital of France?", "Write a detailed essay on the sea."


def modules_after(code: str) -> set[str]:
    """The modules that a fresh process has loaded after `code`."""
    told = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code", ["import pars", "import pars; pars.Request; pars.MaxSlowdown(1.5).key(10)"]
)
def test_what_needs_no_arrays_loads_neither_numpy_nor_onnxruntime(code):
    """Nor the server's libraries."""
    loaded = modules_after(code)

    assert not {"numpy", "onnxruntime", "tokenizers", "aiohttp", "pandas", "torch"} & loaded


def test_evaluating_needs_no_onnxruntime():
    """Scores from elsewhere are numbers."""
    loaded = modules_after("import pars; pars.evaluate([1, 2], [3, 4])")

    assert "numpy" in loaded
    assert "onnxruntime" not in loaded


@pytest.mark.parametrize("name", pars.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    """`from pars import NAME` works, and so does help(NAME)."""
    assert getattr(pars, name) is not None
    assert name in dir(pars)
    if name != "__version__":
        assert getattr(pars, name).__doc__


def test_type_checkers_know_the_names_that_load_late():
    """The imports under TYPE_CHECKING are the same names from the same homes."""
    tree = ast.parse(Path(pars.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        for alias in node.names
    }
    homes = {name: f"{home}:{name}" for name, home in pars._HOMES.items()}

    assert typed == homes
    assert {*typed, "__version__"} == set(pars.__all__)
    assert (Path(pars.__file__).parent / "py.typed").is_file()


def test_a_name_that_is_none_is_an_attribute_error():
    """So that hasattr works, and typing errors are seen."""
    with pytest.raises(AttributeError, match="module 'pars' has no attribute 'Rankr'"):
        pars.Rankr  # noqa: B018


def test_the_bundled_ranker_is_loaded_without_a_path_and_a_path_may_be_text():
    """Both give the same scores; the long answer's is higher."""
    from pars.ranking.ranker import bundled_ranker

    scores = pars.Ranker.load().score([SHORT, LONG])

    assert scores[0] < scores[1]
    again = pars.Ranker.load(str(bundled_ranker())).score([SHORT, LONG])
    np.testing.assert_array_equal(scores, again)


def test_expected_tokens_are_the_scores_by_the_rankers_calibration():
    """One number of tokens a prompt, in the order of the scores; none for no prompt."""
    ranker = pars.Ranker.load()
    scores = ranker.score([LONG, SHORT]).tolist()
    tokens_at = Calibration.of(ranker.info).expected_tokens

    assert ranker.expected_tokens([LONG, SHORT]).tolist() == [tokens_at(it) for it in scores]
    assert ranker.expected_tokens([]).shape == (0,)


def test_one_string_is_not_taken_for_a_list_of_letters():
    """The usual slip is named with what would be right."""
    with pytest.raises(TypeError, match=r"want a list of prompts, not one string: \[prompt\]"):
        pars.Ranker.load().score(SHORT)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7}, None),
        ({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7}, "/v1/messages"),
        ('{"prompt": "Hi", "max_tokens": 7}', None),
        (b'{"prompt": "Hi", "max_tokens": 7}', "/v1/completions"),
        ({"input": "Hi", "max_output_tokens": 7}, "/team-a/v1/responses"),
    ],
)
def test_a_request_is_read_from_its_body(body, path):
    """Parsed, as text or as bytes; by its path, or by its own fields."""
    request = pars.Request.from_openai(body, path=path)

    assert (request.texts, request.max_tokens) == (["Hi"], 7)


def test_the_path_says_which_limit_counts():
    """A chat has no max_output_tokens: the engine would not read it either."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_output_tokens": 1}

    assert pars.Request.from_openai(body, "/v1/chat/completions").max_tokens is None


@pytest.mark.parametrize(
    ("body", "path", "problem"),
    [
        ("{", None, "body: want a JSON object: "),
        ("[1]", None, "body: want a JSON object, not list"),
        (None, None, "body: want a JSON object: "),
        ({}, "/v1/embeddings", "path '/v1/embeddings' generates no answers: want one such as /v1"),
    ],
)
def test_what_is_no_request_is_named(body, path, problem):
    """One line."""
    with pytest.raises(pars.ParsError, match=problem):
        pars.Request.from_openai(body, path)


def test_an_evaluation_counts_pairs():
    """Of six pairs five are right: tau-b 4/6, accuracy 5/6; 80 and 70 differ by an eighth only."""
    order = pars.evaluate([0.1, 0.9, 0.4, 0.5], [12, 300, 80, 70])

    assert order.num_rows == 4
    assert order.tau_b.value == pytest.approx(4 / 6)
    assert order.accuracy.value == pytest.approx(5 / 6)
    assert order.filtered_accuracy.value == 1.0
    assert order.tau_b.low <= order.tau_b.value <= order.tau_b.high
    assert order.deciles == ()
    assert order.as_json()["tau_b"]["value"] == 0.6667
    assert "4 answers: Kendall tau-b 0.667 [" in str(order)


def test_each_tenth_has_its_mean_length():
    """Twenty answers whose scores are their lengths: 0.5, 2.5, ... 18.5."""
    order = pars.evaluate(np.arange(20.0), np.arange(20))

    assert order.deciles == tuple(0.5 + 2 * tenth for tenth in range(10))


def test_groups_are_not_compared_and_cut_answers_are_lower_bounds():
    """Both groups are in order by themselves; a cut answer is comparable with shorter ones only."""
    lengths = [10, 20, 100, 200]

    assert pars.evaluate([1, 2, 1, 2], lengths, groups=["a", "a", "b", "b"]).tau_b.value == 1.0
    cut = pars.evaluate([2, 1], [10, 20], is_censored=[True, False])
    assert np.isnan(cut.tau_b.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"scores": [1, 2, 3]}, "two lists of one length"),
        ({"scores": [1, float("nan")]}, "scores: value 2 is nan: want finite numbers"),
        ({"lengths": [1, -2]}, "lengths: -2 is below 0"),
        ({"scores": ["a", "b"]}, "scores: want one list of numbers"),
        ({"scores": [[1], [2, 3]]}, "scores: want one list of numbers"),
        ({"scores": [], "lengths": []}, "scores and lengths are empty"),
        ({"groups": ["a"]}, "groups: 1 labels of 2 answers"),
        ({"prompts": [1, 2, 3]}, "prompts: 3 labels of 2 answers"),
        ({"is_censored": [True]}, "is_censored: "),
        ({"threshold": 2}, "threshold must be between 0 and 1"),
        ({"num_resamples": 0}, "num_resamples must be 1 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_named(arguments, problem):
    """One line with what would be right."""
    with pytest.raises(pars.ParsError, match=problem):
        pars.evaluate(**{"scores": [1, 2], "lengths": [3, 4]} | arguments)


NOON_S = EPOCH_S + 365.25 * 86_400 / 2  # of 2026


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (pars.FCFS(), ["first", "short", "late"]),
        (pars.ShortestFirst(), ["late", "short", "first"]),
        (pars.ShortestFirst(max_overtake_s=30), ["short", "first", "late"]),
        (pars.MaxSlowdown(1), ["first", "short", "late"]),
        (pars.MaxSlowdown(float("inf")), ["late", "short", "first"]),
    ],
)
def test_a_policys_keys_order_a_queue(policy, expected):
    """A long request, a short one a second later, and the shortest a minute later."""
    keys = {
        "first": policy.key(1000, NOON_S, prompt_tokens=50),
        "short": policy.key(20, NOON_S + 1, prompt_tokens=50),
        "late": policy.key(5, NOON_S + 60, prompt_tokens=50),
    }

    assert sorted(keys, key=keys.get) == expected


def test_a_key_is_of_now_unless_told():
    """Two in a row by the clock."""
    policy = pars.FCFS()

    assert policy.key(10) <= policy.key(10)
    assert policy.key(10) > policy.key(10, NOON_S)


def test_policies_are_spelled_as_they_are_made():
    """In a notebook one sees which it is."""
    policies = (pars.FCFS(), pars.ShortestFirst(max_overtake_s=30), pars.MaxSlowdown(1.5))

    assert repr(policies) == "(FCFS(), ShortestFirst(max_overtake_s=30), MaxSlowdown(1.5))"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: pars.ShortestFirst(-1), "max_overtake_s must be from 0 to 1000000000, or inf"),
        (lambda: pars.MaxSlowdown(0.5), "max_slowdown must be 1 or more, not 0.5"),
        (lambda: pars.MaxSlowdown(float("nan")), "max_slowdown must be 1 or more, not nan"),
        (lambda: pars.FCFS(bits=16), "bits must be 32 or 64, not 16"),
        (lambda: pars.FCFS().key(float("nan")), "answer_tokens must be a number of tokens"),
        (lambda: pars.FCFS().key(1, prompt_tokens=-1), "prompt_tokens must be a number of tokens"),
        (lambda: pars.FCFS().key(1, float("inf")), "arrival_s must be seconds since 1970"),
    ],
)
def test_a_policy_that_cannot_be_is_named(make, problem):
    """One line with what would be right."""
    with pytest.raises(pars.ParsError, match=problem):
        make()


def test_names_that_scripts_know_stay():
    """`pars.ranker` is older than the public API, and so is the bundled ranker's former name."""
    from pars import ranker

    assert ranker.Ranker is pars.Ranker
    assert ranker.boxed_ranker() == ranker.bundled_ranker()


def test_the_ranker_that_learns_is_public():
    """Two callers with the same words: sixty answers of each tell them apart."""
    learner = pars.OnlineRanker(secret=b"s" * 32)
    body = {"model": "m", "messages": [{"role": "user", "content": "Go on."}]}
    brief = pars.Signals.from_openai(body, api_key="brief")
    wordy = pars.Signals.from_openai(body, api_key="wordy")

    for _ in range(60):
        learner.learn(learner.expect(brief), 20)
        learner.learn(learner.expect(wordy), 900)

    assert learner.expect(brief).tokens < 100 < learner.expect(wordy).tokens


def test_signals_of_what_is_no_request_are_an_error():
    """As `Request.from_openai` has it."""
    with pytest.raises(pars.ParsError, match="want a JSON object"):
        pars.Signals.from_openai("[]")
    with pytest.raises(pars.ParsError, match="generates no answers"):
        pars.Signals.from_openai({}, "/v1/embeddings")
