"""In front of a real SGLang: its order is ours, its refusals stay here, and its traps are named."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from doors import Door, chat, completion, gateway, order_of_admission, word_ranker
from pars.doctor.doctor import DoctorOptions, diagnose
from pars.doctor.findings import OK, PROBLEM

from engine import MODEL, Engine, Engines, wait_until

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]
BY_PRIORITY = ("--enable-priority-scheduling", "--schedule-policy", "fcfs")
METRICS = "--enable-metrics"  # they tell how many wait


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_ranker(tmp_path_factory.mktemp("words") / "ranker")


@pytest.fixture(scope="module")
def engine(sglang: Engines) -> Engine:
    """As docs/serving.md says to start it."""
    low_first = ("--schedule-low-priority-values-first", "--disable-priority-preemption")
    return sglang(*BY_PRIORITY, *low_first, METRICS)


@pytest.fixture(scope="module")
def door(engine: Engine, ranker: Path) -> Iterator[Door]:
    with gateway(engine, ranker, "--max-overtake-s", "inf") as opened:
        wait_until(lambda: state(opened) == "sglang-low-first", "word of the engine", 60)
        yield opened


def state(door: Door) -> str:
    return str(httpx.get(f"{door.url}/pars/health").json()["engine"])


def warnings(door: Door) -> list[str]:
    return list(httpx.get(f"{door.url}/pars/health").json()["warnings"])


def test_the_queue_follows_the_score(door: Door):
    """Eight waiting requests begin in the order of their expected lengths."""
    lengths = random.Random(0).sample(range(10, 1000, 10), 8)

    order = order_of_admission(door, [completion(length) for length in lengths])

    assert order == [f"completion {length}" for length in sorted(lengths)]


def test_a_client_s_own_priority_changes_nothing(door: Door):
    """The smallest there is, in the body of the longest request; chats are ordered as well."""
    asks = [completion(900, priority=-(2**62)), chat(300), completion(600)]

    order = order_of_admission(door, asks)

    assert order == ["chat 300", "completion 600", "completion 900"]


def test_the_doctor_finds_nothing_but_the_metrics(engine: Engine):
    """The probe sees that it admits by priority."""
    report = diagnose(DoctorOptions(endpoint=engine.url, watch_s=0, probe=True))

    found = {it.name: it for it in report.findings}
    assert found["priority"].verdict == OK
    assert (found["scheduling"].verdict, found["scheduling"].numbers["probed"]) == (OK, True)
    [warning] = [it.told for it in report.findings if it.name == "engine"]
    assert "--enable-metrics" in warning


def test_sglang_keeps_its_metrics_apart_for_each_priority(door: Door):
    """That is what the warning is about: two more requests, two more values on its page."""

    def num_priorities() -> int:
        page = httpx.get(f"{door.engine.url}/metrics").text
        return len(set(re.findall(r'sglang:e2e_\w+_count{.*priority="([^"]+)"', page)))

    before = num_priorities()
    for length in (10, 20):
        ask = completion(length)
        assert httpx.post(door.url + ask.path, json=ask.body, timeout=60).is_success

    wait_until(lambda: num_priorities() == before + 2, "metrics of two priorities", 60)


def test_its_own_direction_is_found_and_its_preemption_is_named(sglang: Engines, ranker: Path):
    """Larger values first is SGLang's default, and that it throws running requests out."""
    default = sglang(*BY_PRIORITY)
    with gateway(default, ranker) as door:
        wait_until(lambda: state(door) == "sglang", "word of the engine", 60)
        [warning] = warnings(door)
        report = diagnose(DoctorOptions(endpoint=door.url, watch_s=0))
    with gateway(default, ranker, "--engine", "sglang-low-first") as door:
        wait_until(lambda: len(warnings(door)) == 2, "two warnings", 60)
        reversed_order = warnings(door)[0]

    assert "--disable-priority-preemption" in warning
    assert [it.verdict for it in report.findings if it.name == "engine"] == [PROBLEM]
    assert "REVERSED" in reversed_order


@pytest.mark.parametrize("stream", [False, True])
def test_what_it_refuses_no_client_sees(sglang: Engines, ranker: Path, stream: bool):
    """Without priority scheduling it can be told to refuse each priority with a 503."""
    refusing = sglang("--abort-on-priority-when-disabled")
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2, "stream": stream}
    with gateway(refusing, ranker, "--engine", "sglang-low-first") as door:
        url = f"{door.url}/v1/completions"
        own = httpx.post(f"{refusing.url}/v1/completions", json=body | {"priority": 7}, timeout=60)
        answers = [httpx.post(url, json=body, timeout=60) for _ in range(3)]
        refusals = door.metric("pars_priority_refusals_total")

    assert "priority is disabled" in own.text
    assert [answer.status_code for answer in answers] == [200] * 3
    assert not any("error" in answer.text for answer in answers)
    assert refusals == 1


def test_without_priority_scheduling_it_gets_none(sglang: Engines, ranker: Path):
    """Asked what it is, it says so: nothing is refused, and the operator is told."""
    refusing = sglang("--abort-on-priority-when-disabled")
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2, "priority": 7}
    with gateway(refusing, ranker) as door:
        wait_until(lambda: state(door) == "none", "word of the engine", 60)
        answer = httpx.post(f"{door.url}/v1/completions", json=body, timeout=60)
        told = warnings(door)
        refusals = door.metric("pars_priority_refusals_total")

    assert (answer.status_code, refusals) == (200, 0)
    assert "--enable-priority-scheduling" in told[0]


def test_it_tells_its_slots(engine: Engine, ranker: Path):
    """Where its requests are held here: one of --max-running-requests."""
    with gateway(engine, ranker, "--hold", "on") as door:

        def held() -> dict[str, object]:
            return dict(httpx.get(f"{door.url}/pars/now").json()["held"])

        wait_until(lambda: held()["slots"] == 1, "word of the slots", 60)
        assert held()["slots_by"] == "the engine"
