"""In front of an engine without priorities requests wait in the gateway, in our order."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import connect, counted, gateway_to, scripted_upstream
from pars.doctor.live_page import lines_of, now_of
from pars.serving.gateway import Gateway
from told_engine import PATH, Engine, ask

from serving import eventually


@contextmanager
def before(server: Engine, folder: Path, **settings: Any) -> Iterator[tuple[str, Gateway]]:
    """A gateway in front of it, which orders the shortest prompt first."""
    chosen = {"engine": "auto", "max_overtake_s": float("inf"), "learn": "off", "drift": False}
    with (
        scripted_upstream(server.serve) as up,
        gateway_to(up, folder, settings=chosen | settings, pauses_s=(0.02, 0.02)) as (url, app),
    ):
        eventually(lambda: app.known.is_known)
        yield url, app


def arrived(app: Gateway, num: int) -> None:
    """Wait until so many requests are held or at the engine."""
    eventually(lambda: app.queue.num_waiting + app.queue.num_sent == num)


def test_short_requests_go_first_where_the_engine_has_no_order(tmp_path: Path) -> None:
    """llama.cpp tells its one slot: one request has it, one waits there, the others here."""
    engine = Engine(slots=1)
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        eventually(lambda: app.queue.replicas[0].slots.num == 1)
        asked = []
        for number, length in enumerate((5, 5, 40, 10, 30, 20)):
            asked.append(pool.submit(ask, url, "x" * length))
            arrived(app, number + 1)
        assert app.queue.num_waiting == 4
        for number in range(6):
            engine.finish(1)
            eventually(lambda least=number + 3: len(engine.prompts) >= min(least, 6))
        answers = [it.result() for it in asked]
    assert [len(it) for it in engine.prompts] == [5, 5, 10, 20, 30, 40]
    assert all(it.is_success for it in answers)
    waits_ms = [int(it.headers["x-pars-wait-ms"]) for it in answers]
    assert waits_ms[0] <= waits_ms[2]


def test_llama_cpp_is_greeted_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That it takes no priorities is well: log and `pars top` say where requests wait."""
    caplog.set_level("INFO")
    with before(Engine(slots=3), tmp_path) as (url, app):
        eventually(lambda: app.queue.replicas[0].slots.num == 3)
        lines = lines_of(now_of(url))
    told = [it for it in caplog.records if it.getMessage().startswith("the upstream is")]
    assert [(it.levelname, "the gateway holds the queue" in it.getMessage()) for it in told] == [
        ("INFO", True)
    ]
    assert any("needs no priorities, the queue is held in the gateway" in it for it in lines)


def test_what_generates_nothing_is_not_held(tmp_path: Path) -> None:
    """A full engine: the list of models is asked for and answered all the same."""
    engine = Engine(slots=1)
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, "x") for _ in range(4)]
        eventually(lambda: app.queue.num_waiting == 2)
        assert httpx.get(url + "/v1/models", trust_env=False).status_code == 404
        engine.finish(4)
        assert all(it.result().is_success for it in asked)


def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    """One that waits is never sent; one at the engine lets the next one go."""
    engine = Engine(slots=1)
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        clients = []
        for number, name in enumerate(("at the engine", "there too", "waits", "stays")):
            clients.append(connect(url))
            body = json.dumps({"prompt": name, "max_tokens": 1000}).encode()
            head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
            clients[-1].sendall(head % (PATH.encode(), len(body)) + body)
            arrived(app, number + 1)
        assert app.queue.num_waiting == 2
        clients[2].close()
        eventually(lambda: app.queue.num_waiting == 1)
        clients[0].close()
        eventually(lambda: "stays" in engine.prompts and engine.gone == ["at the engine"])
        assert engine.prompts == ["at the engine", "there too", "stays"]
        engine.finish(2)
        for client in (clients[1], clients[3]):
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
            client.close()
        assert pool is not None


def test_a_client_that_leaves_says_nothing_about_the_server(tmp_path: Path) -> None:
    """One that is out of use is well again once an answer comes, and not once a client gives up."""
    engine = Engine(slots=1)
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(1) as pool:
        replica = app.queue.replicas[0]
        replica.problem = "it hangs"
        body = b'{"prompt": "x"}'
        with connect(url) as leaving:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            eventually(lambda: len(engine.prompts) == 1)
        eventually(lambda: app.queue.num_sent == 0)
        assert replica.problem == "it hangs"
        engine.finish(2)
        assert pool.submit(ask, url, "x").result().is_success
        assert replica.problem == ""


