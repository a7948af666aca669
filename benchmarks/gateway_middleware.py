"""
What `PriorityMiddleware` adds to a request, in one process and without HTTP.

A bare ASGI app that reads its body and answers is called with and without the middleware around it,
by turns, one request at a time and 32 at a time. Prompts come as JSON on stdin; the last line of
stdout is one JSON.

    python benchmarks/gateway_middleware.py RANKER SECONDS < prompts.json
"""

import asyncio
import json
import re
import sys
import time
from typing import Any

import uvloop
from prometheus_client import generate_latest

from gateway_load import request_bytes
from pars.serving.middleware import PriorityMiddleware
from pars.serving.settings import Settings

NUM_TASKS = 32
REQUESTS_A_TURN = 500
OUTCOME = re.compile(r'^pars_decisions_total{outcome="(\w+)"} (\S+)$', re.MULTILINE)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The app inside."""
    if scope["type"] == "lifespan":
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})
        return
    more_body = True
    while more_body:
        more_body = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class Asked:
    """One request: its body in one message, and nothing sent comes anywhere."""

    def __init__(self, body: bytes) -> None:
        self.message = {"type": "http.request", "body": body, "more_body": False}
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"host", b"bench"), (b"content-length", b"%d" % len(body))],
            "client": ("127.0.0.1", 50000),
        }

    async def receive(self) -> Any:
        return self.message

    async def send(self, message: Any) -> None:
        pass


async def took_s(app: Any, requests: list[Asked], num_tasks: int) -> list[float]:
    """Seconds of each request, with `num_tasks` of them in flight."""
    waiting = iter(requests)
    delays_s = []

    async def ask() -> None:
        for request in waiting:
            began_s = time.perf_counter()
            await app(request.scope, request.receive, request.send)
            delays_s.append(time.perf_counter() - began_s)

    await asyncio.gather(*[ask() for _ in range(num_tasks)])
    return delays_s


async def measure(
    app: PriorityMiddleware, prompts: list[str], seconds: float, num_tasks: int
) -> dict[str, float]:
    """Microseconds that the middleware adds: by quantile, and to the total time of each request."""
    requests = [Asked(request_bytes(p, stream=False).partition(b"\r\n\r\n")[2]) for p in prompts]
    apps: dict[str, Any] = {"bare": bare, "with": app}
    num_scored = scored(app)
    delays_s: dict[str, list[float]] = {name: [] for name in apps}
    total_s = dict.fromkeys(apps, 0.0)
    until_s = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < until_s:
        first = turn * REQUESTS_A_TURN
        some = [requests[(first + n) % len(requests)] for n in range(REQUESTS_A_TURN)]
        for name, called in apps.items():
            began_s = time.perf_counter()
            delays_s[name] += await took_s(called, some, num_tasks)
            total_s[name] += time.perf_counter() - began_s
        turn += 1
    ordered_us = {name: sorted(1e6 * s for s in times) for name, times in delays_s.items()}
    count = len(ordered_us["bare"])
    p50_us, p99_us = (
        ordered_us["with"][count * share // 100] - ordered_us["bare"][count * share // 100]
        for share in (50, 99)
    )
    each_us = 1e6 * (total_s["with"] - total_s["bare"]) / count
    return {
        "num_requests": count,
        "p50_us": p50_us,
        "p99_us": p99_us,
        "each_us": each_us,
        "scored": (scored(app) - num_scored) / count,
    }


def outcomes(page: str) -> dict[str, float]:
    """Requests by how their priority came about, from a page of Prometheus metrics."""
    return {name: float(value) for name, value in OUTCOME.findall(page)}


def scored(app: PriorityMiddleware) -> float:
    return outcomes(generate_latest(app.metrics.registry).decode())["scored"]


async def run(folder: str, seconds: float, prompts: list[str]) -> dict[str, Any]:
    app = PriorityMiddleware(bare, Settings(ranker=folder, engine="vllm"))
    stages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    has_started = asyncio.Event()

    async def told(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            has_started.set()

    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, stages.get, told))
    await stages.put({"type": "lifespan.startup"})
    await has_started.wait()
    result = {
        "alone": await measure(app, prompts, seconds / 2, 1),
        "together": await measure(app, prompts, seconds / 2, NUM_TASKS),
    }
    await stages.put({"type": "lifespan.shutdown"})
    await life
    return result


def main() -> None:
    folder, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(run(folder, float(seconds), json.loads(sys.stdin.readline())))))


if __name__ == "__main__":
    main()
