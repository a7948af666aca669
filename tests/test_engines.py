"""What an engine's pages tell, and what is made of it when several tell different things."""

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pars.outcomes.metrics import ServeMetrics
from pars.scheduling.engines import (
    ENGINES,
    FOREIGN,
    EngineTold,
    common,
    contradictions,
    told_by_server_info,
    told_by_version,
    vllm_slots,
)
from pars.serving.known_engine import (
    LEAST_ANSWERS,
    MOST_FRUITLESS,
    MOST_MISSES,
    NOT_KNOWN,
    TRIED_AGAIN_S,
    KnownEngine,
)

NUM_RUN = "effective_max_running_requests_per_dp"
ALICE, BOB = frozenset((b"alice",)), frozenset((b"bob",))
NONE = ENGINES["none"]
GOOD: dict[str, Any] = {
    "version": "0.5.23",
    "enable_priority_scheduling": True,
    "schedule_low_priority_values_first": True,
    "disable_priority_preemption": True,
    "priority_scheduling_preemption_threshold": 10,
    "schedule_policy": "fcfs",
}


def vllm(version: str) -> EngineTold:
    told = told_by_version({"version": version})
    assert told is not None
    return told


def sglang(**changed: Any) -> EngineTold:
    told = told_by_server_info(GOOD | changed)
    assert told is not None
    return told


@pytest.mark.parametrize(
    ("version", "engine"),
    [("0.32.0", "vllm"), ("0.28.0rc1", "vllm"), ("0.27.1", "vllm-body"), ("0.1.dev7", "vllm")],
)
def test_vllm_is_known_by_its_version(version: str, engine: str) -> None:
    """The header came with 0.28; a build from source counts as new."""
    assert vllm(version).engine is ENGINES[engine]
    assert told_by_version({"detail": "Not Found"}) is None


def test_an_sglang_that_orders_by_priority_needs_no_change() -> None:
    """Both ways round are taken as they are, and said."""
    low, high = sglang(), sglang(schedule_low_priority_values_first=False)

    assert (low.engine.name, high.engine.name) == ("sglang-low-first", "sglang")
    assert "smaller first" in low.line
    assert "larger first" in high.line
    assert low.warnings == high.warnings == ()
    assert told_by_server_info({"version": "x"}) is None


@pytest.mark.parametrize(
    ("page", "slots"),
    [
        ({"max_running_requests": 4}, 4),
        ({"max_running_requests": None}, None),
        ({"max_running_requests": 64, "internal_states": [{NUM_RUN: 48}, {NUM_RUN: 40}]}, 88),
        ({"max_running_requests": 4, "internal_states": [{}]}, 4),
        ({"max_running_requests": True}, None),
    ],
)
def test_an_sglang_tells_how_many_it_answers_at_most(page: dict, slots: int | None) -> None:
    """What each of its schedulers came to counts before what it was started with."""
    told = sglang(**page)

    assert (told.most_slots, told.slots) == (slots, None)


@pytest.mark.parametrize(
    ("config", "slots"),
    [
        ({"scheduler_config": {"max_num_seqs": 256}}, 256),
        (
            {
                "scheduler_config": {"max_num_seqs": 256},
                "parallel_config": {"data_parallel_size": 4},
            },
            1024,
        ),
        ("SchedulerConfig(max_num_seqs=256)", None),
        ({"scheduler_config": {"max_num_seqs": "256"}}, None),
        ({}, None),
    ],
)
def test_a_vllm_in_its_development_mode_tells_its_max_num_seqs(
    config: object, slots: int | None
) -> None:
    """Of each engine behind one port; what is not understood tells nothing."""
    assert vllm_slots({"vllm_config": config}) == slots


