"""Tenants before real sockets: who a request's is, its place by that, and what operators see."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import connect, counted, exchange, gateway_to, post, scripted_upstream
from pars.doctor.live_page import lines_of
from pars.scheduling.policies.fair_tenants import FairTenants
from pars.serving.gateway import Gateway
from pars.serving.settings import NO_OVERTAKE_BOUND
from told_engine import PATH, Engine

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually

KEYS = {"sk-a": "a", "sk-b": "b"}


def tenants_file(folder: Path, header: str = "", weight: float = 1.0) -> Path:
    """Tenants a and b, each with its key, and of the header its own name."""
    lines = [f'header = "{header}"'] if header else []
    for key, name in KEYS.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines += [f"[tenants.{name}]", f"weight = {weight}", f'keys = ["{digest}"]']
    path = folder / "tenants.toml"
    path.write_text("\n".join(lines))
    return path


@contextmanager
def gateway(
    upstream: str, folder: Path, header: str = "", **settings: Any
) -> Iterator[tuple[str, Gateway]]:
    """A gateway with tenants, which expects of an answer as many tokens as a prompt has letters."""
    chosen = {
        "tenants": str(tenants_file(folder, header)),
        "max_overtake_s": NO_OVERTAKE_BOUND,
        "max_slowdown": 1.0,
        "learn": "off",
        "drift": False,
    }
    with gateway_to(upstream, folder, settings=chosen | settings, pauses_s=(0.02, 0.02)) as it:
        yield it


def ask(url: str, prompt: str, key: str = "", **headers: str) -> httpx.Response:
    if key:
        headers["authorization"] = f"Bearer {key}"
    body = {"prompt": prompt, "max_tokens": 1000}
    return httpx.post(url + PATH, json=body, headers=headers, timeout=DEADLINE_S, trust_env=False)


@contextmanager
def held(folder: Path, header: str = "", **settings: Any) -> Iterator[tuple[str, Gateway, Engine]]:
    """In front of an engine with one slot and no priorities, which ends an answer when told."""
    engine = Engine(slots=1)
    with (
        scripted_upstream(engine.serve) as up,
        gateway(up, folder, header, engine="auto", **settings) as (url, app),
    ):
        eventually(lambda: app.queue.replicas[0].slots.num == 1)
        yield url, app, engine


def in_order(
    url: str, app: Gateway, engine: Engine, requests: list[tuple[str, str, dict[str, str]]]
) -> list[str]:
    """The prompts as the engine got them, of (prompt, key, headers) that came one by one."""
    asked: list[Future[httpx.Response]] = []
    with ThreadPoolExecutor(len(requests)) as pool:
        for number, (prompt, key, headers) in enumerate(requests):
            asked.append(pool.submit(ask, url, prompt, key, **headers))
            eventually(lambda num=number + 1: app.queue.num_waiting + app.queue.num_sent == num)
        for number in range(len(requests)):
            engine.finish(1)
            eventually(lambda least=number + 1: sum(it.done() for it in asked) >= least)
        assert all(it.result().is_success for it in asked)
    return engine.prompts


def flood(num: int, key: str = "sk-a", **headers: str) -> list[tuple[str, str, dict[str, str]]]:
    return [(f"flood {number} " + 500 * "x", key, headers) for number in range(num)]


def test_a_flood_queues_behind_itself_in_the_held_queue(tmp_path: Path) -> None:
    """Eight of one tenant wait when another's first one comes: it is next, whatever its length."""
    with held(tmp_path) as (url, app, engine):
        late = ("late " + 900 * "x", "sk-b", {})

        prompts = in_order(url, app, engine, [*flood(8), late])

    # Two are at the engine by then; of the others one started as early as the late one does.
    assert prompts.index(late[0]) <= 3
    assert [it[:7] for it in prompts if it != late[0]] == [f"flood {n}" for n in range(8)]


