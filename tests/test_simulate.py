"""Virtual time: seconds worked out by hand, both ways of stepping, sweeps that go on, and fits."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pars.cli.main import commands
from pars.errors import ParsError
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.fit import fit_step_time
from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import EnginePreset, StepTime
from pars.prove.engine.stepping import EngineLimits
from pars.prove.report.sweep import SweepPlan, capacity_rps, run_sweep
from pars.prove.report.times import read_result
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import keys_of
from pars.prove.workload.scores import RankerSource
from pars.prove.workload.workload import WorkloadRequest, write_workload
from pars.ranking.ranker import bundled_ranker

ENGINE_PYTHON = Path(__file__).parent.parent / ".engine/bin/python"
SECONDS = StepTime(base_s=1.0, prefill_token_s=0.1, decode_seq_s=0.5, kv_token_s=0.01)
SMALL = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=60, block_size=4)


class StepByStep:
    """A fast engine that never skips: what is not a FastEngine cannot."""

    def __init__(self, limits):
        self._engine = FastEngine(limits)

    def __getattr__(self, name):
        return getattr(self._engine, name)


def run(requests, engine, step_time=SECONDS, policy="fcfs"):
    times = []
    keys = keys_of(Contender.parse(policy), requests)
    told = simulate(
        zip(requests, keys, strict=True), engine, step_time, policy=policy, on_finished=times.append
    )
    return told, {it.request_id: it for it in times}


def request(request_id, arrival_s, prompt_tokens, output_tokens):
    return WorkloadRequest(request_id, arrival_s, None, prompt_tokens, output_tokens)


def test_a_trace_without_prompts_is_simulated_with_nothing_said(tmp_path):
    """No ranker can score its requests: first come, first served beside perfect knowledge."""
    trace, workload, out = (tmp_path / name for name in ("trace.csv", "workload.jsonl", "out"))
    rows = [f"2023-11-16 18:00:{n:02}.0,{10 + n},{5 + n}" for n in range(20)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    made = ["workload", "--trace", str(trace), "--output", str(workload)]
    assert CliRunner().invoke(commands, made).exit_code == 0

    asked = ["simulate", "--workload", str(workload), "--output-dir", str(out)]
    done = CliRunner().invoke(commands, asked)

    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert {row["policy"] for row in report["figures"]} == {"fcfs", "oracle@1.33x", "oracle"}


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "load.jsonl"
    requests = [
        WorkloadRequest(f"{n:02d}", n * 0.1, f"prompt {n}", 5 + n % 7, 3 + (n * 37) % 50)
        for n in range(60)
    ]
    write_workload(path, {"source": "test"}, requests)
    return path


def test_times_are_those_worked_out_by_hand():
    """
    a: 2 prompt and 3 output tokens at 0 s; b: 1 and 1 at 0.5 s, seen when the first step is over.

    Step 1: 1 + 2 · 0.1 + 2 · 0.01 = 1.22. Step 2 prefills b while a decodes: 1 + 0.1 + 0.5 +
    (3 + 1) · 0.01 = 1.64, at 2.86. Step 3: 1 + 0.5 + 4 · 0.01 = 1.54, at 4.40.
    """
    told, times = run([request("a", 0.0, 2, 3), request("b", 0.5, 1, 1)], FastEngine(SMALL))

    assert times["a"].first_token_s == pytest.approx(1.22)
    assert times["b"].scheduled_s == pytest.approx(1.22)
    assert times["b"].first_token_s == times["b"].finished_s == pytest.approx(2.86)
    assert times["a"].finished_s == told.duration_s == pytest.approx(4.40)
    assert times["a"].longest_itl_s == pytest.approx(1.64)
    assert times["b"].longest_itl_s is None
    assert sum(told.itl_counts.values()) == 2


def test_an_idle_engine_waits_for_the_next_arrival():
    """Nothing passes between 1.11 s and 100 s."""
    told, times = run([request("a", 0.0, 1, 1), request("b", 100.0, 1, 1)], FastEngine(SMALL))

    assert times["b"].finished_s == pytest.approx(101.11)
    assert told.facts["num_steps"] == 2


def test_an_arrival_is_due_when_an_idle_engine_has_waited_for_it():
    """Of a hundred pairs of times two or three add up to a little less than the second one."""
    rng = random.Random(0)
    for _ in range(300):
        first_s = rng.random()
        late = request("b", 2.2 + 20 * rng.random(), 1, 1)
        _, times = run([request("a", first_s, 1, 1), late], FastEngine(SMALL))
        assert times["b"].finished_s == pytest.approx(late.arrival_s + 1.11)


@given(
    asked=st.lists(
        st.tuples(st.floats(0, 20), st.integers(1, 60), st.integers(1, 80)), min_size=1, max_size=40
    ),
    policy=st.sampled_from(["fcfs", "oracle", "oracle@30", "reversed"]),
)
def test_skipping_and_stepping_give_the_same_times(asked, policy):
    """Also the longest pauses, the number of steps, preemptions, and intervals by length."""
    requests = [
        request(f"{row:02d}", at_s, prompt_tokens, output_tokens)
        for row, (at_s, prompt_tokens, output_tokens) in enumerate(sorted(asked))
    ]
    told, times = run(requests, FastEngine(SMALL), policy=policy)
    told_slowly, times_slowly = run(requests, StepByStep(SMALL), policy=policy)

    for request_id, it in times.items():
        other = times_slowly[request_id]
        for name in ("scheduled_s", "first_token_s", "finished_s", "longest_itl_s"):
            assert getattr(it, name) == pytest.approx(getattr(other, name)), name
        assert it.num_preemptions == other.num_preemptions
    assert told.facts == told_slowly.facts
    assert told.num_preemptions == told_slowly.num_preemptions
    assert sum(told.itl_counts.values()) == sum(told_slowly.itl_counts.values())


@given(
    num_seqs=st.integers(1, 300),
    num_kv_tokens=st.integers(1, 10**6),
    num_steps=st.integers(1, 5000),
    kv_token_s=st.sampled_from([0.0, 4e-8]),
)
def test_many_decode_steps_take_the_sum_of_each(num_seqs, num_kv_tokens, num_steps, kv_token_s):
    """And the number of steps in a time is the number that takes it."""
    step_time = replace(SECONDS, kv_token_s=kv_token_s)
    total = step_time.decode_seconds(num_steps, num_seqs, num_kv_tokens)
    each = math.fsum(
        step_time.seconds(
            num_prefill_tokens=0,
            num_decode_seqs=num_seqs,
            num_kv_tokens=num_kv_tokens + num_seqs * (step + 1),
        )
        for step in range(num_steps)
    )

    assert total == pytest.approx(each)
    assert step_time.decode_steps_until(total * (1 - 1e-9), num_seqs, num_kv_tokens) == num_steps
    assert step_time.decode_steps_until(total * 1.0001 + 1, num_seqs, num_kv_tokens) > num_steps


def test_the_oracle_beats_fcfs_and_the_reversed_order_is_the_worst():
    """200 at once on 16 slots; mean time per output token, as on the real engine."""
    requests = [request(f"{n:03d}", 0.0, 10, 5 + (n * 7919) % 500) for n in range(200)]
    limits = EngineLimits(max_num_seqs=16, max_num_batched_tokens=512)
    mean = {}
    for policy in ("oracle", "fcfs", "reversed"):
        _, times = run(requests, FastEngine(limits), policy=policy)
        mean[policy] = sum(it.finished_s / it.output_tokens for it in times.values()) / 200

    assert mean["oracle"] * 2 < mean["fcfs"] < mean["reversed"]


def test_a_sweep_has_every_policy_at_every_load(workload, tmp_path):
    """Two by two, all requests in each, at the rates asked for."""
    plan = SweepPlan(
        workload=workload,
        policies=("fcfs", "oracle@30"),
        rates=("20", "0.5x"),
        output_dir=tmp_path / "out",
    )

    assert run_sweep(plan)
    result = read_result(tmp_path / "out")
    assert {run.key for run in result.runs} == {
        (policy, rate, 0) for policy in ("fcfs", "oracle@30") for rate in (20.0, 5.0)
    }
    assert len(result.requests) == 4 * 60
    assert not result.interrupted
    last = max(it.arrival_s for it in result.requests if it.rate == 20.0)
    assert last == pytest.approx(59 / 20)


def test_a_sweep_that_was_stopped_goes_on_where_it_was(workload, tmp_path):
    """A killed process leaves one point; the next command adds the other and ends the result."""
    out = tmp_path / "out"
    first = SweepPlan(workload=workload, policies=("fcfs",), output_dir=out)
    run_sweep(first)
    path = out / "requests.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + b'{"request_id": "cut')
    assert read_result(out).interrupted
    points = []

    run_sweep(
        replace(first, policies=("fcfs", "oracle")),
        lambda name, count: points.append((name, count)) or (lambda _: None),
    )

    assert points == [("simulating", 1)]
    result = read_result(out)
    assert (len(result.requests), result.policies(), result.interrupted) == (
        120,
        ["fcfs", "oracle"],
        False,
    )


def test_a_folder_is_not_continued_with_another_engine(workload, tmp_path):
    """The error says what differs."""
    plan = SweepPlan(workload=workload, policies=("fcfs",), output_dir=tmp_path / "out")
    run_sweep(plan)
    preset = EnginePreset.named("h100-8b")
    other = replace(preset, limits=replace(preset.limits, max_num_seqs=2))

    with pytest.raises(ParsError, match="another limits"):
        run_sweep(replace(plan, preset=other))


def test_ctrl_c_keeps_the_points_that_are_done(tmp_path):
    """Exit code 130, no half-written file, and a report that says interrupted."""
    load, out = tmp_path / "load.jsonl", tmp_path / "out"
    requests = [request(f"{n:06d}", n * 0.05, 50, 100 + n % 50) for n in range(40_000)]
    write_workload(load, {"source": "test"}, requests)
    command = [sys.executable, "-m", "pars", "simulate", "--workload", str(load)]
    command += [
        "--policies",
        "fcfs,oracle,reversed,prompt-length",
        "--rates",
        "5,10,20,30,40,50,60,70,80",
    ]
    process = subprocess.Popen(
        [*command, "--output-dir", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A background job's children inherit that SIGINT is ignored; here it must not be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (out / "requests.jsonl").exists():
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    told = process.communicate()[0].decode()

    assert process.returncode == 130, told
    assert "INTERRUPTED" in told
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "report.json",
        "requests.jsonl",
    ]


def test_what_would_i_gain_is_one_command(tmp_path):
    """From a log of prompts and answer lengths, with the bundled ranker."""
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    rows = [
        {"prompt": f"Write {n} words about rain.", "response_tokens": 10 + n} for n in range(80)
    ]
    log.write_text("\n".join(map(json.dumps, rows)))
    asked = ["simulate", "--records", log, "--max-num-seqs", "4", "--rates", "2,8"]

    done = CliRunner().invoke(commands, [*map(str, asked), "--output-dir", str(out)])

    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert {(row["policy"], row["rate"]) for row in report["figures"]} == {
        (policy, rate)
        for policy in ("fcfs", "online@1.33x", "ranker@1.33x", "oracle")
        for rate in (2.0, 8.0)
    }
    assert (out / "report.html").exists()


@pytest.fixture
def stories(tmp_path):
    """A workload of prompts that a ranker tells apart, and two rankers: one knows other words."""
    load = tmp_path / "stories.jsonl"
    asked = ("Write a very long story", "Name a dog", "Explain all of physics", "2+2?")
    requests = [
        WorkloadRequest(f"{n:02d}", 0.0, f"{asked[n % 4]}, number {n}", 8, 5 + n) for n in range(40)
    ]
    write_workload(load, {"source": "test"}, requests)
    for name in ("mine", "theirs"):
        shutil.copytree(bundled_ranker(), tmp_path / name)
    path = tmp_path / "theirs/tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["vocabulary"][3:] = tokenizer["vocabulary"][:2:-1]
    path.write_text(json.dumps(tokenizer), "utf-8")
    return load


def simulated_by(load, out, rankers, policies):
    """The result's end times by policy."""
    sources = {name: RankerSource(folder) for name, folder in rankers.items()}
    preset = replace(EnginePreset.named("h100-8b"), limits=SMALL)
    run_sweep(
        SweepPlan(workload=load, policies=policies, output_dir=out, sources=sources, preset=preset)
    )
    result = read_result(out)
    ends = {policy: {} for policy in policies}
    for it in result.requests:
        ends[it.policy][it.request_id] = it.finished_s
    return ends, result.header["rankers"]


