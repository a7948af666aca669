"""`pars.simulate` and `pars.Workload`: what the command does, from Python."""

import subprocess
import sys

import numpy as np
import pytest

import pars
from pars.prove.report.times import read_result
from pars.prove.workload.workload import write_workload

TOKENS = [300, 40, 10, 30, 20]
PROMPTS = [f"prompt {n}" for n in range(5)]


@pytest.fixture
def workload() -> pars.Workload:
    """Five requests a hundredth of a second apart."""
    return pars.Workload.of(
        TOKENS, prompts=PROMPTS, prompt_tokens=[5] * 5, arrivals_s=[0.01 * n for n in range(5)]
    )


def order(results: pars.Simulation, policy: str) -> list[int]:
    """Output tokens in the order in which the requests ended."""
    of_policy = [it for it in results.requests if it.policy == policy]
    return [it.output_tokens for it in sorted(of_policy, key=lambda it: it.finished_s)]


def test_policies_order_a_workload_by_name_or_as_objects(workload):
    """With one place the first keeps it; the others end as each policy says."""
    results = pars.simulate(
        workload,
        [
            "fcfs",
            "oracle",
            "mine",
            ("oracle", pars.MaxSlowdown(float("inf"))),
            ("mine", pars.ShortestFirst(max_overtake_s=0)),
        ],
        scores={"mine": [0.0, 1.0, 4.0, 2.0, 3.0]},
        max_num_seqs=1,
    )

    assert order(results, "fcfs") == TOKENS
    assert order(results, "oracle") == [300, 10, 20, 30, 40]
    assert order(results, "mine") == [300, 40, 30, 20, 10]
    assert order(results, "oracle@infx") == [300, 10, 20, 30, 40]
    assert order(results, "mine@0") == TOKENS


def test_a_policy_alone_orders_by_the_ranker(workload):
    """Anything with `score(list[str])`: here the later prompt is the shorter one."""

    class Backwards:
        def score(self, prompts):
            return [-float(prompt.split()[-1]) for prompt in prompts]

    by_object = pars.simulate(workload, [pars.ShortestFirst()], ranker=Backwards(), max_num_seqs=1)
    by_name = pars.simulate(
        workload, ["ranker:back"], rankers={"back": Backwards()}, max_num_seqs=1
    )

    assert order(by_object, "ranker") == order(by_name, "ranker:back") == [300, 20, 30, 10, 40]


def test_a_policy_of_ones_own_is_simulated_too(workload):
    """It derives from `pars.Policy`; results are named by its class."""

    class LastComeFirst(pars.Policy):
        def place(self, demand, arrival_s, **_):
            return pars.Place(key=-int(arrival_s * 1e6))

    results = pars.simulate(workload, [("oracle", LastComeFirst())], max_num_seqs=1)

    assert order(results, "oracle@LastComeFirst") == [300, 20, 30, 10, 40]


def test_it_is_what_the_command_does(workload, tmp_path):
    """The same workload through `pars simulate`: every time is the same."""
    path = tmp_path / "load.jsonl"
    write_workload(path, {"source": "test"}, workload.requests)
    policies = ["fcfs", "oracle@1.5x", "oracle@30"]
    command = [sys.executable, "-m", "pars", "simulate", "--workload", str(path)]
    command += ["--policies", ",".join(policies), "--rates", "50", "--max-num-seqs", "2"]
    subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out")], check=True, capture_output=True
    )

    results = pars.simulate(path, policies, rates=[50], max_num_seqs=2)

    by_command = {
        (it.policy, it.rate, it.request_id): it.finished_s
        for it in read_result(tmp_path / "out").requests
    }
    by_python = {
        (it.policy, it.rate, it.request_id): pytest.approx(it.finished_s, abs=1e-6)
        for it in results.requests
    }
    assert by_command == by_python


def test_results_are_tables_and_figures(workload):
    """Printed as the command prints them; means by measure."""
    results = pars.simulate(workload, ["fcfs", "oracle"], max_num_seqs=1)

    fcfs, oracle = results.figures
    assert (fcfs.policy, oracle.policy) == ("fcfs", "oracle")
    assert oracle.measures["ntpot_s"].mean < fcfs.measures["ntpot_s"].mean
    assert "NTPOT, s: end-to-end time / output tokens" in str(results)
    assert "oracle" in str(results)


def test_results_as_a_table_of_pandas(workload):
    """A row a request and policy; a request's measures follow from its times."""
    pytest.importorskip("pandas")
    results = pars.simulate(workload, ["fcfs", "oracle"], rates=[1, 2], max_num_seqs=1)

    table = results.to_pandas()

    assert len(table) == 2 * 2 * 5
    assert set(table.policy) == {"fcfs", "oracle"}
    assert set(table.rate) == {1.0, 2.0}
    first = results.requests[0]
    row = table.iloc[0]
    assert row.request_id == first.request_id
    assert row.ntpot_s == pytest.approx((first.finished_s - first.arrival_s) / first.output_tokens)
    assert list(table.columns) == [
        *("policy", "rate", "request_id", "arrival_s", "prompt_tokens", "output_tokens"),
        *("ttft_s", "tpot_s", "e2e_s", "ntpot_s", "longest_itl_s"),
    ]


