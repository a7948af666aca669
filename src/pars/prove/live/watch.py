"""
What a bench looks at while requests run: the engine's queue, and its own standstills.

    async with EngineWatch(client, clock) as watch, stalls_s() as stalls:
        ...                                  # watch.samples, max(stalls)

The engine is looked at a few times a second through its /metrics, by vLLM's or SGLang's names; one
that has no such page, or loses it, is not looked at.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

from pars.doctor.metrics_page import PREEMPTIONS, RUNNING, WAITING, MetricsPage
from pars.prove.live.live import Client
from pars.prove.report.times import QueueSample
from pars.serving.answer import UpstreamError

EVERY_S = 0.25
PATIENCE_S = 30.0  # a busy server answers late, and is still worth looking at


async def metrics_of(client: Client, path: str = "/metrics") -> str:
    """The page; empty where there is none."""
    with suppress(UpstreamError):
        status, body = await client.get(path, timeout_s=PATIENCE_S)
        if status == 200:
            return body.decode(errors="replace")
    return ""


class EngineWatch:
    """
    Looks at the engine until the block ends.

    Attributes:
        samples: So far; preemptions count from the first look.
    """

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self.samples: list[QueueSample] = []
        self._client = client
        self._clock = clock
        self._first: float | None = None
        self._watching: asyncio.Task[None] | None = None

    async def look(self) -> bool:
        """Take a sample; False if the engine does not tell."""
        page = MetricsPage.parse(await metrics_of(self._client))
        running, waiting = page.total(*RUNNING), page.total(*WAITING)
        if running is None or waiting is None:
            return False
        preemptions = page.total(*PREEMPTIONS) or 0.0
        self._first = preemptions if self._first is None else self._first
        since_first = int(preemptions - self._first)
        self.samples.append(QueueSample(self._clock(), int(running), int(waiting), since_first))
        return True

    async def __aenter__(self) -> Self:
        if await self.look():
            self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            if kind is None:  # Ctrl-C does not wait for a busy server
                await self.look()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if not await self.look():
                return


@asynccontextmanager
async def stalls_s() -> AsyncIterator[list[float]]:
    """How much too late each pause of 10 ms in the block ended: this client's own standstills."""
    late_s = [0.0]

    async def watch() -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(0.01)
            late_s.append(time.perf_counter() - before_s - 0.01)

    watching = asyncio.create_task(watch())
    try:
        yield late_s
    finally:
        watching.cancel()