def test_two_rankers_under_two_names_are_two_rankers(stories, tmp_path):
    """Each orders the requests by itself, as alone; the result names both folders."""
    folders = {f"ranker:{name}": tmp_path / name for name in ("mine", "theirs")}
    policies = ("ranker:mine", "ranker:theirs")

    ends, named = simulated_by(stories, tmp_path / "both", folders, policies)
    alone, _ = simulated_by(stories, tmp_path / "one", {"ranker": tmp_path / "theirs"}, ("ranker",))

    assert ends["ranker:mine"] != ends["ranker:theirs"] == alone["ranker"]
    assert named == {name: str(folder) for name, folder in folders.items()}


def test_a_result_goes_on_with_another_ranker_under_another_name(stories, tmp_path):
    """The second adds its policy; another folder under the first's name is refused."""
    out, mine, theirs = tmp_path / "out", tmp_path / "mine", tmp_path / "theirs"
    simulated_by(stories, out, {"ranker:a": mine}, ("ranker:a",))

    both = {"ranker:a": mine, "ranker:b": theirs}
    _, named = simulated_by(stories, out, both, tuple(both))
    with pytest.raises(ParsError, match="in which ranker:a is"):
        simulated_by(stories, out, {"ranker:a": theirs}, ("ranker:a",))

    assert read_result(out).policies() == ["ranker:a", "ranker:b"]
    assert named == {"ranker:a": str(mine), "ranker:b": str(theirs)}


