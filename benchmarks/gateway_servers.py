"""
The two ends of `benchmarks/gateway_cost.py`, each in a process of its own.

    python benchmarks/gateway_servers.py upstream PORT   an OpenAI-compatible server in raw asyncio
    python benchmarks/gateway_servers.py echo PORT       the same answers from a bare uvicorn

The upstream answers every chat completion with the same 32 pieces, whole or as a stream in which
each piece is a write of its own. It answers at once, or after POST /pace/5 with 5 ms between pieces
(a whole answer then comes after 32 times that), as an engine would.
"""

import asyncio
import json
import re
import sys
from typing import Any

import uvloop

NUM_PIECES = 32
BACKLOG = 2048
WANTS_STREAM = re.compile(rb'"stream"\s*:\s*true')


def piece(index: int) -> bytes:
    """One server-sent event of the answer; the last says why the answer ends."""
    choice = {
        "index": 0,
        "delta": {"content": f" tok{index}"},
        "finish_reason": "stop" if index == NUM_PIECES - 1 else None,
    }
    names = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    return b"data: " + json.dumps({**names, "choices": [choice]}).encode() + b"\n\n"


def whole() -> bytes:
    """The answer in one piece."""
    text = "".join(f" tok{index}" for index in range(NUM_PIECES))
    message = {"role": "assistant", "content": text}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": NUM_PIECES, "total_tokens": 41},
    }
    return json.dumps(answer).encode()


def head(content_type: bytes, framing: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n" % (content_type, framing)


def with_length(body: bytes) -> bytes:
    return head(b"application/json", b"content-length: %d" % len(body)) + body


EVENTS = [*map(piece, range(NUM_PIECES)), b"data: [DONE]\n\n"]
CHUNKS = [b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS]
CHUNKS[-1] += b"0\r\n\r\n"
STREAM_HEAD = head(b"text/event-stream", b"transfer-encoding: chunked")
WHOLE = with_length(whole())
PAGES = {
    b"/version": with_length(b'{"version": "0.32.0"}'),
    b"/v1/models": with_length(b'{"object": "list", "data": [{"id": "fake", "object": "model"}]}'),
}


class Upstream(asyncio.Protocol):
    """One connection; `pace_s` holds for all of them."""

    pace_s = 0.0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        request, separator, body = self.received.partition(b"\r\n\r\n")
        if separator and body_is_whole(request.lower(), body):
            self.received = b""
            self.answer(request.split(b" ", 2)[1], body)

    def answer(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/completions"):
            if WANTS_STREAM.search(body):
                self.transport.write(STREAM_HEAD)
                self.loop.call_later(self.pace_s, self.send_piece, 0)
            else:
                self.loop.call_later(NUM_PIECES * self.pace_s, self.write, WHOLE)
            return
        if path.startswith(b"/pace/"):
            Upstream.pace_s = float(path.rpartition(b"/")[2]) / 1000
        self.write(PAGES.get(path, with_length(b"{}")))

    def send_piece(self, index: int) -> None:
        """Send a piece, and in another turn of the loop the next: each is a write of its own."""
        self.write(CHUNKS[index])
        if index < NUM_PIECES - 1:
            self.loop.call_later(self.pace_s, self.send_piece, index + 1)
        elif index == NUM_PIECES - 1:
            self.write(CHUNKS[-1])

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


def body_is_whole(lower_head: bytes, body: bytes) -> bool:
    _, has_length, rest = lower_head.partition(b"content-length:")
    if has_length:
        return len(body) >= int(rest.partition(b"\r\n")[0])
    return b"transfer-encoding:" not in lower_head or body.endswith(b"0\r\n\r\n")


async def upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        Upstream, "127.0.0.1", port, backlog=BACKLOG
    )
    await server.serve_forever()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The least that uvicorn can cost to take such a request and give such an answer."""
    if scope["type"] != "http":
        return
    body, more_body = b"", True
    while more_body:
        message = await receive()
        body += message["body"]
        more_body = message["more_body"]
    if not WANTS_STREAM.search(body):
        answer = WHOLE.partition(b"\r\n\r\n")[2]
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        return
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for event in EVENTS[:-1]:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": EVENTS[-1]})


def main() -> None:
    name, port = sys.argv[1], int(sys.argv[2])
    if name == "upstream":
        uvloop.run(upstream(port))
        return
    import uvicorn

    from pars.serving.gateway import UVICORN_OPTIONS

    options: dict[str, Any] = {**UVICORN_OPTIONS, "http": "httptools"}
    uvicorn.run(
        echo, port=port, log_level="warning", access_log=False, ws="none", lifespan="off", **options
    )


if __name__ == "__main__":
    main()