@pytest.mark.parametrize(
    ("changed", "warned"),
    [
        ({"disable_priority_preemption": False}, "--disable-priority-preemption"),
        ({"enable_metrics": True, "default_priority_value": None}, "without --enable-metrics"),
        ({"schedule_policy": "lpm"}, "--schedule-policy lpm does not look at priorities"),
        ({"enable_priority_scheduling": False}, "--enable-priority-scheduling"),
    ],
)
def test_what_is_to_be_changed_in_sglang_is_said_with_how(
    changed: dict[str, Any], warned: str
) -> None:
    """Preemption, metrics for each priority, a policy without any, and no priorities at all."""
    [warning] = sglang(**changed).warnings

    assert warned in warning


def test_preemption_beyond_all_our_priorities_is_no_preemption() -> None:
    """A threshold of 10**12 microseconds is never reached; an older SGLang has no such field."""
    far = {"disable_priority_preemption": False, "priority_scheduling_preemption_threshold": 10**12}
    old = {name: value for name, value in GOOD.items() if "preemption" not in name}

    assert sglang(**far).warnings == ()
    told = told_by_server_info(old)
    assert told is not None
    assert told.warnings == ()


def test_a_wrong_name_for_an_engine_is_contradicted() -> None:
    """A reversed order, a header that nobody reads, and an engine that takes no priority."""
    low, high = sglang(), sglang(schedule_low_priority_values_first=False)
    off = sglang(enable_priority_scheduling=False)

    assert "REVERSED" in contradictions(ENGINES["sglang"], low)[0]
    assert "REVERSED" in contradictions(ENGINES["sglang-low-first"], high)[0]
    assert "REVERSED" in contradictions(ENGINES["vllm"], high)[0]
    assert "no header" in contradictions(ENGINES["vllm"], vllm("0.20.0"))[0]
    assert "WITHOUT" in contradictions(ENGINES["sglang"], off)[0]


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("sglang-low-first", sglang()),
        ("vllm-body", vllm("0.32.0")),
        ("vllm-body", sglang()),
        ("none", sglang()),
        ("vllm", FOREIGN),
    ],
)
def test_a_name_that_works_is_not_contradicted(named: str, told: EngineTold) -> None:
    """Several names suit one engine, and who says nothing contradicts nothing."""
    assert contradictions(ENGINES[named], told) == []


def test_several_servers_get_what_all_of_them_read() -> None:
    """Two releases of vLLM read the body; two ways round have nothing in common."""
    high = sglang(schedule_low_priority_values_first=False)

    assert common([vllm("0.28.0"), vllm("0.32.0")]).engine.name == "vllm"
    assert common([vllm("0.32.0"), vllm("0.20.0")]).engine.name == "vllm-body"
    assert common([vllm("0.32.0"), sglang()]).engine.name == "vllm-body"
    assert common([sglang(), high]).engine is NONE
    assert "different ways" in common([sglang(), high]).warnings[-1]


def test_a_foreign_answer_among_others_is_none_of_theirs() -> None:
    """A load balancer's 404 while servers start says nothing about them."""
    assert common([FOREIGN, vllm("0.32.0"), FOREIGN]).engine.name == "vllm"
    assert common([FOREIGN]).engine is NONE


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def known_engine(named: str | None = None, clock: Clock | None = None) -> KnownEngine:
    metrics = ServeMetrics(CollectorRegistry())
    return KnownEngine(ENGINES[named] if named else None, metrics, clock=clock or Clock())


def test_an_engine_that_is_not_known_gets_no_priority() -> None:
    """From the first answer on it does, until nobody listens there any more."""
    known = known_engine()
    assert (known.engine, known.state) == (NONE, NOT_KNOWN)

    known.hear(vllm("0.32.0"))
    assert (known.engine.name, known.state) == ("vllm", "vllm")

    known.lose()
    assert (known.engine, known.state) == (NONE, NOT_KNOWN)


