"""In a real vLLM's own process, the middleware orders the queue and is otherwise not there."""

import random
from pathlib import Path

import httpx
import pytest

from doors import (
    PATIENT,
    SPOOFED,
    Door,
    anothers_tokenizer,
    answers_during,
    chat,
    completion,
    leave_after_the_first_piece,
    leave_while_waiting,
    order_of_admission,
    order_of_flood,
    replaced,
    text_of,
    word_ranker,
)

from engine import Engines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
MIDDLEWARE = ("--middleware", "pars.middleware.PriorityMiddleware")
PRIORITY = ("--scheduling-policy", "priority", *MIDDLEWARE)
WINDOW_S = 15.0  # a busy machine may stand still for some seconds


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_ranker(tmp_path_factory.mktemp("words") / "ranker")


@pytest.fixture(scope="module")
def shortest_first(vllm: Engines, ranker: Path) -> Door:
    """vLLM with the middleware and without aging, so that the score alone decides."""
    engine = vllm(*PRIORITY, **PATIENT, PARS_RANKER=str(ranker), PARS_MAX_OVERTAKE_S="inf")
    return Door(engine.url, engine)


@pytest.fixture(scope="module")
def aging(vllm: Engines, ranker: Path) -> Door:
    """vLLM with the middleware in two API processes, and a short window of overtaking."""
    aged = {"PARS_RANKER": str(ranker), "PARS_MAX_OVERTAKE_S": str(WINDOW_S)}
    engine = vllm(*PRIORITY, "--api-server-count", "2", **PATIENT, **aged)
    return Door(engine.url, engine)


@pytest.fixture(scope="module")
def first_come_first_served(vllm: Engines, ranker: Path) -> Door:
    """vLLM with the middleware, started without `--scheduling-policy priority`."""
    engine = vllm(*MIDDLEWARE, **PATIENT, PARS_RANKER=str(ranker))
    return Door(engine.url, engine)


def test_the_queue_follows_the_score(shortest_first: Door):
    """Twelve waiting requests begin in the order of their expected lengths."""
    lengths = random.Random(0).sample(range(10, 1000, 10), 12)
    num_scored = shortest_first.decisions("scored")

    order = order_of_admission(shortest_first, [completion(length) for length in lengths])

    assert order == [f"completion {length}" for length in sorted(lengths)]
    assert shortest_first.decisions("scored") == num_scored + 12 + 1  # one held the slot


def test_chats_and_several_answers_are_ordered_alike(shortest_first: Door):
    """Two answers of 150 tokens cost 300; a chat counts by its last message."""
    asks = [chat(400), completion(150, n=2), chat(250), completion(200)]

    order = order_of_admission(shortest_first, asks)

    assert order == ["completion 200", "chat 250", "completion 150", "chat 400"]


def test_a_spoofed_priority_changes_nothing(shortest_first: Door):
    """Clients that name the best priority, in header and body, wait like everybody else."""
    headers = {"X-Vllm-Priority": SPOOFED, "X-Pars-Offset-S": "-1000000"}
    spoofing = {"headers": headers, "priority": int(SPOOFED)}
    asks = [completion(900, **spoofing), completion(300), completion(600, **spoofing)]

    order = order_of_admission(shortest_first, asks)

    assert order == ["completion 300", "completion 600", "completion 900"]


def test_a_stream_comes_piece_by_piece(shortest_first: Door):
    """Twenty tokens are events with a character for each, and the end mark."""
    body = completion(10, max_tokens=20, stream=True).body
    url = f"{shortest_first.url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        *events, end = [line for line in answer.iter_lines() if line]

    assert end == "data: [DONE]"
    assert len("".join(map(text_of, events))) == 20


def test_a_client_that_leaves_frees_its_slot(shortest_first: Door):
    """A stream left after its first piece ends in the engine, and is not counted as answered."""
    engine = shortest_first.engine
    num_done = engine.metric("vllm:request_success_total")

    assert len(leave_after_the_first_piece(shortest_first)) == 1

    engine.wait_for(running=0)
    assert engine.metric("vllm:request_success_total") == num_done


def test_a_client_that_leaves_gives_up_its_place_in_the_queue(shortest_first: Door):
    """A waiting request whose client is gone is dropped before it ever runs."""
    engine = shortest_first.engine
    num_done = engine.metric("vllm:request_success_total")

    with engine.held():
        leave_while_waiting(shortest_first)
        engine.wait_for(waiting=0)
        assert engine.metric("vllm:request_success_total") == num_done


def test_without_aging_a_long_request_starves(shortest_first: Door):
    """In a flood of short requests the long one begins after every one of them."""
    order = order_of_flood(shortest_first, window_s=0.0)

    assert order[-1] == "long"


def test_with_aging_a_long_request_is_overtaken_within_its_bound_only(aging: Door):
    """Short requests that come at once overtake it, none that comes after the window does."""
    order = order_of_flood(aging, WINDOW_S)

    assert order.index("early") < order.index("long") < order.index("late")


def test_a_scorer_that_dies_in_mid_flood_loses_no_request(shortest_first: Door, ranker: Path):
    """While it raises, requests go on unscored; put right, it scores again."""

    def story():
        shortest_first.wait_for_decisions(10, "scored")
        with anothers_tokenizer(ranker):
            shortest_first.wait_for_decisions(20, "scorer_failed")
        shortest_first.wait_for_decisions(10, "scored")

    answers = answers_during(shortest_first, story)

    assert len(answers) >= 40
    assert set(answers) == {4}


def test_a_ranker_damaged_on_disk_leaves_the_one_before_it(shortest_first: Door, ranker: Path):
    """The damage is counted, and every request is still scored and answered."""
    failed_before = shortest_first.decisions("scorer_failed")
    loads = "pars_ranker_loads_total"
    num_damaged = shortest_first.metric(loads, result="failed")

    def story():
        with replaced(ranker / "model.onnx", "not a graph"):
            shortest_first.wait_for(num_damaged + 1, loads, result="failed")
            shortest_first.wait_for_decisions(20, "scored")

    answers = answers_during(shortest_first, story)

    assert set(answers) == {4}
    assert shortest_first.decisions("scorer_failed") == failed_before


def test_vllm_with_priorities_is_recognized(shortest_first: Door):
    """Started with `--scheduling-policy priority`, gauge and log say so."""
    assert shortest_first.metric("pars_engine_schedules_by_priority") == 1
    log = shortest_first.engine.log.read_text(errors="replace")
    assert "vLLM schedules by priority" in log


def test_vllm_without_priorities_is_told_clearly(first_come_first_served: Door):
    """Log and gauge say that the priorities are ignored, which the order then shows."""
    asks = [completion(900), completion(100), completion(500)]

    order = order_of_admission(first_come_first_served, asks, in_turn=True)

    assert order == ["completion 900", "completion 100", "completion 500"]
    assert first_come_first_served.metric("pars_engine_schedules_by_priority") == 0
    log = first_come_first_served.engine.log.read_text(errors="replace")
    assert "--scheduling-policy fcfs and IGNORES every priority" in log


def test_what_vllm_refuses_is_refused_in_its_own_words(shortest_first: Door):
    """A body that is no JSON, and a model that is not there, get vLLM's 400 and 404."""
    url = f"{shortest_first.url}/v1/completions"
    headers = {"content-type": "application/json"}

    broken = httpx.post(url, content=b'{"model": ', headers=headers)
    absent = httpx.post(url, json={"model": "absent", "prompt": "words10"})

    assert broken.status_code == 400
    assert absent.status_code == 404
    assert "The model `absent` does not exist" in absent.json()["error"]["message"]
