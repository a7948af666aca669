"""The fast engine decides as vLLM's scheduler does: by hand, and against the real one."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_steps import steps_of
from pars.errors import ParsError
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.stepping import EngineLimits

ENGINE_PYTHON = Path(__file__).parent.parent / ".engine/bin/python"
NUM_CASES = 150


def engine(*, max_num_seqs=4, max_num_batched_tokens=64, num_blocks=100):
    return FastEngine(
        EngineLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            num_blocks=num_blocks,
            block_size=4,
        )
    )


def random_case(seed):
    """Small engines, so that slots, budget and KV blocks all run out in turn."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 4, 16])
    max_num_seqs = rng.choice([1, 2, 4, 8, 16])
    most_prompt, most_output = rng.choice([5, 40, 200]), rng.choice([3, 30, 100])
    needed = -(-(most_prompt + most_output) // block_size)  # of the largest request
    spare = rng.randrange(max(1, needed * rng.choice([1, 1, max_num_seqs])))
    limits = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(max_num_seqs, rng.choice([4, 16, 64, 256])),
        "block_size": block_size,
        "num_blocks": 1 + needed + spare,
        "scheduling_policy": rng.choice(["priority", "priority", "fcfs"]),
    }
    at_step, requests, most_gap = 0, [], rng.choice([0, 1, 3, 10])
    for number in range(rng.randrange(1, 60)):
        at_step += rng.randrange(most_gap + 1)
        requests.append(
            {
                "id": f"{number:02d}",
                "at_step": at_step,
                "prompt": rng.randrange(1, most_prompt + 1),
                "output": rng.randrange(1, most_output + 1),
                "priority": rng.choice([0, rng.randrange(3), rng.randrange(-100, 100)]),
            }
        )
    return {"limits": limits, "requests": requests}


