"""
What following requests to their ends costs the middleware: CPU time a request and a streamed event.

A bare ASGI app streams answers as vLLM does, in one process and without HTTP, behind middlewares
that differ in nothing but what they keep; they take turns, and of each the best turn counts. The
last line of stdout is one JSON.

    python benchmarks/recording_cost.py [--seconds 30]
"""

import argparse
import asyncio
import json
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from pars.outcomes.metrics import ServeMetrics
from pars.serving.middleware import PriorityMiddleware
from pars.serving.settings import Settings

REQUESTS_A_TURN = 200
MANY_EVENTS = 200
PROMPT = "Tell me how a lighthouse works, and who looks after it. " * 4
EVENT = (
    b'data: {"id":"cmpl-bd2f763edc89280b","object":"text_completion","created":1795534768,'
    b'"model":"m","choices":[{"index":0,"text":" the","logprobs":null,"finish_reason":null,'
    b'"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'
)
LAST = EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
KEPT: dict[str, dict[str, Any]] = {
    "nothing": {"drift": False},
    "drift": {},
    "drift and outcomes": {"outcomes": True},
    "and their prompts": {"outcomes": True, "outcome_prompts": True},
}


def answering(num_events: int) -> Callable[..., Awaitable[None]]:
    """An app whose answers have so many events."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for _ in range(num_events - 1):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": LAST, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


async def cpu_us(app: PriorityMiddleware) -> float:
    """Microseconds of the process's CPU time a request."""
    body = json.dumps({"model": "m", "prompt": PROMPT, "stream": True}).encode()
    message = {"type": "http.request", "body": body, "more_body": False}
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}

    async def receive() -> Any:
        return message

    async def send(message: Any) -> None:
        pass

    began_s = time.process_time()
    for _ in range(REQUESTS_A_TURN):
        await app(scope, receive, send)
    return 1e6 * (time.process_time() - began_s) / REQUESTS_A_TURN


@asynccontextmanager
async def running(folder: Path, num_events: int, settings: dict[str, Any]) -> Any:
    """A middleware between start-up and shutdown."""
    chosen = settings | ({"outcomes": str(folder)} if "outcomes" in settings else {})
    app = PriorityMiddleware(
        answering(num_events),
        Settings(engine="vllm", budget_ms=1000, max_wait_ms=1000, **chosen),
        metrics=ServeMetrics(CollectorRegistry()),
    )
    stages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    has_started = asyncio.Event()

    async def told(message: Any) -> None:
        has_started.set()

    life = asyncio.create_task(app({"type": "lifespan"}, stages.get, told))
    await stages.put({"type": "lifespan.startup"})
    await has_started.wait()
    yield app
    await stages.put({"type": "lifespan.shutdown"})
    await life


async def measure(folder: Path, num_events: int, seconds: float) -> dict[str, float]:
    """For each of KEPT, the CPU time of a request in its best turn."""
    async with AsyncExitStack() as stack:
        apps = {
            name: await stack.enter_async_context(running(folder / name, num_events, settings))
            for name, settings in KEPT.items()
        }
        best = dict.fromkeys(KEPT, float("inf"))
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for name, app in apps.items():
                best[name] = min(best[name], await cpu_us(app))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds / 2
    with tempfile.TemporaryDirectory() as folder:
        few = uvloop.run(measure(Path(folder), 1, seconds))
        many = uvloop.run(measure(Path(folder), MANY_EVENTS, seconds))
    print(f"CPU time of the middleware, {platform.machine()}; of the bundled ranker too")
    print(f"  {'kept':<20} {'us a request':>13} {'added':>6} {'us an event':>12}")
    rows = {}
    for name, request_us in few.items():
        rest_us = (many[name] - request_us) - (many["nothing"] - few["nothing"])
        rows[name] = {
            "request_us": request_us,
            "added_us": request_us - few["nothing"],
            "event_us": rest_us / (MANY_EVENTS - 1),
        }
        print("  {:<20} {:>13.0f} {:>6.0f} {:>12.2f}".format(name, *rows[name].values()))
    print(json.dumps({"kept": rows, "num_events": MANY_EVENTS}))


if __name__ == "__main__":
    main()
