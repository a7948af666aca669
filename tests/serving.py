"""Real servers for tests, on free ports, and scorers whose answers are known beforehand."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

DEADLINE_S = 20.0


@contextmanager
def serve_in_thread(app: Any, **config: Any) -> Iterator[str]:
    """A base URL at which uvicorn serves `app` (ASGI), from a thread, while the block runs."""
    settings = {"port": 0, "log_level": "warning", "access_log": False, "ws": "none", **config}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + DEADLINE_S
    while not server.started:
        thread.join(timeout=0.005)
        if not thread.is_alive() or time.monotonic() > deadline_s:
            raise RuntimeError("the server did not start")
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=DEADLINE_S)
        assert not thread.is_alive(), "the server did not stop"


def eventually(condition: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
    """Return once `condition` holds; fail when it does not within the deadline."""
    deadline_s = time.monotonic() + within_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        pause.wait(0.005)


class LengthScorer:
    """A prompt's score is its number of characters. Remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def score(self, prompts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(prompts))
        return np.array([len(prompt) for prompt in prompts], dtype=np.float32)


class GatedScorer(LengthScorer):
    """A `LengthScorer` that stands still inside `score` until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()

    def score(self, prompts: Sequence[str]) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(DEADLINE_S), "the test never opened the gate"
        return super().score(prompts)


async def answered_lifespan(scope: Any, receive: Any, send: Any) -> bool:
    """Whether it was the server's start and end that were told, to which an app says yes."""
    if scope["type"] != "lifespan":
        return False
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})
    return True


async def whole_body(receive: Any) -> bytes:
    """A request's body, as far as it came."""
    content, more = b"", True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return content
