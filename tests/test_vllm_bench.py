"""`pars bench` on a real vLLM, and the fake engine beside it: they end requests in one order."""

import json
from pathlib import Path

import pytest

from pars.prove.engine.step_time import EnginePreset
from pars.prove.fake_engine.server import FakeEngine
from pars.prove.live.bench import run_bench
from pars.prove.live.bench_plan import BenchOptions
from pars.prove.report.report import write_report
from pars.prove.report.times import Result, read_result
from pars.prove.workload.workload import WorkloadRequest, write_workload

from engine import Engines
from serving import serve_in_thread

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
PRIORITY = ("--scheduling-policy", "priority")  # the server of tests/test_engine.py
POLICIES = ("fcfs", "oracle", "oracle@1x", "oracle@infx")  # the last two by the express lane
LENGTHS = [600, 120, 280, 40, 200, 80, 240, 160]  # the first runs until all have come
GAP_S = 0.05
LONG_STALL_S = 0.05  # of this process: then it sends late, or sees two ends at once
NUM_TRIES = 6


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "load.jsonl"
    requests = [
        WorkloadRequest(str(n), n * GAP_S, f"prompt {n}", 8, length)
        for n, length in enumerate(LENGTHS)
    ]
    write_workload(path, {"source": "test"}, requests)
    return path


def measured(url: str, workload: Path, folder: Path) -> Path:
    """
    The folder of the first bench in which this process did not stand still, on a busy machine.

    Of `folder`'s sub-folders; the last one, if it stood still each time.
    """
    for number in range(NUM_TRIES):
        output_dir = folder / str(number)
        options = BenchOptions(
            url=url, workload=workload, policies=POLICIES, repeats=1, output_dir=output_dir
        )
        assert run_bench(options)
        if all((it.largest_stall_s or 0) < LONG_STALL_S for it in read_result(output_dir).runs):
            break
    return output_dir


def order_of_completion(result: Result, policy: str) -> list[int]:
    ended = [r for r in result.requests if r.policy == policy and r.finished_s is not None]
    return [int(r.request_id) for r in sorted(ended, key=lambda r: r.finished_s or 0.0)]


@pytest.fixture(scope="module")
def folder(vllm: Engines, workload: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a bench on the real vLLM."""
    return measured(vllm(*PRIORITY).url, workload, tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def live(folder: Path) -> Result:
    return read_result(folder)


def test_all_tokens_come_and_policies_order_the_queue(live: Result):
    """fcfs, and no share for express, end as they came; the oracle, and all of it, by length."""
    assert {r.error for r in live.requests} == {None}
    assert [r.output_tokens for r in live.requests] == [r.asked_tokens for r in live.requests]
    by_length = sorted(range(1, len(LENGTHS)), key=lambda n: LENGTHS[n])
    for policy in ("fcfs", "oracle@1x"):
        assert order_of_completion(live, policy) == list(range(len(LENGTHS)))
    for policy in ("oracle", "oracle@infx"):
        assert order_of_completion(live, policy) == [0, *by_length]


def test_the_engine_tells_its_queue(live: Result):
    """Its /metrics, read while requests waited, know of most of them."""
    most = max(sample.num_waiting for run in live.runs for sample in run.queue)

    assert 2 <= most <= len(LENGTHS) - 1


def test_the_report_of_a_real_run(folder: Path):
    """Nothing failed, and the oracle stands beside fcfs over all eight requests."""
    write_report(folder)
    report = json.loads((folder / "report.json").read_text())

    assert (report["num_failed"], report["interrupted"]) == (0, False)
    oracle = next(gain for gain in report["gains"] if gain["policy"] == "oracle")
    assert oracle["num_requests"] == len(LENGTHS)
    assert "vLLM 0." in report["header"]["engine"]


def test_the_fake_engine_ends_them_in_the_same_order(live: Result, workload: Path, tmp_path: Path):
    """One slot each, the same workload: the same order under every policy."""
    preset = EnginePreset.named("h100-8b")
    with serve_in_thread(FakeEngine.of_preset(preset, max_num_seqs=1, speed=4.0)) as url:
        fake = read_result(measured(url, workload, tmp_path))

    for policy in live.policies():
        assert order_of_completion(fake, policy) == order_of_completion(live, policy)
