"""`pars bench` on a real vLLM, and the fake engine beside it: they end requests in one order."""

import json
from pathlib import Path

import pytest

from pars.prove.bench import run_bench
from pars.prove.bench_plan import BenchOptions
from pars.prove.fake_engine import FakeEngine
from pars.prove.report import write_report
from pars.prove.step_time import EnginePreset
from pars.prove.times import Result, read_result
from pars.prove.workload import WorkloadRequest, write_workload

from engine import Engines
from serving import serve_in_thread

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
PRIORITY = ("--scheduling-policy", "priority")  # the server of tests/test_engine.py
LENGTHS = [1500, 30, 70, 10, 50, 20, 60, 40]  # the first runs until all have come
GAP_S = 0.05


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "load.jsonl"
    requests = [
        WorkloadRequest(str(n), n * GAP_S, f"prompt {n}", 8, length)
        for n, length in enumerate(LENGTHS)
    ]
    write_workload(path, {"source": "test"}, requests)
    return path


def measured(url: str, workload: Path, folder: Path) -> Result:
    options = BenchOptions(
        url=url,
        workload=workload,
        policies=("fcfs", "oracle", "reversed"),
        repeats=1,
        output_dir=folder,
    )
    assert run_bench(options)
    return read_result(folder)


def order_of_completion(result: Result, policy: str) -> list[int]:
    ended = [r for r in result.requests if r.policy == policy and r.finished_s is not None]
    return [int(r.request_id) for r in sorted(ended, key=lambda r: r.finished_s or 0.0)]


@pytest.fixture(scope="module")
def folder(vllm: Engines, workload: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a bench on the real vLLM."""
    folder = tmp_path_factory.mktemp("live") / "out"
    measured(vllm(*PRIORITY).url, workload, folder)
    return folder


@pytest.fixture(scope="module")
def live(folder: Path) -> Result:
    return read_result(folder)


def test_all_tokens_come_and_policies_order_the_queue(live: Result):
    """fcfs ends as they came, the oracle shortest first, reversed longest first."""
    assert {r.error for r in live.requests} == {None}
    assert [r.output_tokens for r in live.requests] == [r.asked_tokens for r in live.requests]
    by_length = sorted(range(1, len(LENGTHS)), key=lambda n: LENGTHS[n])
    assert order_of_completion(live, "fcfs") == list(range(len(LENGTHS)))
    assert order_of_completion(live, "oracle") == [0, *by_length]
    assert order_of_completion(live, "reversed") == [0, *reversed(by_length)]


def test_the_engine_tells_its_queue(live: Result):
    """Its /metrics, read while requests waited, know of most of them."""
    most = {run.policy: max(sample.num_waiting for sample in run.queue) for run in live.runs}

    assert all(2 <= waiting <= len(LENGTHS) - 1 for waiting in most.values()), most


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
        fake = measured(url, workload, tmp_path / "out")

    for policy in live.policies():
        assert order_of_completion(fake, policy) == order_of_completion(live, policy)