def test_without_pandas_one_line_says_what_to_install():
    """Everything else works without it."""
    code = """
import sys
sys.modules["pandas"] = None
import pars
results = pars.simulate(pars.Workload.of([3, 4]), ["fcfs"])
try:
    results.to_pandas()
except pars.ParsError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout == (
        "Simulation.to_pandas() needs the 'pandas' extra: pip install 'pars-llm[pandas]'\n"
    )


def test_a_policy_alone_needs_prompts_and_says_what_else_there_is():
    """A trace of lengths has none: by what it orders must be said."""
    lengths_alone = pars.Workload.of([3, 4])

    with pytest.raises(pars.ParsError, match=r"as in \('oracle', MaxSlowdown\(2\)\)"):
        pars.simulate(lengths_alone, ["fcfs", pars.MaxSlowdown(2)])
    assert pars.simulate(lengths_alone, [pars.FCFS(), ("oracle", pars.MaxSlowdown(2))]).requests


class NotAPolicy:
    pass


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"policies": "fcfs"}, r"policies: want a list of them, \['fcfs'\]"),
        ({"policies": []}, "policies: give at least one"),
        ({"policies": ["fcfs", pars.FCFS()]}, "policies: fcfs stands there twice"),
        ({"policies": ["best"]}, "policy 'best': 'best' is none of fcfs, ranker"),
        ({"policies": [NotAPolicy()]}, "policies: want a name such as 'oracle@30', a policy"),
        ({"policies": [("best", pars.MaxSlowdown())]}, "'best' is none of"),
        ({"policies": ["ranker:x"]}, "policy ranker:x: give its folder"),
        ({"policies": ["mine"], "scores": {"mine": [1, 2]}}, r"want one number a request, \[5\]"),
        (
            {"policies": ["mine"], "scores": {"mine": [1, 2, np.nan, 4, 5]}},
            "scores mine: number 3 is nan",
        ),
        ({"policies": ["mine"], "scores": {"mine": list("abcde")}}, "want one list of numbers"),
        ({"scores": {"oracle": [1] * 5}}, "scores 'oracle': want a name"),
        ({"policies": ["fcfs"], "scores": {"mine": [1] * 5}}, "no policy is mine"),
        ({"engine": "tpu"}, "engine 'tpu' is none of"),
        ({"max_num_seqs": 0}, "max_num_seqs must be 1 or more"),
        ({"rates": [-1], "policies": ["fcfs"]}, "the rate must be more than 0"),
        ({"ranker": "no/such/folder"}, "no such ranker folder"),
    ],
)
def test_what_cannot_be_simulated_is_named(workload, arguments, problem):
    """One line with what would be right."""
    with pytest.raises(pars.ParsError, match=problem):
        pars.simulate(workload, **arguments)


# Workloads


def test_a_workload_of_lengths_alone_arrives_at_once():
    """Ids count from 0; a prompt of no text counts as one token."""
    workload = pars.Workload.of(np.array([3, 4]))

    first, second = workload.requests
    assert (first.request_id, second.request_id) == ("0", "1")
    assert (first.arrival_s, second.arrival_s) == (0.0, 0.0)
    assert (first.prompt, first.prompt_tokens, second.output_tokens) == (None, 1, 4)


def test_columns_of_pandas_are_taken_in_their_order():
    """Whatever their labels are, as after a filter."""
    pandas = pytest.importorskip("pandas")
    log = pandas.DataFrame(
        {"prompt": ["a", "b", "c"], "tokens": [1, 2, 3], "at_s": [0.0, 1.0, 2.0]}
    )
    some = log[log.tokens > 1]

    workload = pars.Workload.of(some.tokens, prompts=some.prompt, arrivals_s=some.at_s)

    assert [(it.prompt, it.output_tokens) for it in workload.requests] == [("b", 2), ("c", 3)]


def test_a_rate_draws_arrivals_and_the_seed_fixes_them():
    """The same again with the same seed; other ones with another."""

    def arrivals(seed: int) -> list[float]:
        workload = pars.Workload.of([1] * 1000, rate=20, seed=seed)
        return [request.arrival_s for request in workload.requests]

    assert arrivals(1) == arrivals(1) != arrivals(2)
    assert arrivals(1)[-1] == pytest.approx(50, rel=0.1)


def test_a_log_becomes_a_workload(tmp_path):
    """A request a row, as the command makes it."""
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"prompt": "hi", "answer_tokens": 7}\n{"prompt": "hello", "answer_tokens": 9}\n'
    )

    workload = pars.Workload.from_records(path, rate=10)

    assert {(it.prompt, it.output_tokens) for it in workload.requests} == {("hi", 7), ("hello", 9)}
    assert workload.header["arrivals"] == "poisson"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"answer_tokens": []}, "workload: has no requests"),
        ({"answer_tokens": [1, 0]}, "workload, row 2: field 'output_tokens' must be a whole num"),
        ({"answer_tokens": [1, 2.5]}, "field 'output_tokens' must be a whole number from 1 on"),
        ({"prompts": ["a"]}, "workload: 1 prompts of 2 answer_tokens"),
        ({"prompts": ["a", 7]}, "row 2: field 'prompt' must be text"),
        ({"arrivals_s": [1.0, 0.5]}, "workload, row 2: arrives at 0.5 s, before the line above"),
        ({"arrivals_s": [0.0, float("nan")]}, "field 'arrival_s' must be seconds from 0 on"),
        ({"rate": 0}, "the rate must be more than 0"),
    ],
)
def test_a_workload_that_cannot_be_is_named(arguments, problem):
    """By row and field, counted from 1."""
    with pytest.raises(pars.ParsError, match=problem):
        pars.Workload.of(**{"answer_tokens": [1, 2]} | arguments)
