"""
Finds out whether an upstream admits requests by priority, which no engine tells over HTTP.

    pars gateway --upstream URL --probe

It fills every slot with streams, so that a queue forms; then sends four long requests with a late
priority and, after them, four short ones with an early priority; then frees one slot at a time and
watches in which order the eight begin. By priority the last four come first; else they come last.
(Long and short, so that it works through a `PriorityMiddleware` too, which drops the priorities.)
It takes some seconds of the whole server: run it before the traffic comes, not during.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pars.errors import ParsError
from pars.scheduling.engines import ENGINES, PRIORITY_HEADER, Engine
from pars.scheduling.keys import EPOCH_S
from pars.serving.answer import Answer, UpstreamError
from pars.serving.engine_watch import NotTold, ask_engine
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

MAX_BLOCKERS = 2048
BLOCKER_TOKENS = 4096  # where the upstream does not tell how many it takes
MOST_BLOCKER_TOKENS = 65_536  # a small model makes 1,000 a second, and must not end meanwhile
LATE_TOKENS = 256
NUM_PER_SIDE = 4
PATIENCE_S = 3.0


NUM_TRIES = 3  # a request of somebody else that ends or begins in between spoils a try


class ProbeError(ParsError):
    """The probe came to no result, or to a bad one."""


class PriorityRefused(ProbeError):
    """The engine refused a request for its priority."""


class BusyError(ProbeError):
    """Other traffic spoiled a try; the next one may find the upstream idle."""


@dataclass(eq=False)
class _Stream:
    """One request of the probe; `started` is set by the first byte of its answer's body."""

    request: Awaitable[Answer]
    frees_its_slot: bool  # once it has begun
    started: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Task[None] | None = None

    async def read(self, order: list["_Stream"]) -> None:
        with await self.request as answer:
            piece = await answer.read()
            text = piece[:200].decode(errors="replace")
            is_error = answer.status != 200 or '"error"' in text
            if is_error and "priority" in text.lower():
                raise PriorityRefused(f"the upstream REFUSES priorities: {answer.status} {text}")
            if answer.status != 200:
                told = f"{answer.status} {text}"
                raise ProbeError(f"the upstream refused the probe's request: {told}")
            order.append(self)
            self.started.set()
            while not (answer.is_finished or self.frees_its_slot):
                await answer.read()

    def leave(self) -> None:
        """Close its connection, so that the upstream forgets it."""
        if self.reading is not None:
            self.reading.cancel()


