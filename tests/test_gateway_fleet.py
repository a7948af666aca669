"""One queue before several servers, on real sockets: who answers, who fails, who comes back."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from gateways import connect, counted, gateway_to, post, read_all, read_request, scripted_upstream
from pars.serving.gateway import Gateway
from pars.serving.held.replica import Replica
from pars.serving.held.slots import Slots
from pars.serving.held.watch import HANGS, MOST_LATE, keep_well
from pars.serving.upstream import Upstream
from told_engine import PATH, Engine, answer, ask

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually

NOWHERE = "http://127.0.0.1:1"
CHOSEN = {"engine": "auto", "max_overtake_s": float("inf"), "learn": "off", "drift": False}


@contextmanager
def before(servers: list[Any], folder: Path, **settings: Any) -> Iterator[tuple[str, Gateway]]:
    """A gateway in front of servers that are scripted, or are URLs."""
    with ExitStack() as stack:
        urls = [
            it if isinstance(it, str) else stack.enter_context(scripted_upstream(it))
            for it in servers
        ]
        opened = gateway_to(urls, folder, settings=CHOSEN | settings, pauses_s=(0.02, 0.05))
        url, app = stack.enter_context(opened)
        eventually(lambda: app.known.is_known)
        yield url, app


def problems(app: Gateway) -> list[str]:
    return [it.problem for it in app.queue.replicas]


def test_a_request_goes_to_the_server_that_has_room_first(tmp_path: Path) -> None:
    """Two servers with a slot each: all that wait go to the one that answers."""
    quick, stuck = Engine(slots=1), Engine(slots=1)
    with before([quick.serve, stuck.serve], tmp_path) as (url, app), ThreadPoolExecutor(16) as pool:
        eventually(lambda: [it.slots.num for it in app.queue.replicas] == [1, 1])
        asked = []
        for number in range(10):
            asked.append(pool.submit(ask, url, "x" * (10 + number)))
            eventually(lambda least=number: app.queue.num_waiting + app.queue.num_sent > least)
        assert app.queue.num_waiting == 6
        for number in range(8):
            quick.finish(1)
            eventually(lambda least=number + 3: len(quick.prompts) >= min(least, 8))
        assert len(stuck.prompts) == 2
        assert [len(it) for it in quick.prompts[2:]] == [14, 15, 16, 17, 18, 19]
        stuck.finish(2)
        assert all(it.result().is_success for it in asked)


def test_a_server_that_is_not_there_costs_no_client_an_error(tmp_path: Path) -> None:
    """Of two one is there: it answers everything, and what is not held, too."""
    engine = FakeEngine()
    with engine.served() as up, before([NOWHERE, up], tmp_path) as (url, app):
        for _ in range(3):
            assert ask(url, "x").is_success
        assert httpx.get(url + "/v1/models").json()["data"][0]["id"] == "fake"
        assert "cannot connect" in problems(app)[0]
        assert problems(app)[1] == ""
        health = httpx.get(url + "/pars/health").json()
        assert health["status"] in ("ok", "unscored")
        assert [it["reachable"] for it in health["upstreams"]] == [False, True]


def test_a_server_that_comes_back_gets_requests_again(tmp_path: Path) -> None:
    """It is put out of use when it cannot be reached, and looked after until it can."""
    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    listener.close()
    stays, returns = Engine(slots=1), Engine(slots=1)
    stays.finish(100)
    with before([stays.serve, f"http://127.0.0.1:{place[1]}"], tmp_path) as (url, app):
        eventually(lambda: problems(app)[1] != "")
        assert all(ask(url, "x").is_success for _ in range(3))
        again = socket.create_server(place, backlog=64)
        with scripted_upstream(returns.serve, again), ThreadPoolExecutor(4) as pool:
            eventually(lambda: problems(app) == ["", ""])
            eventually(lambda: app.queue.replicas[1].slots.num == 1)
            returns.finish(100)
            assert all(it.is_success for it in pool.map(lambda _: ask(url, "x"), range(20)))
            assert returns.prompts


def test_a_server_that_says_it_is_not_well_is_left_alone(tmp_path: Path) -> None:
    """Its /health answers 503: as one that loads its model does."""

    def loads(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            assert not request.startswith(b"POST ")
            connection.sendall(answer(503, {"error": "Loading model"}))

    with FakeEngine().served() as up, before([loads, up], tmp_path) as (url, app):
        eventually(lambda: problems(app)[0] == "its /health answers HTTP 503")
        assert all(ask(url, "x").is_success for _ in range(3))


def test_a_server_that_dies_before_it_answers_loses_no_request(tmp_path: Path) -> None:
    """The request goes to another; that is counted."""

    def dies(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            if request.startswith(b"POST "):
                return
            connection.sendall(answer(404, {}))

    with FakeEngine().served() as up, before([dies, up], tmp_path) as (url, app):
        assert ask(url, "x").is_success
        assert counted(app, "pars_held_moved_total") == 1


def test_a_request_that_kills_servers_gets_each_of_them_once(tmp_path: Path) -> None:
    """It may be the reason: its client hears of it, and what comes after is not its victim."""
    asked: list[int] = []

    def dies(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            if request.startswith(b"POST "):
                asked.append(len(asked))
                return
            connection.sendall(answer(404, {}))

    with before([dies, dies], tmp_path) as (url, app):
        reply = ask(url, "x")
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_closed")
        assert len(asked) == 2
        assert app.queue.num_sent == 0


def test_an_answer_that_breaks_off_is_not_begun_again(tmp_path: Path) -> None:
    """Its client sees a broken stream, as with one server: it has read some of it already."""
    engine = FakeEngine()

    def breaks(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            if request.startswith(b"POST "):
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
                )
                return
            connection.sendall(answer(404, {}))

    with engine.served() as up, before([breaks, up], tmp_path) as (url, app):
        with connect(url) as client:
            client.sendall(post(PATH, b'{"prompt": "x"}'))
            came = read_all(client)
        assert b"3\r\nabc\r\n" in came
        assert not came.endswith(b"0\r\n\r\n")
        assert not any(it.path == PATH for it in engine.asked)
        assert app.queue.num_sent == 0


def test_no_server_is_the_error_that_one_would_be(tmp_path: Path) -> None:
    """None can be reached: held or not, a request hears so at once."""
    with gateway_to(
        [NOWHERE, "http://127.0.0.1:2"], tmp_path, settings=CHOSEN, pauses_s=(0.02, 0.05)
    ) as (url, app):
        for reply in (ask(url, "x"), httpx.get(url + "/v1/models")):
            assert reply.status_code == 502
            assert reply.json()["error"]["code"] == "upstream_unreachable"
        assert httpx.get(url + "/pars/health").status_code == 503
        assert app.queue.num_sent == 0


def test_a_body_too_large_to_hold_reaches_one_of_them(tmp_path: Path) -> None:
    """It streams through, and is as whole as it was."""
    engine = FakeEngine()
    with (
        engine.served() as up,
        engine.served() as other,
        before([up, other], tmp_path, max_body_bytes=1000) as (url, _),
    ):
        prompt = "x" * 100_000
        assert httpx.post(url + PATH, json={"prompt": prompt, "max_tokens": 1}).is_success
    [sent] = [it for it in engine.asked if it.path == PATH]
    assert json.loads(sent.body)["prompt"] == prompt


def test_the_bytes_that_are_held_are_bounded(tmp_path: Path) -> None:
    """Two bodies of a kilobyte fit, a third is refused with a 429 and a time to come again."""
    engine = Engine(slots=1)
    with (
        before([engine.serve], tmp_path, max_held_bytes=3000) as (url, app),
        ThreadPoolExecutor(4) as pool,
    ):
        asked = []
        for number in range(2):
            asked.append(pool.submit(ask, url, "x" * 1200))
            eventually(lambda least=number: app.queue.num_sent > least)
        refused = ask(url, "x" * 1200)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert refused.json()["error"]["code"] == "queue_full"
        engine.finish(3)
        assert all(it.result(DEADLINE_S).is_success for it in asked)
        assert ask(url, "x" * 4000).status_code == 429  # alone, too: it would have no bound


def test_a_server_that_hangs_is_out_of_use_until_it_answers(tmp_path: Path) -> None:
    """It takes connections and says nothing; one that says something to somebody is only busy."""
    replica = Replica(Slots(0, time.monotonic))
    state = "busy"
    num_looks = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_looks
        num_looks += 1
        replica.num_heard += state == "busy"
        if state == "well":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            await reader.read()  # until the other side leaves
        writer.close()
        await writer.wait_closed()

    async def until(condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(eventually, condition)

    async def see() -> None:
        nonlocal state
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        looking = keep_well(upstream, replica, (0.001, 0.001), patience_s=0.05)
        watching = asyncio.create_task(looking)
        await until(lambda: num_looks > 3 * MOST_LATE)
        assert replica.problem == ""
        state = "hung"
        await until(lambda: replica.problem == HANGS)
        state = "well"
        await until(lambda: replica.problem == "")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        server.close()
        await server.wait_closed()

    asyncio.run(see())
