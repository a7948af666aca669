"""An operator changes a gateway while it serves, sees it, and can take it back."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from gateways import counted, gateway_to
from pars.cli.main import commands
from pars.errors import ParsError
from pars.serving.gateway import Gateway
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually

KEY = "of the operator"
ADMIN = {"authorization": f"Bearer {KEY}"}


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[tuple[str, Gateway, FakeEngine]]:
    engine = FakeEngine(num_slots=1, token_s=0.002)
    with engine.served() as up, gateway_at(up, folder, **settings) as (url, app):
        yield url, app, engine


@contextmanager
def gateway_at(upstream: str, folder: Path, **settings: Any) -> Iterator[tuple[str, Gateway]]:
    chosen = {"admin_key": KEY, "state": str(folder / "state"), "max_overtake_s": float("inf")}
    with gateway_to(upstream, folder, settings=chosen | settings) as (url, app):
        yield url, app


def ctl(url: str, **asked: Any) -> httpx.Response:
    return httpx.post(f"{url}/pars/ctl", json=asked, headers=ADMIN, trust_env=False)


def order_of(url: str, engine: FakeEngine, lengths: list[int]) -> list[int]:
    """The lengths in the order in which the engine admitted them, after one that fills its slot."""
    before = len(engine.admitted)

    def ask(length: int) -> None:
        body = {"prompt": "x" * length, "max_tokens": length, "user": str(length), "stream": True}
        httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)

    with ThreadPoolExecutor(8) as pool:
        pool.submit(ask, 1000)
        eventually(lambda: len(engine.admitted) == before + 1)
        for number, length in enumerate(lengths):
            pool.submit(ask, length)
            eventually(lambda least=number + 1: engine.num_waiting == least)
    return [int(name) for name in engine.admitted[before + 1 :]]


def test_the_order_is_off_in_a_second_and_back_by_rollback(tmp_path: Path) -> None:
    """Shortest first, then first come, first served, then shortest first again."""
    with served(tmp_path) as (url, app, engine):
        assert order_of(url, engine, [30, 10, 20]) == [10, 20, 30]
        assert ctl(url, policy="fcfs").json()["policy"] == "fcfs"
        assert order_of(url, engine, [31, 11, 21]) == [31, 11, 21]
        assert counted(app, "pars_policy_info", policy="first come, first served") == 1
        assert counted(app, "pars_policy_info", policy="shortest first") == 0
        assert ctl(url, rollback=True).json()["policy"] == "default"
        assert order_of(url, engine, [32, 12, 22]) == [12, 22, 32]


def test_in_shadow_mode_the_order_is_only_thought_of(tmp_path: Path) -> None:
    """First come, first served at the engine, and the page tells what would have been gained."""
    with served(tmp_path) as (url, app, engine):
        assert ctl(url, shadow="on").is_success
        assert order_of(url, engine, [300, 2, 3]) == [300, 2, 3]
        eventually(lambda: app.middleware.worth.shadow_gain is not None)
        assert app.middleware.worth.shadow_gain is not None
        assert app.middleware.worth.shadow_gain.ntpot_ratio > 0
        now = httpx.get(f"{url}/pars/now", trust_env=False).json()
        assert now["policy"].startswith("shadow: first come, first served")


def test_a_change_while_a_ranker_loads_is_not_taken_back(tmp_path: Path) -> None:
    """It comes after the load, and both hold."""
    entered, gate = threading.Event(), threading.Event()

    def load(name: str) -> None:
        entered.set()
        assert gate.wait(DEADLINE_S)

    async def change_both() -> None:
        gateway = Gateway(Upstream("http://127.0.0.1:1"), Settings(learn="off"))
        control = gateway.control
        gateway.middleware.predictor.offline.load = load  # type: ignore[method-assign]
        loading = asyncio.create_task(control.change({"ranker": "another"}))
        await asyncio.to_thread(entered.wait, DEADLINE_S)
        ordering = asyncio.create_task(control.change({"policy": "fcfs"}))
        for _ in range(10):
            await asyncio.sleep(0)  # time enough to carry it out at once
        gate.set()
        await asyncio.gather(loading, ordering)
        assert (control.state["policy"], control.state["ranker"]) == ("fcfs", "another")

    asyncio.run(change_both())


def test_what_waits_keeps_its_place_when_the_policy_changes(tmp_path: Path) -> None:
    """Classes are counted by the policy that gave them, whatever comes after it."""
    with served(tmp_path, max_overtake_s=float("-inf")) as (url, app, engine):
        order_of(url, engine, [30, 10, 20])
        bounded = app.middleware.placing._policy
        assert ctl(url, policy="fcfs").is_success
        assert ctl(url, policy="2x").is_success
        order_of(url, engine, [30, 10])
        assert bounded.num_waiting == 0  # type: ignore[attr-defined]
        assert app.middleware.placing._policy.num_waiting == 0  # type: ignore[attr-defined]


def test_a_change_that_is_kept_outlives_a_restart(tmp_path: Path) -> None:
    """The others do not, and a gateway before another engine has its own."""
    with FakeEngine().served() as upstream, FakeEngine().served() as another:
        with gateway_at(upstream, tmp_path) as (url, _):
            ctl(url, policy="1.25x", keep=True)
            ctl(url, shadow="on")
        with gateway_at(upstream, tmp_path) as (url, app):
            eventually(lambda: app.control.state["policy"] == "1.25x")
            assert app.control.state["shadow"] == "off"
        with gateway_at(another, tmp_path) as (url, app):
            assert httpx.get(f"{url}/pars/health", trust_env=False).is_success
            assert app.control.state["policy"] == "default"


def test_a_damaged_file_of_kept_changes_costs_nothing(tmp_path: Path) -> None:
    """The gateway starts as it is told on its command line."""
    with FakeEngine().served() as upstream:
        with gateway_at(upstream, tmp_path) as (url, _):
            ctl(url, policy="1.25x", keep=True)
        [kept] = (tmp_path / "state").glob("control-*.json")
        kept.write_text('{"policy": 7')
        with gateway_at(upstream, tmp_path) as (url, app):
            assert httpx.get(f"{url}/pars/ctl", headers=ADMIN, trust_env=False).json() == {
                "policy": "default",
                "shadow": "off",
                "learn": "on",
                "ranker": "",
            }
            assert app.control.state["policy"] == "default"


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"policy": "fast"}, "policy: want fcfs, default, 1.25x or 30 (seconds), not fast"),
        ({"policy": "0.5x"}, "max_slowdown must be 1 or more, not 0.5"),
        ({"policy": "nan"}, "policy: want fcfs, default, 1.25x or 30 (seconds), not nan"),
        ({"learn": "maybe"}, "learn: want on or off, not maybe"),
        ({"size": "large"}, "size: none of policy, shadow, learn, ranker, rollback, keep"),
        ({"policy": 7}, "policy: want a text, not 7"),
        ({"rollback": True}, "there is no change to take back"),
        ({"ranker": "/nowhere", "policy": "fcfs"}, "/nowhere"),
        ({"ranker": "no\0name"}, "null"),
        ({"ranker": "x" * 3000}, "xxx"),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(
    tmp_path: Path, asked: dict[str, Any], problem: str
) -> None:
    """It is said what would be right."""
    with served(tmp_path) as (url, app, _):
        before = app.control.state
        answer = ctl(url, **asked)
        assert answer.status_code == 400
        assert problem in answer.json()["error"]["message"]
        assert app.control.state == before


def test_without_the_key_nobody_changes_anything(tmp_path: Path) -> None:
    """Where none is set nobody at all does, and no key goes on to the upstream."""
    with served(tmp_path) as (url, _, _):
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": KEY}):
            told = httpx.post(f"{url}/pars/ctl", json={"policy": "fcfs"}, headers=headers)
            assert told.status_code == 403
    with served(tmp_path, admin_key="") as (url, app, engine):
        assert ctl(url, policy="fcfs").status_code == 403
        assert app.control.state["policy"] == "default"
        assert all(it.path != "/pars/ctl" for it in engine.asked)


def test_only_a_post_changes_anything(tmp_path: Path) -> None:
    """Another method is told so."""
    with served(tmp_path) as (url, app, _):
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            told = httpx.request(
                method, f"{url}/pars/ctl", json={"policy": "fcfs"}, headers=ADMIN, trust_env=False
            )
            assert told.status_code == 405
        assert app.control.state["policy"] == "default"


def test_what_was_kept_counts_only_where_somebody_may_have_kept_it(tmp_path: Path) -> None:
    """Without an admin key a file in the folder is nobody's word."""
    with served(tmp_path) as (url, _, _):
        assert ctl(url, policy="fcfs", keep=True).status_code == 200
    with served(tmp_path, admin_key="") as (_, app, _):
        assert app.control.state["policy"] == "default"


