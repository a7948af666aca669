"""The alerts and the board ask for metrics that there are, and mean what they say."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import gateway_to
from pars.serving.gateway import Gateway
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine

FOLDER = Path(__file__).parent.parent / "deploy/monitoring"
METRIC = re.compile(r"\bpars_\w+")
SUFFIXES = ("_bucket", "_sum", "_count", "_total")


def board_queries() -> list[str]:
    board = json.loads((FOLDER / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def with_everything(folder: Path) -> dict[str, Any]:
    """Settings under which a gateway has all its metrics: two tenants, and a holdout."""
    file = folder / "tenants.toml"
    file.write_text('header = "x-tenant"\n[tenants.one]\nweight = 3\n[tenants.two]\n')
    bound = {"max_slowdown": 1.5, "max_overtake_s": float("-inf")}
    return {**bound, "state": "none", "tenants": str(file), "holdout": "50%"}


def known_metrics(folder: Path) -> set[str]:
    gateway = Gateway(Upstream("http://127.0.0.1:1"), Settings(**with_everything(folder)))
    return {family.name for family in gateway.registry.collect()}


def asked_metrics(text: str) -> set[str]:
    """Without what Prometheus adds to a metric's name."""
    found = set(METRIC.findall(text))
    return {
        next((it.removesuffix(end) for end in SUFFIXES if it.endswith(end)), it) for it in found
    }


def test_alerts_and_board_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    """A renamed metric would leave an alert that never fires, and a panel that stays empty."""
    rules = "\n".join(
        line
        for line in (FOLDER / "pars.rules.yml").read_text().splitlines()
        if "action:" not in line
    )

    assert asked_metrics(rules) | asked_metrics(" ".join(board_queries())) <= known_metrics(
        tmp_path
    )


def test_the_board_is_what_its_script_makes() -> None:
    """Nobody edits the JSON by hand."""
    spec = importlib.util.spec_from_file_location("board", FOLDER / "board.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert json.loads((FOLDER / "grafana.json").read_text()) == module.board()


def test_each_alert_is_tested() -> None:
    """pars.rules.test.yml names every one."""
    alerts = re.findall(r"alert: (\w+)", (FOLDER / "pars.rules.yml").read_text())
    tested = re.findall(r"alertname: (\w+)", (FOLDER / "pars.rules.test.yml").read_text())

    assert set(alerts) == set(tested)


@pytest.mark.monitoring
def test_each_alert_fires_when_it_should_and_not_else() -> None:
    """promtool holds them against series that are right and series that are wrong."""
    assert shutil.which("promtool"), "promtool is missing: apt-get install prometheus"
    for command in (["check", "rules", "pars.rules.yml"], ["test", "rules", "pars.rules.test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A real one that scrapes `target` every second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "pars",
                "metrics_path": "/pars/metrics",
                "static_configs": [{"targets": [target.removeprefix("http://")]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.monitoring
def test_every_query_of_the_board_returns_data(tmp_path: Path) -> None:
    """From a real Prometheus that scrapes a gateway with a queue behind it."""
    assert shutil.which("prometheus"), "prometheus is missing: apt-get install prometheus"
    settings = with_everything(tmp_path) | {"hold": "on", "slots": 2, "max_held": 60}
    with (
        FakeEngine(num_slots=2, token_s=0.002).served() as engine,
        gateway_to(engine, tmp_path, settings=settings) as (
            url,
            app,
        ),
        prometheus(tmp_path, url) as asked,
    ):
        del app
        stop = threading.Event()

        def keep_asking(number: int) -> None:
            while not stop.is_set():
                body = {"prompt": "word " * (number + 1), "stream": True, "model": f"m{number % 3}"}
                body["max_tokens"] = number + 1
                named = {"x-tenant": ("one", "two", "nobody")[number % 3]}
                to = f"{url}/v1/completions"
                httpx.post(to, json=body, headers=named, timeout=60, trust_env=False)

        with ThreadPoolExecutor(64) as pool:
            for number in range(64):
                pool.submit(keep_asking, number)
            try:
                queries = [expression(query) for query in board_queries()]
                deadline_s = time.monotonic() + 60
                empty = queries
                while empty and time.monotonic() < deadline_s:
                    stop.wait(1)
                    empty = [query for query in empty if not points(asked, query)]
                assert empty == []
            finally:
                stop.set()


def expression(query: str) -> str:
    """As Grafana fills it in."""
    return (
        query.replace("$__rate_interval", "10s")
        .replace('"$job"', '".*"')
        .replace('"$instance"', '".*"')
    )


def points(prometheus_url: str, query: str) -> list[Any]:
    """What an instant query returns."""
    try:
        answer = httpx.get(
            f"{prometheus_url}/api/v1/query", params={"query": query}, trust_env=False
        ).json()
    except httpx.TransportError:
        return []
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])
