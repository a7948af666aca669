"""Whether an engine goes by priority is seen from who begins before whom."""

import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateways import connect, counted, gateway_to, post
from pars.doctor.doctor import DoctorOptions, diagnose
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.queue_order import LEAST_CONTESTS, Contests, OrderJudge, contests_of
from pars.outcomes.records import Outcome

from fake_engine import FakeEngine
from serving import eventually

POLICY = "pars_engine_schedules_by_priority"


def waited(
    arrival_s: float, begin_s: float, key: int | None, *, model: str = "m", total_s: float = 1.0
) -> Outcome:
    wait_s = begin_s - arrival_s
    return Outcome(
        arrival_s=arrival_s,
        path="/v1/completions",
        decision="scored",
        model=model,
        key=key,
        answer_tokens=10,
        wait_s=wait_s,
        total_s=wait_s + total_s,
    )


def test_a_contest_is_won_by_the_later_one_that_begins_first() -> None:
    """The long one waits from 0 to 5; of two short ones at 1 and 2, one begins before it."""
    long = waited(0, 5, 9)

    assert contests_of([long, waited(1, 3, 1), waited(2, 6, 2)]) == Contests(2, 1)
    assert contests_of([waited(2, 6, 2), long]) == Contests(1, 0)


@pytest.mark.parametrize(
    "other",
    [
        waited(1, 6, 10),  # is to go later anyway
        waited(6, 7, 1),  # came when the long one had begun
        waited(1, 5.01, 1),  # began with it, in one step of the engine
        waited(1, 3, 1, model="n"),  # stands in another queue
        waited(1, 3, None),  # had no priority
        waited(1, 3, 1, total_s=0.001),  # came in one piece: when it began is not known
    ],
)
def test_what_shows_no_order_is_no_contest(other: Outcome) -> None:
    """Nothing follows from it for the engine."""
    assert contests_of([waited(0, 5, 9), other]) == Contests()


def test_a_verdict_needs_contests_and_a_clear_picture() -> None:
    """Four fifths won, or hardly one."""
    assert Contests(LEAST_CONTESTS - 1, 0).obeys is None
    assert Contests(100, 90).obeys is True
    assert Contests(100, 10).obeys is False
    assert Contests(100, 50).obeys is None


def test_another_engine_is_judged_anew() -> None:
    """What the one before it did says nothing about it."""
    registry = CollectorRegistry()
    judge = OrderJudge(ServeMetrics(registry))
    judge.take(Contests(100, 0))
    assert (judge.obeys, registry.get_sample_value(POLICY)) == (False, 0)

    judge.start_afresh()

    assert (judge.obeys, registry.get_sample_value(POLICY)) == (None, -1)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_gateway_sees_by_itself_what_its_engine_does(
    tmp_path: Path, obeys: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixty requests that wait for one slot: log, metric, health page and doctor say it."""
    engine = FakeEngine(num_slots=1, token_s=0.004, obeys_priority=obeys)

    def ask(url: str, number: int) -> None:
        prompt = "x" * (1000 if number % 2 else 1)
        body = {"prompt": prompt, "stream": True, "max_tokens": None, "user": str(number)}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).is_success

    with engine.served() as up, gateway_to(up, tmp_path) as (url, app):
        holder = connect(url)
        holder.sendall(post("/v1/completions", b'{"prompt":"x","max_tokens":99999,"stream":true}'))
        eventually(lambda: engine.num_running == 1)
        threads = []
        for number in range(60):
            threads.append(threading.Thread(target=ask, args=(url, number)))
            threads[-1].start()
            eventually(lambda: engine.num_waiting == len(threads))
        holder.close()
        for thread in threads:
            thread.join()
        eventually(lambda: counted(app, POLICY) == float(obeys))
        health = httpx.get(f"{url}/pars/health").json()
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    assert health["schedules_by_priority"] is obeys
    assert any("IGNORES priorities" in message for message in caplog.messages) is not obeys
    assert report.exit_code == int(not obeys)
    assert ("the engine ignores priorities" in report.summary) is not obeys
