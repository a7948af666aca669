"""
Callers in a closed loop: each sends its next prompt to POST /score once its last one is answered.

Raw asyncio protocols on keep-alive connections, because on a small machine a client library would
be the bottleneck: this costs about 60 us of CPU a request. The last line of stdout is one JSON.

    python benchmarks/http_load.py http://127.0.0.1:8000 --callers 32 --seconds 8 < prompts.json
"""

import argparse
import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import uvloop


class Caller(asyncio.Protocol):
    """One connection that asks until `stop_at_s`, and remembers each answer's time and delay."""

    def __init__(self, requests: list[bytes], first: int, stop_at_s: float) -> None:
        self.requests = requests
        self.next = first
        self.stop_at_s = stop_at_s
        self.answers: list[tuple[float, float]] = []  # (answered at, seconds it took)
        self.done = asyncio.get_running_loop().create_future()
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.received = b""
        self.asked_at_s = time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator or len(body) < content_length(head):
            return
        now_s = time.perf_counter()
        self.answers.append((now_s, now_s - self.asked_at_s))
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.received.decode()))
        elif now_s < self.stop_at_s:
            self.ask()
        else:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError("the server closed the connection"))


def content_length(head: bytes) -> int:
    rest = head[head.lower().index(b"content-length:") + 15 :]
    return int(rest.partition(b"\r\n")[0])


def request_bytes(prompt: str) -> bytes:
    body = json.dumps({"prompt": prompt}).encode()
    head = "POST /score HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def load(url: str, prompts: list[str], num_callers: int, seconds: float) -> dict[str, float]:
    """Requests per second and delays over `seconds`, after a warm-up of a quarter of that."""
    address = urlsplit(url)
    requests = list(map(request_bytes, prompts))
    loop = asyncio.get_running_loop()
    start_s = time.perf_counter() + seconds / 4
    callers = []
    for n in range(num_callers):
        caller = Caller(requests, n * len(requests) // num_callers, start_s + seconds)
        await loop.create_connection(lambda c=caller: c, address.hostname, address.port)
        callers.append(caller)
    await asyncio.gather(*[caller.done for caller in callers])
    answers = [a for caller in callers for a in caller.answers]
    delays_s = sorted(delay_s for at_s, delay_s in answers if start_s < at_s <= start_s + seconds)
    total_s = max(at_s for at_s, _ in answers) - start_s + seconds / 4
    return {
        "num_requests": len(answers),
        "requests_per_s": len(delays_s) / seconds,
        "p50_ms": 1000 * delays_s[len(delays_s) // 2],
        "p99_ms": 1000 * delays_s[len(delays_s) * 99 // 100],
        "client_cpu": time.process_time() / total_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    prompts = json.load(sys.stdin)
    print(json.dumps(uvloop.run(load(options.url, prompts, options.callers, options.seconds))))


if __name__ == "__main__":
    main()