@pytest.mark.parametrize(
    ("rankers", "problem"),
    [
        (["box"], "policy ranker:mine: give its folder: --ranker mine=DIR"),
        (["mine=box", "yours=box"], "--ranker yours=box: no policy is ranker:yours"),
        (["mine=box", "mine=other"], "two for one name"),
    ],
)
def test_a_ranker_without_a_folder_or_a_policy_is_named(stories, tmp_path, rankers, problem):
    """So that no two names can mean one ranker unseen."""
    asked = ["--policies", "ranker:mine", "--output-dir", str(tmp_path / "out")]
    asked += [part for it in rankers for part in ("--ranker", it)]
    done = CliRunner().invoke(commands, ["simulate", "--workload", str(stories), *asked])

    assert isinstance(done.exception, ParsError)
    assert problem in str(done.exception)


def test_requests_without_prompts_cannot_be_ranked(tmp_path):
    """The error says what kind of workload could."""
    load = tmp_path / "load.jsonl"
    write_workload(load, {}, [request("0", 0.0, 1, 1)])

    with pytest.raises(ParsError, match="policy ranker needs a workload made from --records"):
        run_sweep(SweepPlan(workload=load, policies=("ranker",), output_dir=tmp_path / "out"))


@pytest.mark.parametrize(
    ("rates", "problem"),
    [(("fast",), "numbers above 0 like 20"), (("0x",), "numbers above 0"), (("2", "2"), "twice")],
)
def test_a_rate_that_is_none_is_named(workload, tmp_path, rates, problem):
    """With what would be right."""
    with pytest.raises(ParsError, match=problem):
        run_sweep(
            SweepPlan(workload=workload, policies=("fcfs",), rates=rates, output_dir=tmp_path / "o")
        )