def test_a_client_cannot_say_who_it_is(tmp_path: Path) -> None:
    """Without a header in the file none counts: whatever it sends, it stands behind its own."""
    with held(tmp_path) as (url, app, engine):
        lie = {"x-tenant": "b", "x-pars-tenant": "b", "x-vllm-priority": "-9"}
        again = ("again", "sk-a", lie)

        prompts = in_order(url, app, engine, [*flood(5), again])

    assert prompts[-1] == "again"


def test_the_file_s_header_says_it_where_one_is_named(tmp_path: Path) -> None:
    """A value that nobody has, and one that came twice, is "other"; a known key counts first."""
    with FakeEngine().served() as up, gateway(up, tmp_path, "X-Team") as (url, app):
        ask(url, "one", **{"x-team": "a"})
        ask(url, "two", **{"x-team": "who"})
        ask(url, "three", "sk-b", **{"x-team": "a"})
        exchange(url, post(PATH, b'{"prompt": "four"}', "X-Team: a", "X-Team: a"))
        eventually(lambda: total(app) == 4)

        assert {name: work(app, name) > 0 for name in ("a", "b", "other")} == {
            "a": True,
            "b": True,
            "other": True,
        }
        assert waits(app, "a") == 1
        assert waits(app, "other") == 2


@pytest.mark.parametrize(("proxies", "counts"), [("127.0.0.1/32", True), ("10.0.0.0/8", False)])
def test_where_proxies_are_trusted_only_they_say_it(
    tmp_path: Path, proxies: str, counts: bool
) -> None:
    """The header of anybody else is as if it were not there."""
    with (
        FakeEngine().served() as up,
        gateway(up, tmp_path, "X-Team", trusted_proxies=proxies) as (url, app),
    ):
        ask(url, "one", **{"x-team": "a"})
        eventually(lambda: total(app) == 1)

        assert waits(app, "a") == counts


def test_an_engine_with_priorities_gets_one_integer_a_request(tmp_path: Path) -> None:
    """The flood's keys rise by its work; the other tenant's is below all but the first of them."""
    engine = FakeEngine(num_slots=1, token_s=0.001)
    with engine.served() as up, gateway(up, tmp_path) as (url, app), ThreadPoolExecutor(9) as pool:
        asked = []
        for number, (prompt, key, headers) in enumerate([*flood(8), ("late", "sk-b", {})]):
            asked.append(pool.submit(ask, url, prompt, key, **headers))
            eventually(lambda num=number + 1: len(engine.asked) == num)
        assert all(it.result().is_success for it in asked)
        eventually(lambda: total(app) == 9)

    priorities = [it.priority for it in engine.asked]
    assert priorities[:8] == sorted(priorities[:8])
    assert priorities[8] <= priorities[1]
    steps = [(later - sooner) / 1e6 for sooner, later in pairwise(priorities[1:8])]
    # 508 letters and about 127 tokens of a prompt, by a third of 10,000 a second.
    assert all(0.1 < step < 0.3 for step in steps)


def test_a_request_that_the_engine_refuses_moves_no_clock(tmp_path: Path) -> None:
    """A 400 comes at once, whatever the queue: it must not bring the clock to a flood's end."""
    engine = FakeEngine(num_slots=0)  # nobody is ever admitted
    with engine.served() as up, gateway(up, tmp_path) as (url, app):
        clients = []
        for number, (prompt, key, _) in enumerate(flood(6)):
            clients.append(connect(url))
            body = json.dumps({"prompt": prompt}).encode()
            clients[-1].sendall(post(PATH, body, f"Authorization: Bearer {key}"))
            eventually(lambda num=number + 1: len(engine.asked) == num)
        policy = app.middleware.placing._policy
        assert isinstance(policy, FairTenants)
        before_s = policy.time.now_s

        refused = exchange(url, post(PATH, b"[", "Authorization: Bearer sk-a"))
        eventually(lambda: policy.time.waiting.num == 6)

        assert refused.startswith(b"HTTP/1.1 400 ")
        assert policy.time.now_s == before_s
        for client in clients:
            client.close()
        eventually(lambda: policy.time.waiting.num == 0)