def test_an_update_is_taken_once_the_old_one_is_gone() -> None:
    """Until then both may be there, and get what both read."""
    known = known_engine()
    for _ in range(LEAST_ANSWERS):
        known.hear(vllm("0.32.0"))
    assert known.is_settled

    known.hear(vllm("0.20.0"))
    assert not known.is_settled
    assert known.engine.name == "vllm-body"
    for _ in range(MOST_MISSES):
        known.hear(sglang())
    known.hear(sglang())

    assert known.engine.name == "sglang-low-first"
    assert known.is_settled


def test_servers_that_answer_by_turns_are_known_as_several_for_good() -> None:
    """Also when one was unseen for so long that it seemed gone."""
    known = known_engine()
    for _ in range(3):
        for told in [vllm("0.32.0")] * (MOST_MISSES + 1) + [vllm("0.20.0")]:
            known.hear(told)
    for _ in range(MOST_MISSES + 1):
        known.hear(vllm("0.32.0"))

    assert known.engine.name == "vllm-body"
    assert known.is_settled


def test_a_refusal_counts_until_an_update_or_ten_minutes() -> None:
    """Then the engine may have been started anew, and is tried again."""
    clock = Clock()
    known = known_engine(clock=clock)
    known.hear(vllm("0.9.2"))
    known.refuse(400, ALICE, says_so=True)
    assert (known.engine, known.state) == (NONE, "refuses priorities")

    known.hear(vllm("0.9.2"))
    assert known.refuses
    known.hear(vllm("0.10.0"))
    assert known.engine.name == "vllm-body"

    known.refuse(400, ALICE, says_so=True)
    clock.now_s += TRIED_AGAIN_S
    assert known.engine.name == "vllm-body"


def test_no_caller_alone_has_an_engine_taken_for_one_that_refuses() -> None:
    """Its own word is the engine's in disguise; a second caller without a common key is not."""
    known = known_engine("vllm-body")
    for _ in range(20):
        known.refuse(500, ALICE, says_so=False)
        known.refuse(500, ALICE | BOB, says_so=False)
    assert not known.refuses

    known.refuse(500, BOB, says_so=False)
    assert known.refuses


def test_an_engine_that_answered_a_priority_is_not_taken_for_one_that_refuses() -> None:
    """Neither before the answer nor after it, whoever says so."""
    known = known_engine("vllm-body")
    known.refuse(400, ALICE, says_so=True)
    known.accept(200)
    assert not known.refuses

    known.refuse(400, ALICE, says_so=True)
    known.refuse(400, BOB, says_so=True)
    assert not known.refuses


def test_a_client_that_fails_anyway_proves_nothing_for_the_engine() -> None:
    """After its eight faults an engine that says that it refuses is believed all the same."""
    known = known_engine("vllm-body")
    for _ in range(MOST_FRUITLESS):
        known.fail_alike()
    known.suspect()
    assert known.is_suspect

    known.refuse(400, ALICE, says_so=True)
    assert known.refuses


def test_what_an_engine_refuses_does_not_outlive_its_end() -> None:
    """Nor does what it accepted: what comes back may be another."""
    known = known_engine("vllm-body")
    known.refuse(400, ALICE, says_so=True)
    known.accept(200)
    known.lose()

    assert not known.refuses
    assert not known.is_proven


def test_an_engine_is_doubted_until_it_took_a_priority_or_fails_anyway() -> None:
    """A server that answers 500 to everything is not asked everything twice for ever."""
    known = known_engine("vllm-body")
    known.accept(429)
    for _ in range(MOST_FRUITLESS):
        assert not known.is_proven
        known.fail_alike()

    assert known.is_proven


def test_each_warning_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """And what is named by the operator is taken so, and contradicted."""
    caplog.set_level(logging.INFO)
    known = known_engine("sglang")
    for _ in range(3):
        known.hear(sglang(disable_priority_preemption=False))

    assert known.engine.name == "sglang"
    assert len(known.warnings) == len(caplog.messages) == 2
    assert "REVERSED" in caplog.messages[0]
