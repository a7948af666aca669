"""
A small OpenAI-compatible upstream with slots and a priority queue, on a real socket.

    engine = FakeEngine(num_slots=1, token_s=0.001)
    with engine.served() as url: ...

It admits like vLLM: a free slot goes to the waiting request with the smallest (priority, arrival);
nothing that runs is put back. The answer to a request is `max_tokens` tokens (16 if it does not
say), one SSE event a token when streamed. It remembers what it was asked and in which order it
admitted and finished. The request's `user` field names it there.

Stand-alone, for benchmarks (no tokens, answers at once): python tests/fake_engine.py PORT
"""

import asyncio
import heapq
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DEFAULT_TOKENS = 16


@dataclass(slots=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    priority: int

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class FakeEngine:
    """
    Attributes:
        obeys_priority: False admits first come, first served, as vLLM does by default.
        token_s: Seconds per token; 0 answers at once.
    """

    num_slots: int = 1
    token_s: float = 0.0
    obeys_priority: bool = True
    version: str = "0.32.0"
    remembers: bool = True
    asked: list[Asked] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    num_running: int = 0
    num_aborted: int = 0
    _queue: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def served(self) -> Iterator[str]:
        """The engine's base URL while the block runs."""
        from serving import serve_in_thread

        with serve_in_thread(self) as url:
            yield url

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        asked = _asked(scope, body)
        if self.remembers:
            self.asked.append(asked)
        if scope["path"].endswith(("/completions", "/responses", "/messages")):
            await self._generate(asked, receive, send)
        else:
            await self._page(scope, asked, send)

    async def _page(self, scope: Any, asked: Asked, send: Any) -> None:
        pages = {
            "/health": b"",
            "/version": json.dumps({"version": self.version}).encode(),
            "/v1/models": b'{"object":"list","data":[{"id":"fake","object":"model","created":0,'
            b'"owned_by":"pars"}]}',
        }
        if scope["path"] == "/echo":
            await _reply(send, 200, asked.body, content_type=b"application/octet-stream")
        elif scope["path"] in pages:
            await _reply(send, 200, pages[scope["path"]])
        else:
            await _reply(send, 404, _error(f"no such path: {scope['path']}", "not_found"))

    async def _generate(self, asked: Asked, receive: Any, send: Any) -> None:
        try:
            request = asked.json()
            is_chat = "messages" in request
            assert is_chat or "prompt" in request or "input" in request
        except (ValueError, AssertionError, TypeError):
            await _reply(send, 400, _error("want a prompt or messages", "invalid_request_error"))
            return
        gone = asyncio.create_task(_until_gone(receive))
        work = asyncio.create_task(self._serve(asked, request, send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.num_aborted += 1
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        finally:
            gone.cancel()

    async def _serve(self, asked: Asked, request: dict[str, Any], send: Any) -> None:
        await self._slot(asked.priority)
        name = str(request.get("user", len(self.admitted)))
        self._note(self.admitted, name)
        try:
            num_tokens = request.get("max_tokens") or request.get("max_completion_tokens")
            num_tokens = num_tokens or DEFAULT_TOKENS
            if request.get("stream"):
                await self._stream(request, num_tokens, send)
            else:
                if self.token_s:
                    await asyncio.sleep(num_tokens * self.token_s)
                await _reply(send, 200, _whole(request, num_tokens))
            self._note(self.finished, name)
        finally:
            self._free_slot()

    def _note(self, names: list[str], name: str) -> None:
        if self.remembers:
            names.append(name)

    async def _slot(self, priority: int) -> None:
        if self.num_running < self.num_slots:
            self.num_running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        entry = (priority if self.obeys_priority else 0, next(self._count), turn)
        heapq.heappush(self._queue, entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free_slot()
            elif entry in self._queue:
                self._queue.remove(entry)
                heapq.heapify(self._queue)
            raise

    def _free_slot(self) -> None:
        while self._queue:
            turn = heapq.heappop(self._queue)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self.num_running -= 1

    async def _stream(self, request: dict[str, Any], num_tokens: int, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index in range(num_tokens):
            event = b"data: " + json.dumps(_piece(request, index)).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(self.token_s)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _asked(scope: Any, body: bytes) -> Asked:
    headers = list(scope["headers"])
    priority: Any = dict(headers).get(b"x-vllm-priority")
    if priority is None:
        try:
            priority = json.loads(body).get("priority", 0)
        except (ValueError, AttributeError):
            priority = 0
    query = scope["query_string"]
    raw_path = scope["raw_path"].decode("ascii")
    return Asked(scope["method"], raw_path, query, headers, body, int(priority))


async def _reply(
    send: Any, status: int, body: bytes, content_type: bytes = b"application/json"
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()


def _whole(request: dict[str, Any], num_tokens: int) -> bytes:
    text = " ".join(["tok"] * num_tokens)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "text": text}
    kind = "text_completion"
    if "messages" in request:
        kind = "chat.completion"
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if request.get("tools"):
            function = {"name": request["tools"][0]["function"]["name"], "arguments": "{}"}
            call = {"id": "call_1", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}
    answer = {"id": "fake-1", "object": kind, "created": 0, "model": "fake", "choices": [choice]}
    return json.dumps({**answer, "usage": usage, "user": request.get("user")}).encode()


def _piece(request: dict[str, Any], index: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": None, "text": f"tok{index} "}
    kind = "text_completion"
    if "messages" in request:
        kind = "chat.completion.chunk"
        choice = {"index": 0, "finish_reason": None, "delta": {"content": f"tok{index} "}}
    return {"id": "fake-1", "object": kind, "created": 0, "model": "fake", "choices": [choice]}


if __name__ == "__main__":
    import uvicorn

    fast = FakeEngine(num_slots=1 << 30, remembers=False)
    uvicorn.run(fast, port=int(sys.argv[1]), log_level="warning", access_log=False, ws="none")
