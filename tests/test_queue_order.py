"""Whether an engine goes by priority is seen from who begins before whom."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from gateways import counted, gateway_to
from pars.doctor.doctor import DoctorOptions, diagnose
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.queue_order import (
    JUDGE_EVERY,
    LEAST_CONTESTS,
    LEAST_REQUESTS,
    Contests,
    OrderJudge,
    Waited,
    contests_of,
)
from pars.outcomes.records import Outcome
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.step_time import EnginePreset
from pars.prove.engine.stepping import EngineLimits

from fake_engine import FakeEngine
from serving import eventually

POLICY = "pars_engine_schedules_by_priority"


def waited(
    arrival_s: float, begin_s: float, key: int, *, model: str = "m", answer_s: float = 1.0
) -> Waited:
    return Waited(model, key, 10, arrival_s, begin_s, begin_s + answer_s)


def answered(**fields: object) -> Outcome:
    """A stream of ten tokens that waited three seconds, two of them before the engine."""
    known = {"path": "/v1/completions", "decision": "scored", "key": 1, "status": 200}
    known |= {"arrival_s": 10.0, "wait_s": 3.0, "engine_wait_s": 2.0, "total_s": 4.0}
    known |= {"answer_tokens": 10, "prompt_tokens": 7}
    return Outcome(**(known | fields))  # type: ignore[arg-type]


def test_a_contest_is_won_by_the_later_one_that_begins_first() -> None:
    """The long one waits from 0 to 5; of two short ones at 1 and 2, one begins before it."""
    long = waited(0, 5, 9)

    contests = contests_of([long, waited(1, 3, 1), waited(2, 6, 2)])
    assert (contests.num, contests.num_won) == (2, 1)
    contests = contests_of([waited(2, 6, 2), long])
    assert (contests.num, contests.num_won) == (1, 0)


@pytest.mark.parametrize(
    "other",
    [
        waited(1, 6, 10),  # is to go later anyway
        waited(6, 7, 1),  # came when the long one had begun
        waited(1, 5.01, 1),  # began with it, in one step of the engine
        waited(1, 3, 1, model="n"),  # stands in another queue
    ],
)
def test_what_shows_no_order_is_no_contest(other: Waited) -> None:
    """Nothing follows from it for the engine."""
    assert contests_of([waited(0, 5, 9), other]) == Contests()


def test_a_wait_is_the_engines_from_the_moment_it_was_handed_on() -> None:
    """Of three seconds the first one went by in the gateway."""
    assert Waited.of(answered()) == Waited(None, 1, 7, 11.0, 13.0, 14.0)


def test_a_prompt_that_the_engine_did_not_count_is_as_long_as_its_text_shows() -> None:
    """A stream without usage tells no count."""
    uncounted = answered(prompt_tokens=None, seen_prompt_tokens=8.0)

    assert Waited.of(uncounted) == Waited(None, 1, 8.0, 11.0, 13.0, 14.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"key": None},  # had no priority
        {"total_s": 3.001},  # came in one piece: when it began is not known
        {"status": 404},
        {"status": 503, "answer_tokens": None},
        {"answer_tokens": 0},
        {"engine_wait_s": None},  # this process was too busy to see it
    ],
)
def test_an_error_or_an_answer_in_one_piece_shows_no_wait(fields: dict[str, object]) -> None:
    """However long it took."""
    assert Waited.of(answered(**fields)) is None


def test_a_contest_is_sure_where_both_were_queued_while_the_engine_was_full() -> None:
    """One slot, which "first" has till 4: two wait for it from 0 and 1, in vain the second one."""
    first, long, short = waited(0, 0.1, 0, answer_s=3.9), waited(0, 4, 9), waited(1, 5, 1)

    assert contests_of([first, long, short]) == Contests(1, 0, 1, 0, 1, 1.0)
    assert contests_of([first, waited(0, 5, 9), waited(1, 4, 1)]) == Contests(1, 1, 1, 1, 1, 1.0)
    # Two run later on: by what is seen the engine had room for a second one at 4.
    beside = waited(6, 6.1, 0), waited(6, 6.1, 0)
    assert contests_of([first, long, short, *beside]) == Contests(1, 0)
    # A prompt that takes as long by itself waited for nobody.
    contests = contests_of([Waited("m", 9, 10**6, 0, 4, 5), first, short])
    assert contests == Contests(1, 0)


def test_a_verdict_needs_contests_and_a_clear_picture() -> None:
    """Four fifths won; or none of many that are sure."""
    assert Contests(LEAST_CONTESTS - 1, 40).obeys is None
    assert Contests(100, 90).obeys is True
    assert Contests(1000, 100, 100, 90, LEAST_REQUESTS).obeys is True
    assert Contests(100, 50).obeys is None
    assert Contests(100, 0).obeys is None
    assert Contests(100, 0, 100, 0, LEAST_REQUESTS).obeys is False
    assert Contests(100, 0, 100, 0, LEAST_REQUESTS - 1).obeys is None
    assert Contests(100, 10, 100, 10, LEAST_REQUESTS).obeys is None


def test_twenty_requests_are_enough_before_an_engine_of_four_slots() -> None:
    """Which they fill five times; nineteen are not, nor twenty of five slots."""
    assert Contests(100, 0, 100, 0, 20, 20 / 4).obeys is False
    assert Contests(100, 0, 100, 0, 20, 20 / 5).obeys is None
    assert Contests(100, 0, 100, 0, 19, 19 / 1).obeys is None


def simulated(
    policy: str, *, slots: int, frontend_s: float, seed: int, share_long: float = 0.0
) -> list[Waited]:
    """
    400 streams within a third of a second before vLLM's scheduler on an H100, as they end.

    Args:
        frontend_s: For which a server reads each of them, one after another, before it is queued.
        share_long: Of prompts with some ten thousand tokens.
    """
    random = np.random.default_rng(seed)
    sent_s = np.sort(random.random(400)) / 3
    joined_s = frontend_s * np.arange(1, 401) + np.maximum.accumulate(
        sent_s - frontend_s * np.arange(400)
    )
    prompt = random.lognormal(4.5, 1.0, 400).clip(1, 4000).astype(int)
    prompt[random.random(400) < share_long] = 20_000
    output = random.lognormal(4.5, 1.0, 400).clip(1, 1000).astype(int)
    keys = (1e4 * sent_s + 1e3 * output * random.lognormal(0, 0.7, 400)).astype(int)
    limits = EngineLimits(max_num_seqs=slots, scheduling_policy=policy, num_blocks=60_000)
    engine, step_time = FastEngine(limits), EnginePreset.named("h100-8b").step_time
    now_s, num_added = 0.0, 0
    begin_s: dict[int, float] = {}
    reading: set[int] = set()
    waits = []
    while num_added < 400 or engine.has_work:
        if not engine.has_work:
            now_s = max(now_s, joined_s[num_added])
        while num_added < 400 and joined_s[num_added] <= now_s:
            at = num_added
            engine.add(f"{at}", int(prompt[at]), int(output[at]), int(keys[at]), joined_s[at])
            num_added += 1
        step = engine.step()
        now_s += step_time.of(step)
        reading.update(map(int, step.admitted))
        begun = {at for at in reading if engine.num_output_tokens(f"{at}")}
        begun |= reading & set(map(int, step.finished))
        begin_s |= dict.fromkeys(begun, now_s)
        reading -= begun
        for at in map(int, step.finished):
            size, key = float(prompt[at]), int(keys[at])
            waits.append(Waited("m", key, size, sent_s[at], begin_s[at], now_s))
    return waits


def verdicts(waits: list[Waited]) -> Iterator[bool | None]:
    """What a judge says as they end."""
    judge = OrderJudge(ServeMetrics(CollectorRegistry()))
    for num in range(JUDGE_EVERY, len(waits) + 1, JUDGE_EVERY):
        now_s = waits[num - 1].end_s
        running = [(it.model, it.begin_s) for it in waits[num:] if it.begin_s <= now_s]
        judge.take(contests_of(waits[:num], running))
        yield judge.obeys


@pytest.mark.parametrize("frontend_s", [0.0, 0.005])
@pytest.mark.parametrize("slots", [4, 32, 256])
def test_a_burst_of_400_streams_blames_only_an_engine_that_ignores_priorities(
    slots: int, frontend_s: float
) -> None:
    """It is never said of one that obeys; of one that does not before the burst is over."""
    for seed in (0, 1):
        how = {"slots": slots, "frontend_s": frontend_s, "seed": seed, "share_long": seed / 50}
        assert False not in verdicts(simulated("priority", **how))
        assert set(verdicts(simulated("fcfs", **how))) == {None, False}


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_a_burst_that_fits_into_the_engine_blames_nobody(policy: str) -> None:
    """They begin in the order of arrival, since none of them is ever queued."""
    for seed in (0, 1):
        waits = simulated(policy, slots=512, frontend_s=0.005, seed=seed)
        assert False not in verdicts(waits)


def test_another_engine_is_judged_anew() -> None:
    """What the one before it did says nothing about it."""
    registry = CollectorRegistry()
    judge = OrderJudge(ServeMetrics(registry))
    nothing_won = Contests(100, 0, 100, 0, LEAST_REQUESTS)
    judge.take(nothing_won)
    assert judge.obeys is None, "once may be chance"
    judge.take(nothing_won)
    assert (judge.obeys, registry.get_sample_value(POLICY)) == (False, 0)

    judge.start_afresh()

    assert (judge.obeys, registry.get_sample_value(POLICY)) == (None, -1)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_gateway_sees_by_itself_what_its_engine_does(
    tmp_path: Path, obeys: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen clients before one slot: log, metric, health page and doctor say it."""
    engine = FakeEngine(num_slots=1, token_s=0.004, obeys_priority=obeys)
    is_seen = threading.Event()

    def ask(url: str, number: int) -> None:
        body = {"prompt": "x" * (1000 if number % 2 else 1), "stream": True, "user": str(number)}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).is_success

    def keep_asking(url: str, client: int) -> None:
        for number in itertools.count(client):
            if is_seen.is_set():
                return
            ask(url, number)

    with engine.served() as up, gateway_to(up, tmp_path) as (url, app):
        for number in range(6):  # each alone, so that it is seen how long a prompt is read
            ask(url, number)
        threads = [threading.Thread(target=keep_asking, args=(url, it)) for it in range(16)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: counted(app, POLICY) == float(obeys), within_s=60)
        finally:
            is_seen.set()
        for thread in threads:
            thread.join()
        health = httpx.get(f"{url}/pars/health").json()
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    assert health["schedules_by_priority"] is obeys
    assert any("IGNORES priorities" in message for message in caplog.messages) is not obeys
    assert report.exit_code == int(not obeys)
    assert ("the engine ignores priorities" in report.summary) is not obeys