def test_the_commands_say_what_is_set_and_what_it_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pars ctl` changes it, `pars top` shows it."""
    monkeypatch.setenv("PARS_ADMIN_KEY", KEY)
    run = CliRunner()
    with served(tmp_path) as (url, app, engine):
        changed = run.invoke(commands, ["ctl", url, "policy", "1.25x"])
        assert changed.output.splitlines()[0].split() == ["policy", "1.25x"]
        order_of(url, engine, [30, 10, 20])
        eventually(lambda: app.middleware.worth.gain is not None)
        shown = run.invoke(commands, ["top", url, "--once"])
        assert "at most 1.25 times the wait of first come, first served" in shown.output
        assert "4 answers of the last hour" in shown.output
        assert json.loads(run.invoke(commands, ["top", url, "--json"]).output)["status"] == "ok"
        wrong = run.invoke(commands, ["ctl", url, "policy", "fast"])
        assert isinstance(wrong.exception, ParsError)
        monkeypatch.setenv("PARS_ADMIN_KEY", "another")
        refused = run.invoke(commands, ["ctl", url])
        assert "is PARS_ADMIN_KEY the same there?" in str(refused.exception)


def test_top_says_who_does_not_answer() -> None:
    """One line, and no traceback."""
    result = CliRunner().invoke(commands, ["top", "http://127.0.0.1:1"])

    assert isinstance(result.exception, ParsError)
    assert "cannot connect" in str(result.exception)


@pytest.mark.parametrize("command", [["ctl"], ["top", "--once"]])
def test_the_url_of_another_server_is_told_from_a_gateways(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is wrong with it, and not by a key that might be."""
    monkeypatch.setenv("PARS_ADMIN_KEY", KEY)
    with FakeEngine().served() as url:
        run = CliRunner().invoke(commands, [command[0], url, *command[1:]], standalone_mode=False)

    assert isinstance(run.exception, ParsError)
    assert "no pars gateway answers there: give its URL" in str(run.exception)
