"""The gateway's page says in one sentence what the order is worth, in a real browser."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import gateway_to
from pars.serving.gateway import Gateway

from fake_engine import FakeEngine
from serving import eventually

KEY = "sk-page"
WIDTHS = {"wide": "1000,1400", "phone": "420,2000"}


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[tuple[str, Gateway]]:
    """A gateway behind which an engine with one slot answered forty requests, long ones first."""
    with (
        FakeEngine(num_slots=1, token_s=0.001).served() as engine,
        gateway_to(engine, tmp_path, settings={"state": "none", "holdout": "5%"}) as (url, app),
    ):

        def ask(tokens: int) -> None:
            body = {"prompt": "x" * tokens, "max_tokens": tokens, "stream": True}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
            answer.raise_for_status()

        with ThreadPoolExecutor(40) as pool:
            list(pool.map(ask, [100] * 8 + [2] * 32))
        eventually(lambda: (now(url)["worth"]["gain"] or {}).get("num_requests") == 40)
        yield url, app


def now(url: str, **headers: str) -> Any:
    return httpx.get(f"{url}/pars/now", headers=headers, trust_env=False).json()


def test_programs_get_what_the_page_shows(loaded: tuple[str, Gateway]) -> None:
    """The last hour by minutes, who waits, the bound in words."""
    told = now(loaded[0])

    assert len(told["worth"]["minutes"]) == 60
    assert (told["worth"]["num_waiting"], told["held"]) == (0, None)
    assert told["policy"] == "overtaken only within 30 s"
    assert told["worth"]["gain"]["num_requests"] == 40


def test_strangers_see_nothing_of_it(tmp_path: Path) -> None:
    """Where keys are asked for, the page is the same for all, and its figures want one."""
    with (
        FakeEngine().served() as engine,
        gateway_to(engine, tmp_path, settings={"api_keys": KEY, "state": "none"}) as (url, _),
    ):
        assert httpx.get(f"{url}/pars/", trust_env=False).status_code == 200
        assert httpx.get(f"{url}/pars/now", trust_env=False).status_code == 401
        assert now(url, authorization=f"Bearer {KEY}")["worth"]["gain"] is None


def test_the_page_is_found_without_its_last_slash(tmp_path: Path) -> None:
    """Also behind a proxy that puts something in front of the path: the way there is relative."""
    with FakeEngine().served() as upstream, gateway_to(upstream, tmp_path) as (url, _):
        answer = httpx.get(f"{url}/pars", trust_env=False)
        page = httpx.get(f"{url}/pars", trust_env=False, follow_redirects=True)
    assert (answer.status_code, answer.headers["location"]) == (308, "pars/")
    assert page.url.path == "/pars/"
    assert "<html" in page.text


def test_the_page_asks_nobody_else(tmp_path: Path) -> None:
    """One file, and a policy that lets it load nothing from anywhere."""
    with FakeEngine().served() as engine, gateway_to(engine, tmp_path) as (url, _):
        page = httpx.get(f"{url}/pars/", trust_env=False)

    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)


def test_openmetrics_bring_request_ids(loaded: tuple[str, Gateway]) -> None:
    """Who asks for OpenMetrics gets them as exemplars; Prometheus's old format has none."""
    url = loaded[0]
    body = {"prompt": "x", "max_tokens": 2, "stream": True}
    named = {"x-request-id": "the-slow-one"}
    httpx.post(f"{url}/v1/completions", json=body, headers=named, trust_env=False)
    kind = {"accept": "application/openmetrics-text; version=1.0.0"}

    def shown() -> str:
        return httpx.get(f"{url}/pars/metrics", headers=kind, trust_env=False).text

    eventually(lambda: 'request_id="the-slow-one"' in shown())
    assert shown().endswith("# EOF\n")
    assert "# EOF" not in httpx.get(f"{url}/pars/metrics", trust_env=False).text


def chromium(*arguments: str) -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "Chromium is missing: apt-get install chromium"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = [
        found,
        *quiet,
        "--disable-component-update",
        "--virtual-time-budget=3000",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.monitoring
def test_a_browser_shows_what_the_order_is_worth(loaded: tuple[str, Gateway]) -> None:
    """The sentence, the tiles and the lines are drawn from the server's own figures."""
    url = loaded[0]
    told = now(url)["worth"]["gain"]

    shown = chromium("--dump-dom", f"{url}/pars/")

    headline = re.search(r'id="headline">([^<]*)<', shown)
    assert headline is not None
    assert "than first come, first served" in headline[1] or "as long" in headline[1]
    assert f"{told['num_requests']:,} answers" in headline[1]
    assert shown.count('class="figure"') == 6
    assert shown.count("<path d=") >= 4
    assert "overtaken only within 30 s" in shown
    assert "held out, 5.0% of the time" in shown


@pytest.mark.monitoring
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window(loaded: tuple[str, Gateway], tmp_path: Path, width: str) -> None:
    """On a desk and on a phone; the picture is there to be looked at."""
    picture = tmp_path / f"{width}.png"
    size = WIDTHS[width]
    chromium(f"--window-size={size}", f"--screenshot={picture}", f"{loaded[0]}/pars/")

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
