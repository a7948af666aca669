"""`pars gateway` as a process: what it refuses and what it says when it starts."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from gateway_process import Started, started
from gateways import connect, read_head, scripted_upstream
from pars.cli.main import commands
from pars.errors import ParsError
from told_engine import Engine, ask

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually

NOWHERE = "http://127.0.0.1:1"


def test_a_misspelt_variable_is_named_when_it_starts(tmp_path: Path) -> None:
    """With what is near to it, and without its value; those that are right are not named."""
    right = {"PARS_API_KEYS": "sesame", "PARS_RELOAD_S": "5"}
    with started(tmp_path, "--upstream", NOWHERE, **right) as quiet:
        pass
    with started(tmp_path, "--upstream", NOWHERE, PARS_APIKEYS="sesame") as warned:
        pass

    assert "PARS_" not in quiet.log
    assert "WARNING pars: PARS_APIKEYS is not a setting" in warned.log
    assert "did you mean PARS_API_KEYS?" in warned.log
    assert "sesame" not in warned.log


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--upstream", NOWHERE), f"--upstream {NOWHERE} is given twice"),
        (("--upstream", f"{NOWHERE}/b", "--hold", "off"), "--hold off: several --upstream share"),
        (("--upstream", f"{NOWHERE}/b", "--probe"), "--probe looks at one server"),
    ],
)
def test_what_several_upstreams_cannot_be_is_said(given: tuple[str, ...], reason: str) -> None:
    """The same one twice, with nobody to hold their queue, or under the probe."""
    run = CliRunner().invoke(commands, ["gateway", "--upstream", NOWHERE, *given])

    assert isinstance(run.exception, ParsError)
    assert reason in str(run.exception)


def test_nothing_that_is_held_is_lost_at_the_end(tmp_path: Path) -> None:
    """SIGTERM while four of six requests are held: each has its answer before the process ends."""
    engine = Engine(slots=1)
    with (
        scripted_upstream(engine.serve) as upstream,
        ThreadPoolExecutor(6) as pool,
        started(tmp_path, "--upstream", upstream, "--state", "none", PARS_ENGINE="auto") as gateway,
    ):
        eventually(lambda: (now(gateway)["held"] or {}).get("slots") == 1)
        asked = [pool.submit(ask, gateway.url, "x") for _ in range(6)]
        eventually(lambda: now(gateway)["held"]["num_waiting"] == 4)
        gateway.process.terminate()
        engine.finish(6)
        assert [it.result().status_code for it in asked] == [200] * 6
        assert gateway.process.wait(DEADLINE_S) is not None


def now(gateway: Started) -> dict[str, Any]:
    page: dict[str, Any] = httpx.get(f"{gateway.url}/pars/now").json()
    return page


def test_who_waits_when_the_draining_is_over_is_told_to_come_again(tmp_path: Path) -> None:
    """An engine that never answers: a 503 in OpenAI's shape, and no traceback in the log."""
    engine, options = Engine(slots=1), ("--state", "none", "--drain-s", "1")
    with (
        scripted_upstream(engine.serve) as up,
        ThreadPoolExecutor(4) as pool,
        started(tmp_path, *options, "--upstream", up, PARS_ENGINE="auto") as gateway,
    ):
        eventually(lambda: (now(gateway)["held"] or {}).get("slots") == 1)
        asked = [pool.submit(ask, gateway.url, "x") for _ in range(4)]
        eventually(lambda: (now(gateway)["held"] or {}).get("num_waiting") == 2)
        gateway.process.terminate()
        answers = [it.result() for it in asked]
        gateway.process.wait(DEADLINE_S)
        assert [it.status_code for it in answers] == [503] * 4
        assert {it.json()["error"]["code"] for it in answers} == {"shutting_down"}
    assert "Traceback" not in gateway.log


def test_more_clients_than_the_soft_limit_on_files_are_served(tmp_path: Path) -> None:
    """Under a soft limit of 64, a hundred connections are open and each has its answer."""
    with (
        FakeEngine().served() as upstream,
        started(tmp_path, "--upstream", upstream, before="ulimit -Sn 64") as gateway,
        ExitStack() as stack,
    ):
        for _ in range(100):
            client = stack.enter_context(connect(gateway.url))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_head(client).startswith(b"HTTP/1.1 200 ")

    assert "the limit on open files is raised from 64 to " in gateway.log


@pytest.mark.parametrize(("most", "is_said"), [(300, False), (200, True)])
def test_a_hard_limit_below_the_connections_is_said(
    tmp_path: Path, most: int, is_said: bool
) -> None:
    """A hundred requests at once need 200 connections, and some files beside them."""
    options = ("--upstream", NOWHERE, "--max-connections", "100")
    with started(tmp_path, *options, before=f"ulimit -n {most}") as gateway:
        pass

    assert ("raise the hard limit" in gateway.log) is is_said
