"""Orchestrators learn whether the process answers, and whether it may be sent requests."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateways import gateway_to, scripted_upstream
from pars.outcomes.metrics import ServeMetrics
from pars.serving.middleware import PriorityMiddleware
from pars.serving.settings import Settings
from told_engine import Engine, ask

from fake_engine import FakeEngine
from serving import eventually, serve_in_thread

NOWHERE = "http://127.0.0.1:1"


def page(url: str, name: str) -> httpx.Response:
    return httpx.get(f"{url}/pars/{name}", trust_env=False)


def test_a_gateway_is_ready_once_its_engine_has_answered(tmp_path: Path) -> None:
    """Before that it lives and says why it is not ready; where the engine is, it tells nobody."""
    with gateway_to(NOWHERE, tmp_path) as (url, _):
        assert page(url, "live").json() == {"status": "live"}
        answer = page(url, "ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert "127.0.0.1" not in answer.text

    with FakeEngine().served() as engine, gateway_to(engine, tmp_path) as (url, _):
        answer = page(url, "ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_one_of_several_engines_is_enough_to_be_ready(tmp_path: Path) -> None:
    """A fleet with one server down takes requests."""
    with FakeEngine().served() as engine, gateway_to([NOWHERE, engine], tmp_path) as (url, _):
        assert page(url, "ready").status_code == 200


def test_a_gateway_stays_ready_when_its_engine_goes(tmp_path: Path) -> None:
    """Clients then get a 502 with the reason and no closed port; the health page says it too."""
    with ExitStack() as stack, ExitStack() as until_it_goes:
        engine = until_it_goes.enter_context(FakeEngine().served())
        url, _ = stack.enter_context(gateway_to(engine, tmp_path))
        assert page(url, "ready").status_code == 200
        until_it_goes.close()
        eventually(lambda: page(url, "health").status_code == 503)
        assert page(url, "ready").status_code == 200
        assert page(url, "live").status_code == 200


@pytest.mark.parametrize("name", ["live", "ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_probes_need_no_key_and_never_reach_the_engine(
    tmp_path: Path, name: str, method: str
) -> None:
    """They are the gateway's own; whatever else lies beside them wants a key."""
    engine = FakeEngine()
    keys = {"api_keys": "sesame"}
    with engine.served() as up, gateway_to(up, tmp_path, settings=keys) as (url, _):
        assert httpx.request(method, f"{url}/pars/{name}").status_code == 200
        assert httpx.request(method, f"{url}/pars/{name}/more").status_code == 401
    assert [it.path for it in engine.asked if it.path.startswith("/pars")] == []


def test_probes_are_answered_while_requests_are_held(tmp_path: Path) -> None:
    """With the only slot taken, one more request at the engine, and two held."""
    engine = Engine(slots=1)
    settings = {"engine": "none", "hold": "on", "slots": 1, "state": "none"}
    with (
        scripted_upstream(engine.serve) as upstream,
        ThreadPoolExecutor(4) as pool,
        gateway_to(upstream, tmp_path, settings=settings) as (url, app),
    ):
        asked = [pool.submit(ask, url, "x") for _ in range(4)]
        eventually(lambda: app.queue.num_waiting == 2)
        assert page(url, "live").status_code == 200
        assert page(url, "ready").status_code == 200
        engine.finish(4)
        assert [it.result().status_code for it in asked] == [200] * 4


class Host:
    """A server in whose process the middleware runs: its /health answers `status`, or raises."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        self.paths.append(scope["path"])
        if not self.status:
            raise RuntimeError("the engine is dead")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [(200, 200, None), (503, 503, "HTTP 503"), (0, 503, "RuntimeError"), (404, 200, None)],
)
def test_inside_an_engine_ready_goes_by_the_engines_own_health(
    status: int, expected: int, reason: str | None
) -> None:
    """The middleware asks it once, and not again when it was well; live asks nobody."""
    host = Host(status)
    metrics = ServeMetrics(CollectorRegistry())
    app = PriorityMiddleware(host, Settings(state="none"), metrics=metrics)
    with serve_in_thread(app) as url:
        assert page(url, "live").status_code == 200
        assert host.paths == []
        answers = [page(url, "ready") for _ in range(2)]
    assert [it.status_code for it in answers] == [expected] * 2
    assert reason is None or reason in answers[0].json()["reason"]
    assert host.paths == ["/health"] * (1 if expected == 200 else 2)
