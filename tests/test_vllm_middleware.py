"""In a real vLLM's own process, the middleware orders the queue and is otherwise not there."""

import asyncio
import random
import time
from pathlib import Path

import httpx
import pytest

from doors import (
    DEADLINE_S,
    PATIENT,
    SPOOFED,
    Ask,
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
from pars.outcomes.records import Outcome, read_outcomes

from engine import MODEL, Engines, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
MIDDLEWARE = ("--middleware", "pars.middleware.PriorityMiddleware")
PRIORITY = ("--scheduling-policy", "priority", *MIDDLEWARE)
WINDOW_S = 15.0  # a busy machine may stand still for some seconds


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_ranker(tmp_path_factory.mktemp("words") / "ranker")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outcomes")


@pytest.fixture(scope="module")
def shortest_first(vllm: Engines, ranker: Path, outcomes: Path) -> Door:
    """vLLM with the middleware and without aging, so that the score alone decides."""
    kept = {"PARS_RANKER": str(ranker), "PARS_OUTCOMES": str(outcomes)}
    engine = vllm(*PRIORITY, **PATIENT, **kept, PARS_MAX_OVERTAKE_S="inf")
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

    assert leave_after_the_first_piece(shortest_first)

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


def outcome_with(folder: Path, max_tokens: int, since_s: float = 0.0) -> Outcome:
    """The outcome of the one request that had this limit, once it is written."""
    found: list[Outcome] = []

    def is_there() -> bool:
        outcomes = [it for it in read_outcomes(folder).outcomes if it.arrival_s >= since_s]
        found[:] = [outcome for outcome in outcomes if outcome.max_tokens == max_tokens]
        return bool(found)

    wait_until(is_there, f"outcome with max_tokens {max_tokens}", DEADLINE_S)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("ask", "num_answers"),
    [
        (completion(300, max_tokens=21, stream=True), 1),
        (completion(300, max_tokens=22, n=2), 2),
        (chat(300, max_tokens=23, stream=True, n=2), 2),
        (Ask("messages", "/v1/messages", {**chat(300, max_tokens=24, stream=True).body}), 1),
        (
            Ask(
                "responses",
                "/v1/responses",
                {"model": MODEL, "input": "words300", "max_output_tokens": 25, "stream": True},
            ),
            1,
        ),
    ],
    ids=["stream without usage", "two answers", "chat", "messages", "responses"],
)
def test_outcomes_have_the_engine_s_own_lengths(
    shortest_first: Door, outcomes: Path, ask: Ask, num_answers: int
):
    """vLLM ends an answer at its limit, so the length is known; the client's id is its own."""
    max_tokens = ask.body.get("max_tokens") or ask.body["max_output_tokens"]

    answer = httpx.post(f"{shortest_first.url}{ask.path}", json=ask.body, timeout=60)

    outcome = outcome_with(outcomes, max_tokens)
    assert answer.is_success
    assert (outcome.answer_tokens, outcome.is_exact) == (num_answers * max_tokens, True)
    assert (outcome.score, outcome.expected_tokens) == (pytest.approx(300, rel=0.01),) * 2
    assert (outcome.finish_reason, outcome.status, outcome.path) == ("length", 200, ask.path)
    assert outcome.prompt_tokens is not None
    assert outcome.prompt_tokens > 0


def test_a_client_s_own_request_id_is_kept_and_joined(shortest_first: Door, outcomes: Path):
    """vLLM names its answer by the client's id, and the length comes by it."""
    ask = completion(300, max_tokens=26, stream=True, headers={"X-Request-Id": "mine"})
    by_engine = ("pars_answers_total", {"length": "engine"})
    before = shortest_first.metric(by_engine[0], **by_engine[1])

    answer = httpx.post(
        f"{shortest_first.url}{ask.path}", json=ask.body, headers=ask.headers, timeout=60
    )

    assert '"id":"cmpl-mine"' in answer.text
    assert outcome_with(outcomes, 26).answer_tokens == 26
    assert shortest_first.metric(by_engine[0], **by_engine[1]) == before + 1


def test_an_outcome_tells_how_long_the_request_waited(shortest_first: Door, outcomes: Path):
    """At least as long as it was seen to wait in the engine's queue."""
    ask = completion(300, max_tokens=27)

    async def wait_behind_another() -> float:
        async with httpx.AsyncClient(base_url=shortest_first.url, timeout=60) as client:
            with shortest_first.engine.held():
                asking = asyncio.create_task(client.post(ask.path, json=ask.body))
                await asyncio.to_thread(shortest_first.engine.wait_for, waiting=1)
                began_s = time.monotonic()
                await asyncio.to_thread(shortest_first.engine.wait_for, waiting=1, running=1)
                seen_s = time.monotonic() - began_s
            await asking
        return seen_s

    seen_s = asyncio.run(wait_behind_another())

    outcome = outcome_with(outcomes, 27)
    assert outcome.wait_s is not None
    assert outcome.total_s is not None
    assert seen_s <= outcome.wait_s <= outcome.total_s


def test_a_client_that_left_has_a_lower_bound(shortest_first: Door, outcomes: Path):
    """What came before it left is counted, and the outcome is an abort."""
    began_s = time.time()

    leave_after_the_first_piece(shortest_first)

    outcome = outcome_with(outcomes, 8000, began_s)
    assert outcome.finish_reason == "abort"
    assert outcome.is_censored
    assert outcome.answer_tokens is not None
    assert 1 <= outcome.answer_tokens < 8000


def test_vllm_finds_the_plugin_and_loads_it(shortest_first: Door):
    """Its log names it, and would name a failure."""
    log = shortest_first.engine.log.read_text(errors="replace")
    assert "pars -> pars.outcomes.vllm_stat_logger:StatLogger" in log
    assert "Failed to load plugin" not in log
