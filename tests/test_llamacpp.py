"""In front of a real llama.cpp, which has no priorities: the order is ours, on one and on two."""

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import gateway_to
from pars.serving.gateway import Gateway

from engine import ROOT, free_port, wait_until
from serving import eventually

pytestmark = [pytest.mark.llamacpp, pytest.mark.timeout(300)]
PATH = "/v1/chat/completions"
# A prompt is expected to take as many tokens as it has characters; the real answers are short.
CHOSEN = {"engine": "auto", "max_overtake_s": float("inf"), "learn": "off", "drift": False}
CHOSEN |= {"obey_limits": False}


@contextmanager
def llama(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of one slot, and its process."""
    port = free_port()
    words = [ROOT / ".llamacpp/bin/python", ROOT / "engine/llamacpp/serve.py", port, 1]
    with (folder / f"llama-{port}.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_up(url), f"answer of llama.cpp ({log.name})", 60)
        yield url, process
    finally:
        process.kill()
        process.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@contextmanager
def before(urls: list[str], folder: Path) -> Iterator[tuple[str, Gateway]]:
    opened = gateway_to(urls, folder, settings=CHOSEN, pauses_s=(0.05, 0.2))
    with opened as (url, app):
        eventually(lambda: all(it.slots.source == "the engine" for it in app.queue.replicas))
        yield url, app


class Asked:
    """Requests in threads; `begun` gets their names as their first bytes come."""

    def __init__(self, url: str, pool: ThreadPoolExecutor) -> None:
        self.begun: list[str] = []
        self._url = url
        self._pool = pool

    def ask(self, name: str, prompt: str, *, num_tokens: int, until: Any = None) -> Any:
        """Its status, once its answer is whole, or `until` is set."""
        body = {
            "messages": [{"role": "user", "content": prompt}],
            **{"max_tokens": num_tokens, "stream": True, "ignore_eos": True},
        }

        def run() -> int:
            with httpx.stream("POST", self._url + PATH, json=body, timeout=60) as answer:
                for piece in answer.iter_raw():
                    if piece and name not in self.begun:
                        self.begun.append(name)
                    if until is not None and until.is_set():
                        break
                return answer.status_code

        return self._pool.submit(run)


def test_short_requests_begin_first(tmp_path: Path) -> None:
    """Six that wait for one slot begin in the order of what is expected of them."""
    with ExitStack() as stack:
        up, _ = stack.enter_context(llama(tmp_path))
        url, app = stack.enter_context(before([up], tmp_path))
        asked = Asked(url, stack.enter_context(ThreadPoolExecutor(10)))
        assert app.queue.replicas[0].slots.num == 1
        may_end = threading.Event()
        first = [asked.ask(f"f{at}", "a", num_tokens=900, until=may_end) for at in range(2)]
        eventually(lambda: app.queue.num_sent == 2)
        lengths = [60, 20, 50, 10, 40, 30]
        later = [asked.ask(str(it), "a" * it, num_tokens=4) for it in lengths]
        eventually(lambda: app.queue.num_waiting == 6)
        may_end.set()
        assert [it.result() for it in first + later] == [200] * 8
    assert [it for it in asked.begun if it.isdigit()] == [str(it) for it in sorted(lengths)]


def test_a_client_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    """An answer of a thousand tokens is left: those that wait begin at once."""
    with ExitStack() as stack:
        up, _ = stack.enter_context(llama(tmp_path))
        url, app = stack.enter_context(before([up], tmp_path))
        asked = Asked(url, stack.enter_context(ThreadPoolExecutor(10)))
        may_end = threading.Event()
        asked.ask("long", "a", num_tokens=900, until=may_end)
        eventually(lambda: "long" in asked.begun)
        later = [asked.ask(str(at), "a", num_tokens=4) for at in range(3)]
        eventually(lambda: app.queue.num_waiting == 2)
        assert asked.begun == ["long"]
        may_end.set()
        assert [it.result() for it in later] == [200] * 3
        eventually(lambda: app.queue.num_sent == 0)


def test_one_of_two_servers_dies_and_no_request_that_waits_is_lost(tmp_path: Path) -> None:
    """What it had begun breaks off; what waited, here or in its own queue, the other answers."""
    with ExitStack() as stack:
        servers = [stack.enter_context(llama(tmp_path)) for _ in range(2)]
        url, app = stack.enter_context(before([up for up, _ in servers], tmp_path))
        asked = Asked(url, stack.enter_context(ThreadPoolExecutor(16)))
        may_end = threading.Event()
        long = [asked.ask(f"long{at}", "a", num_tokens=900, until=may_end) for at in range(2)]
        eventually(lambda: len(asked.begun) == 2)
        later = [asked.ask(str(at), "a", num_tokens=4) for at in range(8)]
        eventually(lambda: app.queue.num_waiting == 6)
        servers[0][1].kill()
        eventually(lambda: app.queue.replicas[0].problem != "")
        may_end.set()
        assert [it.result() for it in later] == [200] * 8
        broken = [it for it in long if it.exception() is not None]
        assert [type(it.exception()) for it in broken] == [httpx.RemoteProtocolError]
