"""In front of a real vLLM, `pars gateway` orders its queue and is otherwise not there."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from doors import (
    SPOOFED,
    Door,
    anothers_tokenizer,
    answers_during,
    chat,
    completion,
    gateway,
    leave_after_the_first_piece,
    leave_while_waiting,
    order_of_admission,
    order_of_flood,
    text_of,
    word_ranker,
)

from engine import MODEL, Engine, Engines, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
WINDOW_S = 15.0  # a busy machine may stand still for some seconds


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_ranker(tmp_path_factory.mktemp("words") / "ranker")


@pytest.fixture(scope="module")
def engine(vllm: Engines) -> Engine:
    """A vLLM without pars in it, shared with test_engine.py."""
    return vllm("--scheduling-policy", "priority")


@pytest.fixture(scope="module")
def shortest_first(engine: Engine, ranker: Path) -> Iterator[Door]:
    """A gateway without aging, so that the score alone decides."""
    with gateway(engine, ranker, "--max-overtake-s", "inf", PARS_TRUSTED_SECRET="known") as door:
        yield door


def test_the_queue_follows_the_score(shortest_first: Door):
    """Twelve waiting requests begin in the order of their expected lengths."""
    lengths = random.Random(0).sample(range(10, 1000, 10), 12)
    num_scored = shortest_first.decisions("scored")

    order = order_of_admission(shortest_first, [completion(length) for length in lengths])

    assert order == [f"completion {length}" for length in sorted(lengths)]
    assert shortest_first.decisions("scored") == num_scored + 12


def test_a_priority_in_the_body_orders_as_well(engine: Engine, ranker: Path):
    """As for a vLLM before 0.28, which has no header; chat and several answers too."""
    asks = [chat(400), completion(150, n=2), chat(250), completion(200)]

    options = ("--engine", "vllm-body", "--max-overtake-s", "inf")
    with gateway(engine, ranker, *options) as door:
        order = order_of_admission(door, asks)

    assert order == ["completion 200", "chat 250", "completion 150", "chat 400"]


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


def test_a_trusted_priority_counts(shortest_first: Door):
    """The same header goes first with the operator's secret beside it."""
    headers = {"X-Vllm-Priority": SPOOFED, "X-Pars-Secret": "known"}
    asks = [completion(300), completion(900, headers=headers), completion(600)]

    order = order_of_admission(shortest_first, asks)

    assert order == ["completion 900", "completion 300", "completion 600"]


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


def test_with_aging_a_long_request_is_overtaken_within_its_bound_only(engine: Engine, ranker: Path):
    """Short requests that come at once overtake it, none that comes after the window does."""
    with gateway(engine, ranker, "--max-overtake-s", str(WINDOW_S)) as door:
        order = order_of_flood(door, WINDOW_S)

    assert order.index("early") < order.index("long") < order.index("late")


def test_no_overtaking_is_first_come_first_served(engine: Engine, ranker: Path):
    """With `--max-overtake-s 0` waiting requests begin as they came."""
    asks = [completion(length) for length in (900, 100, 500)]

    with gateway(engine, ranker, "--max-overtake-s", "0") as door:
        order = order_of_admission(door, asks, in_turn=True)

    assert order == ["completion 900", "completion 100", "completion 500"]


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


def test_a_gateway_told_to_stop_lets_a_stream_finish(engine: Engine, ranker: Path):
    """After SIGTERM new connections are refused, and the open stream runs to its end mark."""
    body = completion(10, max_tokens=600, stream=True).body
    with gateway(engine, ranker) as door:
        with httpx.stream("POST", f"{door.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            door.process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_refused(door.url), "refusal of a connection", 60)
            *events, end = [first, *(line for line in lines if line)]
        door.process.wait(60)

    assert end == "data: [DONE]"
    assert len("".join(map(text_of, events))) == 600


def is_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/pars/health")
    except httpx.TransportError:  # a connection reset in the backlog is one, too
        return True
    return False


def test_answers_and_refusals_are_the_engine_s_own(shortest_first: Door):
    """Status and body are the same through the gateway as without it."""
    sent = [
        ("GET", "/v1/models", None),
        ("GET", "/version", None),
        ("GET", "/no/such/page", None),
        ("POST", "/v1/completions", b'{"model": '),
        ("POST", "/v1/completions", b'{"model": "absent", "prompt": "words10"}'),
        ("POST", "/tokenize", b'{"model": "tiny-llama", "prompt": "words10"}'),
    ]
    for method, path, body in sent:
        through, direct = (
            httpx.request(
                method, f"{url}{path}", content=body, headers={"content-type": "application/json"}
            )
            for url in (shortest_first.url, shortest_first.engine.url)
        )
        assert (through.status_code, without_times(through)) == (
            direct.status_code,
            without_times(direct),
        )


def without_times(answer: httpx.Response) -> str:
    """The body but for the moment at which vLLM says it made its list of models."""
    page = answer.json()
    for model in page.get("data", []):
        del model["created"]
        del model["permission"]
    return str(page)


def test_openai_s_client_talks_through_it(shortest_first: Door):
    """Chat, its stream, and an error of the engine reach OpenAI's own client."""
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "words10"}], "max_tokens": 5}
    with openai.OpenAI(base_url=f"{shortest_first.url}/v1", api_key="any") as client:
        whole = client.chat.completions.create(**ask)
        pieces = list(client.chat.completions.create(**ask, stream=True))
        with pytest.raises(openai.NotFoundError, match="The model `absent` does not exist"):
            client.chat.completions.create(**ask | {"model": "absent"})

    assert len(whole.choices[0].message.content) == 5
    assert len("".join(it.choices[0].delta.content or "" for it in pieces)) == 5


def test_probe_says_that_vllm_schedules_by_priority(engine: Engine):
    """`pars gateway --probe` ends well, and leaves the engine idle."""
    engine.wait_for(running=0, waiting=0)  # what an earlier test left, vLLM may still be aborting

    probe = probed(engine)

    assert (probe.returncode, probe.stderr) == (0, "")
    assert f"{engine.url} schedules by priority" in probe.stdout
    engine.wait_for(running=0, waiting=0)


def test_probe_says_that_vllm_ignores_priorities(vllm: Engines):
    """Against a vLLM without `--scheduling-policy priority` it fails, and names the remedy."""
    engine = vllm()

    probe = probed(engine)

    assert (probe.returncode, probe.stdout) == (2, "")
    assert f"{engine.url} IGNORES priorities" in probe.stderr
    assert "--scheduling-policy priority" in probe.stderr
    engine.wait_for(running=0, waiting=0)


def probed(engine: Engine) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pars", "gateway", "--upstream", engine.url, "--probe"]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_vllm_in_its_development_mode_tells_its_slots(vllm: Engines, ranker: Path):
    """The three of --max-num-seqs."""
    engine = vllm("--max-num-seqs", "3", VLLM_SERVER_DEV_MODE="1")
    with gateway(engine, ranker, "--hold", "on") as door, engine.held():

        def held() -> dict[str, object]:
            return dict(httpx.get(f"{door.url}/pars/now").json()["held"])

        wait_until(lambda: held()["slots"] == 3, "word of the slots", 60)
        assert held()["slots_by"] == "the engine"