def test_capacity_is_what_a_full_queue_gets_done():
    """One slot, 1 + 0.1 + 0.01 s a request: 0.9 a second."""
    preset = EnginePreset(name="one", step_time=SECONDS, limits=replace(SMALL, max_num_seqs=1))

    assert capacity_rps([request(f"{n:02d}", 0.0, 1, 1) for n in range(50)], preset) == (
        pytest.approx(1 / 1.11)
    )


def test_a_fit_finds_the_times_that_a_known_engine_made(workload, tmp_path):
    """Mean and p90 NTPOT of every policy within 2%, from a start that is far off."""
    true = EnginePreset(
        name="true",
        step_time=StepTime(base_s=0.03, prefill_token_s=4e-4, decode_seq_s=3e-3, kv_token_s=2e-6),
        limits=SMALL,
    )
    plan = SweepPlan(
        workload=workload, policies=("fcfs", "oracle"), output_dir=tmp_path / "out", preset=true
    )
    run_sweep(plan)

    fitted = fit_step_time(tmp_path / "out", replace(EnginePreset.named("h100-8b"), limits=SMALL))

    assert all(it.error < 0.02 for it in fitted.runs), str(fitted)
    assert fitted.preset.step_time.base_s == pytest.approx(0.03, rel=0.3)
    path = tmp_path / "engine.json"
    fitted.preset.write(path)
    assert EnginePreset.named(str(path)) == fitted.preset


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "has no field 'pars_engine'"),
        ('{"pars_engine": 1, "step_time": {"base_s": 1}}', "missing 3 required"),
        ('{"pars_engine": 1, "step_time": {"base": 1}}', "StepTime has no field base"),
        ("[", "is not JSON"),
    ],
)
def test_an_engine_file_with_a_fault_is_named(tmp_path, text, problem):
    """By what is wrong in it."""
    path = tmp_path / "engine.json"
    path.write_text(text)

    with pytest.raises(ParsError, match=problem):
        EnginePreset.named(str(path))


