"""
An OpenAI-compatible server without a model: continuous batching as vLLM's, on the wall clock.

    pars fake-engine --engine h100-8b --port 8000

Every decision is `FastEngine`'s, every step takes as long as the preset's step model says, and
steps are slept to when they are *due*, so that being late does not add up. Answers are exactly
`max_tokens` long and make no sense; a prompt counts a token every four characters (or one each, as
token ids). For tests and benchmarks of what stands before an engine, where a real one is too heavy.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self

from pars.errors import ParsError
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.step_time import EnginePreset
from pars.prove.engine.stepping import Step, SteppedEngine
from pars.prove.fake_engine.bodies import Asked, Events, read, whole_answer
from pars.prove.fake_engine.metrics import FakeMetrics
from pars.request.body import Receive, Scope, Send
from pars.serving.replies import send_bytes, send_json

MAX_BODY_BYTES = 64 << 20
VLLM_VERSION = "0.32.0"  # whose decisions these are, and whose priority header is read


@dataclass(slots=True, eq=False)
class _Stream:
    """One request inside; `news` is set when a token came or it ended."""

    request_id: str
    num_prompt_tokens: int
    num_tokens: int
    arrived_s: float
    num_made: int = 0
    first_s: float | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def more_than(self, num_tokens: int) -> None:
        """Until there are more tokens than that."""
        while self.num_made <= num_tokens:
            self.news.clear()
            await self.news.wait()


class FakeEngine:
    """
    An ASGI app; lives as long as its server.

    Args:
        engine: Decides; nobody else may use it.
        step_s: How long a step takes.
        speed: Time runs this much faster.
        model: The name it serves.
    """

    def __init__(
        self,
        engine: SteppedEngine,
        step_s: Callable[[Step], float],
        *,
        speed: float = 1.0,
        model: str = "fake",
    ) -> None:
        if not speed > 0:
            raise ParsError(f"speed must be more than 0, not {speed}")
        self.model = model
        self._engine = engine
        self._step_s = step_s
        self._speed = speed
        self._streams: dict[str, _Stream] = {}
        self._running: dict[str, _Stream] = {}
        self._ids = itertools.count()
        self._has_work = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None
        self._num_running = self._num_waiting = 0
        self.metrics = FakeMetrics(model)

    @classmethod
    def of_preset(
        cls,
        preset: EnginePreset,
        *,
        scheduling_policy: str = "priority",
        max_num_seqs: int | None = None,
        speed: float = 1.0,
        model: str = "fake",
    ) -> Self:
        """The engine that a preset describes, with other options of vLLM's where they are given."""
        seqs = max_num_seqs or preset.limits.max_num_seqs
        limits = replace(preset.limits, scheduling_policy=scheduling_policy, max_num_seqs=seqs)
        return cls(FastEngine(limits), preset.step_time.of, speed=speed, model=model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._stepping = asyncio.create_task(self._step_for_ever())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._stepping.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    # The engine, one task

    async def _step_for_ever(self) -> None:
        """Steps while there is work; each ends when it is due, counted from the one before."""
        clock = asyncio.get_running_loop().time
        due_s = clock()
        while True:
            while not self._engine.has_work:
                self._has_work.clear()
                await self._has_work.wait()
                due_s = clock()
            step = self._engine.step()
            self._note_before(step)
            due_s += self._step_s(step) / self._speed
            await asyncio.sleep(max(0.0, due_s - clock()))
            self.metrics.note_late_s(clock() - due_s)
            self._note_after(step)

    def _note_before(self, step: Step) -> None:
        self._num_waiting = step.num_waiting
        self._num_running = step.num_running + len(step.finished)
        self.metrics.preemptions.inc(len(step.preempted))
        for request_id in step.preempted:
            self._running.pop(request_id, None)
        for request_id in step.admitted:
            if request_id in self._streams:
                self._running[request_id] = self._streams[request_id]

    def _note_after(self, step: Step) -> None:
        """Tokens are there at the step's end."""
        self._num_running -= len(step.finished)
        for request_id in step.finished:
            if stream := self._running.pop(request_id, None):
                del self._streams[request_id]
                self._made(stream, stream.num_tokens)
                self.metrics.ended(stream.num_prompt_tokens)
                self.metrics.e2e.observe(time.monotonic() - stream.arrived_s)
        for request_id, stream in self._running.items():
            self._made(stream, self._engine.num_output_tokens(request_id))

    def _made(self, stream: _Stream, num_tokens: int) -> None:
        if num_tokens <= stream.num_made:
            return
        if stream.first_s is None:
            stream.first_s = time.monotonic()
            self.metrics.ttft.observe(stream.first_s - stream.arrived_s)
        self.metrics.generated.inc(num_tokens - stream.num_made)
        stream.num_made = num_tokens
        stream.news.set()

    # HTTP

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.endswith(("/v1/completions", "/v1/chat/completions")):
            if scope["method"] != "POST":
                await _error(send, 405, f"{path} takes POST")
                return
            await self._generate(scope, receive, send)
        elif path.endswith("/v1/models"):
            model = {"id": self.model, "object": "model", "created": 0, "owned_by": "pars"}
            await send_json(send, 200, {"object": "list", "data": [model]})
        elif path == "/version":
            await send_json(send, 200, {"version": VLLM_VERSION, "engine": "pars fake-engine"})
        elif path == "/health":
            await send_bytes(send, 200, b"text/plain", b"")
        elif path == "/metrics":
            await send_bytes(send, 200, b"text/plain; version=0.0.4", self._metrics_page())
        else:
            await _error(send, 404, f"no such path: {path}")

    def _metrics_page(self) -> bytes:
        return self.metrics.page(self._num_running, self._num_waiting)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        try:
            asked = read(scope["path"], scope["headers"], body, self.model)
            stream = self._add(asked)
        except LookupError as error:
            await _error(send, 404, str(error.args[0]))
            return
        except (ParsError, ValueError) as error:
            await _error(send, 400, str(error))
            return
        answering = asyncio.create_task(self._answer(asked, stream, send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()  # nothing if it is done
            with suppress(asyncio.CancelledError):
                await answering
            self._forget(stream)

    def _add(self, asked: Asked) -> _Stream:
        """Raises ParsError for a request that could never fit."""
        number = next(self._ids)
        kind = "chatcmpl" if asked.is_chat else "cmpl"
        now_s = time.monotonic()
        stream = _Stream(f"{kind}-{number:09d}", asked.num_prompt_tokens, asked.num_tokens, now_s)
        self._engine.add(
            stream.request_id, asked.num_prompt_tokens, asked.num_tokens, asked.priority, now_s
        )
        self._streams[stream.request_id] = stream
        self._num_waiting += 1
        self._has_work.set()
        return stream

    def _forget(self, stream: _Stream) -> None:
        """Leave no trace of a request whose client is gone; nothing if it ended."""
        if self._streams.pop(stream.request_id, None):
            self._running.pop(stream.request_id, None)
            self._engine.abort(stream.request_id)
            if not self._engine.has_work:
                self._num_running = self._num_waiting = 0

    async def _answer(self, asked: Asked, stream: _Stream, send: Send) -> None:
        if asked.is_stream:
            await _stream_answer(asked, stream, send)
            return
        await stream.more_than(stream.num_tokens - 1)
        await send_json(send, 200, whole_answer(asked, stream.request_id))


async def _stream_answer(asked: Asked, stream: _Stream, send: Send) -> None:
    """An event a token; those made while nobody looked go out together."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    events = Events(asked, stream.request_id)
    num_sent = 0
    while num_sent < stream.num_tokens:
        await stream.more_than(num_sent)
        if num_sent == 0:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = events.opening if num_sent == 0 else b""
        num_new, num_sent = stream.num_made - num_sent, stream.num_made
        is_last = num_sent == stream.num_tokens
        body += events.token * (num_new - 1) + (events.last if is_last else events.token)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": events.end})


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False) or len(body) > MAX_BODY_BYTES:
            return bytes(body)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _error(send: Send, status: int, message: str) -> None:
    kind = "not_found" if status == 404 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": status}
    await send_json(send, status, {"error": error})