def test_one_whose_body_is_too_large_to_read_frees_its_place_too(tmp_path: Path) -> None:
    """It waits as the others do, and its bytes count as long as it is there."""
    engine = Engine(slots=1)
    bounds = {"max_body_bytes": 1000, "max_held_bytes": 10_000_000}
    with before(engine, tmp_path, **bounds) as (url, app), ThreadPoolExecutor(8) as pool:
        asked = []
        for number in range(2):
            asked.append(pool.submit(ask, url, "x"))
            arrived(app, number + 1)
        client = connect(url)
        body = json.dumps({"prompt": "x" * 3_000_000}).encode()
        head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        client.sendall(head % (PATH.encode(), len(body)) + body)
        eventually(lambda: app.queue.num_waiting == 1)
        refused = ask(url, "x" * 3_000_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        client.close()
        eventually(lambda: app.queue.num_waiting == 0)
        last = pool.submit(ask, url, "x" * 3_000_000)
        eventually(lambda: app.queue.num_waiting == 1)
        engine.finish(3)
        assert all(it.result().is_success for it in [*asked, last])
    assert [len(it) for it in engine.prompts] == [1, 1, 3_000_000]


def test_no_body_may_be_larger_than_what_all_may_hold(tmp_path: Path) -> None:
    """One alone neither: it gets a 429, and the others are held as before."""
    engine = Engine(slots=1)
    bounds = {"max_body_bytes": 1000, "max_held_bytes": 1_000_000}
    with before(engine, tmp_path, **bounds) as (url, app), ThreadPoolExecutor(8) as pool:
        assert ask(url, "x" * 3_000_000).status_code == 429
        engine.finish(1)
        assert pool.submit(ask, url, "x").result().is_success
        assert app.queue.num_waiting == 0


def test_a_limited_caller_is_known_by_any_of_his_keys(tmp_path: Path) -> None:
    """A made-up key beside his own makes no second caller of him: the engine gets no pause."""
    engine = Engine()
    engine.limited = {"greedy"}
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, url, "x", "modest")
        arrived(app, 1)
        limited = [
            pool.submit(ask, url, "x", "greedy", **{"api-key": f"made up {number}"})
            for number in range(2)
        ]
        eventually(lambda: counted(app, "pars_held_sent_back_total") >= 2)
        [replica] = app.queue.replicas
        assert replica.paused_until_s < 0
        engine.limited = set()
        engine.finish(3)
        assert all(it.result().is_success for it in [first, *limited])


def test_a_limit_on_one_caller_holds_nobody_else_up(tmp_path: Path) -> None:
    """A caller who asks for too much gets a 429 from the engine; the others go on meanwhile."""
    engine = Engine()
    engine.limited = {"greedy"}
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, url, "x", "modest")
        arrived(app, 1)
        limited = pool.submit(ask, url, "x", "greedy")
        eventually(lambda: counted(app, "pars_held_sent_back_total") == 1)
        second = pool.submit(ask, url, "x", "modest")
        engine.finish(2)
        assert first.result().is_success
        assert second.result().is_success
        assert (app.queue.num_waiting, limited.done()) == (1, False)
        engine.limited = set()
        engine.finish(1)
        assert limited.result().is_success


def test_a_limit_that_all_meet_is_the_engine_s(tmp_path: Path) -> None:
    """Two callers are sent back, and nobody is answered between: nothing is sent for so long."""
    engine = Engine()
    engine.limited = {"one", "other"}
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, url, "x", "third")
        arrived(app, 1)
        asked = [pool.submit(ask, url, "x", key) for key in ("one", "other")]
        eventually(lambda: counted(app, "pars_held_sent_back_total") == 2)
        [replica] = app.queue.replicas
        eventually(lambda: replica.paused_until_s > 0)
        engine.limited = set()
        engine.finish(3)
        assert all(it.result().is_success for it in [first, *asked])


def test_a_busy_engine_costs_no_client_an_error(tmp_path: Path) -> None:
    """It sends three back with a 503: they are sent again, in their order."""
    engine = Engine()
    engine.busy = 3
    with before(engine, tmp_path) as (url, app), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, "x" * length) for length in (9, 8, 7)]
        engine.finish(3)
        assert [it.result().status_code for it in asked] == [200, 200, 200]
        assert counted(app, "pars_held_sent_back_total") == 3


def test_a_full_queue_says_so_as_openai_does(tmp_path: Path) -> None:
    """Two at the engine, one waits, and the next gets a 429 with a time to come again."""
    engine = Engine(slots=1)
    with before(engine, tmp_path, max_held=1) as (url, app), ThreadPoolExecutor(8) as pool:
        asked = []
        for number in range(3):
            asked.append(pool.submit(ask, url, "x"))
            arrived(app, number + 1)
        refused = ask(url, "x")
        engine.finish(3)
        assert all(it.result().is_success for it in asked)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    error = refused.json()["error"]
    assert error["code"] == "queue_full"
    assert "1 requests wait already" in error["message"]


@pytest.mark.parametrize(
    ("hold", "engine", "holds"), [("off", "none", False), ("on", "vllm", True)]
)
def test_the_operator_s_word_counts(tmp_path: Path, hold: str, engine: str, holds: bool) -> None:
    """Off: nothing is held whatever the engine is; on: also where it takes priorities."""
    server = Engine()
    with before(server, tmp_path, hold=hold, engine=engine, slots=1) as (url, app):
        server.finish(1)
        answer = ask(url, "x")
        assert ("x-pars-wait-ms" in answer.headers) is holds
        assert (app.hold.as_json() is not None) is holds