@pytest.fixture(scope="module")
def exact():
    """Cases with the steps of vLLM's own scheduler."""
    if not ENGINE_PYTHON.exists():
        pytest.skip("there is no vLLM: make engine")
    cases = [random_case(seed) for seed in range(NUM_CASES)]
    script = Path(__file__).parent / "exact_steps.py"
    ended = subprocess.run(
        [ENGINE_PYTHON, script],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return list(zip(cases, json.loads(ended.stdout), strict=True))


@pytest.mark.engine
def test_every_step_is_vllms(exact):
    """Admissions, tokens, ends, preemptions and loads are the same, step by step."""
    for case, steps in exact:
        ours = steps_of(FastEngine(EngineLimits(**case["limits"])), case["requests"])

        assert ours == steps, case["limits"]


@pytest.mark.engine
def test_the_cases_are_hard_enough(exact):
    """They preempt, resume, cut prompts into parts and leave requests waiting."""
    steps = [step for _, run in exact for _, step in run]

    assert sum(len(step["preempted"]) for step in steps) > 100
    assert any(step["resumed"] for step in steps)
    assert any(step["num_prefill_tokens"] and not step["first_token"] for step in steps)
    assert any(step["num_waiting"] for step in steps)


@given(seed=st.integers(0, 10**9))
def test_skipping_quiet_steps_changes_nothing(seed):
    """What happens, happens in the same steps; in those left out nothing does."""
    case = random_case(seed)
    limits = EngineLimits(**case["limits"])
    all_steps = dict(steps_of(FastEngine(limits), case["requests"]))
    some = dict(steps_of(FastEngine(limits), case["requests"], skip=True))

    assert all(all_steps[number] == step for number, step in some.items())
    for number in all_steps.keys() - some.keys():
        left_out = all_steps[number]
        assert left_out["num_decode_seqs"] == left_out["num_running"]
        assert not left_out["num_prefill_tokens"]
        for event in ("admitted", "first_token", "resumed", "finished", "preempted"):
            assert left_out[event] == []


def test_one_request_has_its_first_token_after_prefill_and_one_more_a_step():
    """Three prompt tokens and three output tokens are three steps."""
    fast = engine()
    fast.add("a", 3, 3, 0, 0.0)
    first, second, third = fast.step(), fast.step(), fast.step()

    assert (first.num_prefill_tokens, first.admitted, first.first_token) == (3, ["a"], ["a"])
    assert (second.num_prefill_tokens, second.num_decode_seqs, second.num_kv_tokens) == (0, 1, 4)
    assert third.finished == ["a"]
    assert not fast.has_work


def test_a_long_prompt_takes_what_those_that_decode_leave():
    """Budget 8: one decodes, so the prompt of 20 is computed in 7, 7 and 6."""
    fast = engine(max_num_batched_tokens=8, max_num_seqs=2)
    fast.add("a", 2, 9, 0, 0.0)
    fast.step()
    fast.add("long", 20, 1, 0, 1.0)
    steps = [fast.step() for _ in range(3)]

    assert [step.num_prefill_tokens for step in steps] == [7, 7, 6]
    assert [step.first_token for step in steps] == [[], [], ["long"]]


def test_the_smaller_priority_goes_first_then_the_earlier_then_the_smaller_id():
    """One slot, so the order of admission is the order of the queue."""
    fast = engine(max_num_seqs=1)
    for request_id, priority, arrival_s in [("d", 1, 0), ("c", 0, 2), ("b", 0, 1), ("a", 0, 2)]:
        fast.add(request_id, 1, 1, priority, float(arrival_s))

    assert [fast.step().finished for _ in range(4)] == [["b"], ["a"], ["c"], ["d"]]


def test_nobody_passes_a_head_that_does_not_fit():
    """One of 5 blocks is left; the head needs 3, and the small one behind it waits too."""
    fast = engine(num_blocks=6)
    fast.add("running", 12, 9, 0, 0.0)
    fast.step()
    fast.add("big", 12, 1, 1, 1.0)
    fast.add("small", 1, 1, 2, 2.0)
    step = fast.step()

    assert (step.admitted, step.num_waiting) == ([], 2)


def test_the_worst_running_request_is_preempted_and_computed_anew():
    """Each fills one of two blocks; the next token of the early one takes the late one's."""
    fast = engine(num_blocks=3)
    fast.add("late", 4, 3, 5, 0.0)
    fast.add("early", 4, 3, 1, 1.0)
    steps = [fast.step() for _ in range(5)]

    assert steps[0].first_token == ["early", "late"]
    assert (steps[1].preempted, steps[1].num_decode_seqs) == (["late"], 1)
    assert (steps[1].num_running, steps[1].num_waiting) == (1, 1)
    assert steps[2].finished == ["early"]  # its blocks are free from the next step on
    assert (steps[3].admitted, steps[3].resumed) == (["late"], ["late"])
    assert (steps[3].num_prefill_tokens, steps[3].first_token) == (5, [])  # its answer's token too
    assert steps[4].finished == ["late"]


def test_an_aborted_request_leaves_its_place_and_blocks():
    """Of three blocks two are taken and the third is needed next: only an abort makes room."""
    fast = engine(num_blocks=4)
    fast.add("gone", 8, 1, 0, 0.0)
    fast.abort("gone")
    fast.add("b", 4, 4, 0, 0.0)
    fast.add("c", 4, 4, 1, 0.0)
    assert fast.step().admitted == ["b", "c"]
    assert fast.num_output_tokens("b") == 1
    fast.abort("b")
    fast.abort("nobody")
    fast.add("d", 4, 1, 0, 0.0)

    assert fast.step().finished == ["d"]
    assert fast.num_output_tokens("c") == 2
    assert fast.num_output_tokens("b") == 0


def test_a_request_that_can_never_fit_is_refused():
    """With its size, and what there is room for."""
    fast = engine(num_blocks=3)

    with pytest.raises(ParsError, match=r"9 prompt and 2 output tokens do not fit.*room for 9"):
        fast.add("big", 9, 2, 0, 0.0)


def test_an_id_in_use_and_a_step_without_work_are_errors():
    """Neither can be meant."""
    fast = engine()
    with pytest.raises(ParsError, match="no work"):
        fast.step()
    fast.add("a", 1, 1, 0, 0.0)
    with pytest.raises(ParsError, match="in use"):
        fast.add("a", 1, 1, 0, 0.0)