def test_an_engine_that_is_unknown_is_named():
    """With those that are known."""
    with pytest.raises(ParsError, match=r"'b200' is none of h100-8b, and no \.json file"):
        EnginePreset.named("b200")


def test_the_vllm_stepper_says_how_to_get_vllm(workload, tmp_path):
    """Where it is not installed."""
    try:
        import vllm  # noqa: F401
    except ImportError:
        plan = SweepPlan(
            workload=workload, policies=("fcfs",), stepper="vllm", output_dir=tmp_path / "out"
        )
        with pytest.raises(ParsError, match="--vllm-python PATH"):
            run_sweep(plan)
    else:
        pytest.skip("vLLM is installed here")


@pytest.mark.engine
def test_both_steppers_give_the_same_result(workload, tmp_path):
    """Through the command line, vLLM's in its own environment."""
    if not ENGINE_PYTHON.exists():
        pytest.skip("there is no vLLM: make engine")
    results = {}
    for stepper, more in (("fast", []), ("vllm", ["--vllm-python", str(ENGINE_PYTHON)])):
        out = tmp_path / stepper
        command = [sys.executable, "-m", "pars", "simulate", "--workload", str(workload)]
        command += ["--stepper", stepper, "--policies", "oracle@30", "--max-num-seqs", "4"]
        command += ["--num-blocks", "8", "--rates", "200", "--output-dir", str(out), *more]
        subprocess.run(command, check=True, capture_output=True, timeout=200)
        results[stepper] = sorted(read_result(out).requests, key=lambda it: it.request_id)

    assert any(it.num_preemptions for it in results["fast"])
    assert results["fast"] == results["vllm"]