class Probe:
    """
    One probe of one upstream.

    Args:
        patience_s: A stream that has not begun after this long is waiting for a slot.
    """

    def __init__(
        self, upstream: Upstream, engine: Engine, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._upstream = upstream
        self._sign = -1 if engine.larger_first else 1
        self._now = int((time.time() - EPOCH_S) * 1e6)
        self._patience_s = patience_s
        self._order: list[_Stream] = []  # of this try, like the next one
        self._streams: list[_Stream] = []
        self._model = ""
        self._blocker_tokens = BLOCKER_TOKENS

    async def obeys_priority(self) -> bool:
        """
        Whether the upstream admits by priority.

        Raises:
            ProbeError: it could not be told, and why.
            UpstreamError: the upstream does not answer.
        """
        await self._ask_model()
        for _ in range(NUM_TRIES - 1):
            with suppress(BusyError):
                return await self._try()
            await asyncio.sleep(self._patience_s)
        return await self._try()

    async def _try(self) -> bool:
        self._order, self._streams = [], []
        try:
            blockers = await self._fill()
            late = [
                await self._send(LATE_TOKENS, self._now + 60_000_000) for _ in range(NUM_PER_SIDE)
            ]
            early = [await self._send(1, self._now) for _ in range(NUM_PER_SIDE)]
            await asyncio.sleep(self._patience_s / 4)
            if any(it.started.is_set() for it in late + early):
                raise BusyError("a slot fell free by itself: the upstream is busy; probe it idle")
            await self._free_until_done(blockers, late + early)
            place = {stream: index for index, stream in enumerate(self._order)}
            num_early_first = sum(place[e] < place[it] for e in early for it in late)
            return self._verdict(num_early_first / NUM_PER_SIDE**2)
        finally:
            await self._stop()

    def _verdict(self, share_early_first: float) -> bool:
        if 0.2 < share_early_first < 0.8:
            raise BusyError(
                "the eight requests began in mixed order: several queues (data parallel ranks,"
                " replicas) or other traffic; probe one replica, idle"
            )
        return share_early_first >= 0.8

    async def _ask_model(self) -> None:
        """Which model there is, and how long an answer it takes."""
        status, body = await self._upstream.get(b"/v1/models")
        try:
            model = json.loads(body)["data"][0]
            self._model = str(model["id"])
        except (ValueError, LookupError, TypeError):
            raise ProbeError(
                f"/v1/models names no model (status {status}; a key goes into PARS_API_KEYS)"
            ) from None
        most = model.get("max_model_len")  # vLLM's and SGLang's word for prompt and answer
        if isinstance(most, int) and most > 1:
            self._blocker_tokens = min(most // 2, MOST_BLOCKER_TOKENS)

    async def _fill(self) -> list[_Stream]:
        """Streams that hold every slot."""
        blockers: list[_Stream] = []
        while len(blockers) < MAX_BLOCKERS:
            wave = [
                await self._send(self._blocker_tokens, self._now - 60_000_000, is_blocker=True)
                for _ in range(max(1, len(blockers)))
            ]
            blockers += wave
            await self._wait_for(wave)
            waiting = [it for it in wave if not it.started.is_set()]
            if waiting:
                for it in waiting:
                    it.leave()
                await asyncio.sleep(self._patience_s / 4)
                return [it for it in blockers if it.started.is_set()]
        raise ProbeError(f"{MAX_BLOCKERS} streams run at once and none waits: no queue to observe")

    async def _free_until_done(self, blockers: list[_Stream], probes: list[_Stream]) -> None:
        """Free slots one by one until every probe began."""
        while any(not it.started.is_set() for it in probes):
            if not blockers:
                raise ProbeError("the waiting requests never began")
            blockers.pop().leave()
            await self._wait_for(probes)

    async def _wait_for(self, streams: Iterable[_Stream]) -> None:
        """Until all have begun, or patience ends; raises what a stream raised."""
        streams = list(streams)
        waits = [asyncio.create_task(it.started.wait()) for it in streams]
        reads = [it.reading for it in streams if it.reading is not None]
        try:
            async with asyncio.timeout(self._patience_s):
                await asyncio.gather(*waits)
        except TimeoutError:
            for read in reads:
                error = read.exception() if read.done() and not read.cancelled() else None
                if error is not None:
                    raise error from None
        finally:
            for wait in waits:
                wait.cancel()

    async def _send(self, num_tokens: int, priority: int, *, is_blocker: bool = False) -> _Stream:
        value = self._sign * priority
        body: dict[str, Any] = {"model": self._model, "prompt": "Count from one to a million:"}
        body |= {"max_tokens": num_tokens, "stream": True, "ignore_eos": True, "priority": value}
        content = json.dumps(body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (PRIORITY_HEADER, b"%d" % value),
            *key_header(),
        ]
        sent = asyncio.get_running_loop().create_future()
        request = self._upstream.ask(
            "POST",
            b"/v1/completions",
            headers,
            content,
            on_connect=lambda: sent.set_result(None),
        )
        stream = _Stream(request, frees_its_slot=not is_blocker)
        stream.reading = asyncio.create_task(stream.read(self._order))
        self._streams.append(stream)
        await asyncio.wait((sent, stream.reading), return_when=asyncio.FIRST_COMPLETED)
        if not sent.done():
            stream.reading.result()  # raises what kept it from being sent
        return stream

    async def _stop(self) -> None:
        for stream in self._streams:
            stream.leave()
        reads = [it.reading for it in self._streams if it.reading is not None]
        await asyncio.gather(*reads, return_exceptions=True)


def key_header() -> list[tuple[bytes, bytes]]:
    """Where PARS_API_KEYS has a key, the header that shows the first one."""
    key = os.environ.get("PARS_API_KEYS", "").split(",")[0].strip()
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


def run_probe(upstream: Upstream, settings: Settings) -> str:
    """
    A line that says the upstream schedules by priority.

    Raises:
        ProbeError: it does not, or it could not be told.
    """
    return asyncio.run(_run(upstream, settings))


async def _run(upstream: Upstream, settings: Settings) -> str:
    try:
        async with upstream:
            engine = ENGINES.get(settings.engine) or (await ask_engine(upstream)).engine
            obeys = await Probe(upstream, engine).obeys_priority()
    except (NotTold, UpstreamError) as error:
        raise ProbeError(f"{upstream.url}: {error}") from error
    if not obeys:
        raise ProbeError(
            f"{upstream.url} IGNORES priorities: it admitted first come, first served. vLLM needs"
            " --scheduling-policy priority, SGLang --enable-priority-scheduling"
        )
    return f"{upstream.url} schedules by priority (set as for {engine.name})"