def test_operators_see_tenants(tmp_path: Path) -> None:
    """On the page for programs, in `pars top`, and as metrics; a client's key is nowhere."""
    with FakeEngine().served() as up, gateway(up, tmp_path, max_slowdown=1.5) as (url, app):
        for _ in range(3):
            ask(url, "one", "sk-a")
        ask(url, "two", "sk-b")
        eventually(lambda: total(app) == 4)
        now = httpx.get(f"{url}/pars/now", trust_env=False).json()
        metrics = httpx.get(f"{url}/pars/metrics", trust_env=False).text
        page = httpx.get(f"{url}/pars/", trust_env=False).text

    rows = {row["tenant"]: row for row in now["tenants"]}
    assert now["policy"].startswith("3 tenants by weight; inside each at most 1.5 times")
    assert {name: round(row["share"], 3) for name, row in rows.items()} == {
        "a": 0.333,
        "b": 0.333,
        "other": 0.333,
    }
    assert (rows["a"]["num_requests"], rows["b"]["num_requests"]) == (3, 1)
    assert rows["a"]["work_share"] == pytest.approx(0.75)
    assert rows["other"]["wait_s"] is None
    assert any("tenant a" in line and "75% of the work" in line for line in lines_of(now))
    assert 'pars_tenant_share_ratio{tenant="a"} 0.333' in metrics
    assert 'pars_tenant_requests_waiting{tenant="a"} 0.0' in metrics
    assert "sk-a" not in metrics + json.dumps(now)
    assert 'id="tenants"' in page


def test_without_the_file_there_are_no_tenants(tmp_path: Path) -> None:
    """Neither a series nor a row."""
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        ask(url, "one", "sk-a")
        now = httpx.get(f"{url}/pars/now", trust_env=False).json()
        metrics = httpx.get(f"{url}/pars/metrics", trust_env=False).text

    assert now["tenants"] is None
    assert "pars_tenant" not in metrics


def test_the_file_is_read_again_without_a_restart(tmp_path: Path) -> None:
    """Weights change; a file that is broken changes nothing."""
    with FakeEngine().served() as up, gateway(up, tmp_path) as (url, app):
        path = tenants_file(tmp_path)
        path.write_text(path.read_text() + "\n[tenants.c]\nweight = 6\n")
        app.reload.soon()
        eventually(lambda: len(app.middleware.placing.lanes) == 4)
        path.write_text("broken")
        app.reload.soon()
        ask(url, "one", "sk-a")
        eventually(lambda: total(app) == 1)
        shares = {lane.name: lane.share for lane in app.middleware.placing.lanes}

    assert shares["c"] == pytest.approx(6 / 9)


def test_labels_are_bounded(tmp_path: Path) -> None:
    """A hundred tenants have 64 labels, the rest the one of "other"."""
    lines = ['header = "X-Team"'] + [f"[tenants.t{number}]" for number in range(100)]
    path = tmp_path / "many.toml"
    path.write_text("\n".join(lines))
    with (
        FakeEngine().served() as up,
        gateway(up, tmp_path, tenants=str(path)) as (url, app),
        httpx.Client(trust_env=False) as client,
    ):
        for number in range(100):
            headers = {"x-team": f"t{number}"}
            client.post(url + PATH, json={"prompt": "x", "max_tokens": 1}, headers=headers)
        eventually(lambda: total(app) == 100)
        labels = {
            sample.labels["tenant"]
            for metric in app.registry.collect()
            for sample in metric.samples
            if "tenant" in sample.labels
        }

    assert len(labels) == 64
    assert waits(app, "other") == 37


def work(app: Gateway, tenant: str) -> float:
    return counted(app, "pars_tenant_work_tokens_total", tenant=tenant)


def waits(app: Gateway, tenant: str) -> float:
    name = "pars_tenant_time_per_output_token_seconds_count"
    return counted(app, name, tenant=tenant)


def total(app: Gateway) -> float:
    """Answers of all tenants, as counted."""
    return sum(
        sample.value
        for metric in app.registry.collect()
        for sample in metric.samples
        if sample.name == "pars_tenant_time_per_output_token_seconds_count"
    )
