"""
Callers in a closed loop at POST /v1/chat/completions: plain, streamed, or by turns.

Each answer is read to its end and checked. Prompts come as one line of JSON on stdin; the last line
of stdout is one JSON.

    python benchmarks/gateway_load.py URL --callers 32 --seconds 5 --kind stream < prompts.json

With --hold N it opens N streams, says so once the first piece of each is here, and leaves when its
stdin ends.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import uvloop

from gateway_servers import NUM_PIECES
from http_load import Caller, content_length

PATH = "/v1/chat/completions"
LAST_TOKEN = b" tok%d" % (NUM_PIECES - 1)


class ChatCaller(Caller):
    """A caller that reads plain and streamed answers, and stops when `tickets` are used up."""

    def __init__(
        self, requests: list[bytes], first: int, stop_at_s: float, tickets: Iterator[Any]
    ) -> None:
        super().__init__(requests, first, stop_at_s)
        self.tickets = tickets
        self.right: list[
            tuple[float, float, float]
        ] = []  # answered at, seconds, to its first bytes
        self.wrong: list[str] = []  # why
        self.has_piece = asyncio.get_running_loop().create_future()

    def ask(self) -> None:
        if next(self.tickets, None) is None:
            self.done.set_result(None)
            return
        self.head = b""
        self.body: list[bytes] = []
        self.num_body_bytes = 0
        super().ask()

    def data_received(self, data: bytes) -> None:
        if not self.head:
            self.received += data
            head, separator, data = self.received.partition(b"\r\n\r\n")
            if not separator:
                return
            self.head = head.lower()
            self.num_expected_bytes = (
                content_length(head) if b"content-length:" in self.head else None
            )
        if not data:
            return
        if not self.body:
            self.first_s = time.perf_counter() - self.asked_at_s
            if not self.has_piece.done():
                self.has_piece.set_result(None)
        self.body.append(data)
        self.num_body_bytes += len(data)
        if self.is_whole():
            self.finish()

    def is_whole(self) -> bool:
        if self.num_expected_bytes is not None:
            return self.num_body_bytes >= self.num_expected_bytes
        return b"".join(self.body[-3:]).endswith(b"\r\n0\r\n\r\n")

    def finish(self) -> None:
        now_s = time.perf_counter()
        problem = self.problem(b"".join(self.body))
        if problem:
            self.wrong.append(problem)
        else:
            self.right.append((now_s, now_s - self.asked_at_s, self.first_s))
        if now_s < self.stop_at_s:
            self.ask()
        else:
            self.done.set_result(None)

    def problem(self, body: bytes) -> str:
        """What is wrong with the answer, or nothing."""
        if b" 200 " not in self.head[:14] or LAST_TOKEN not in body:
            return f"a wrong answer: {(self.head + body)[:300]!r}"
        num_events = body.count(b"data: ")
        if self.num_expected_bytes is None and (num_events <= NUM_PIECES or b"[DONE]" not in body):
            return f"a stream of {num_events} events: {body[-300:]!r}"
        return ""

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.wrong.append(f"the server closed the connection ({error})")
            self.done.set_result(None)
        self.has_piece.cancel()


def request_bytes(path: str, prompt: str, *, stream: bool) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    wanted = {"model": "fake", "messages": messages, "max_tokens": NUM_PIECES, "stream": stream}
    body = json.dumps(wanted).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer sk-bench\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def requests_of(path: str, prompts: list[str], kind: str) -> list[bytes]:
    streams = {"plain": [False], "stream": [True], "mixed": [False, True]}[kind]
    return [
        request_bytes(path, prompt, stream=streams[n % len(streams)])
        for n, prompt in enumerate(prompts)
    ]


async def connected(url: str, callers: list[ChatCaller], spread_s: float = 0.0) -> None:
    """Connect the callers, who begin to ask at once, one after the other within `spread_s`."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    for caller in callers:
        await asyncio.sleep(spread_s / len(callers))
        await loop.create_connection(lambda c=caller: c, address.hostname, address.port)


async def load(url: str, prompts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """
    Rate and delays over `seconds` after a warm-up of a quarter of that, or over `num_requests`.

    Where a server is so slow that not even one answer a caller falls into that time, all count.
    """
    requests = requests_of(options.path, prompts, options.kind)
    began_s = time.perf_counter()
    start_s, end_s = began_s + options.seconds / 4, began_s + options.seconds * 5 / 4
    if options.num_requests:
        start_s, end_s = began_s, math.inf
    tickets = iter(range(options.num_requests or sys.maxsize))
    spread = len(requests) / options.callers
    callers = [
        ChatCaller(requests, int(n * spread), end_s, tickets) for n in range(options.callers)
    ]
    async with asyncio.timeout(options.limit_s):
        await connected(url, callers, options.spread_s)
        await asyncio.gather(*[caller.done for caller in callers])
    now_s = time.perf_counter()
    answers = [answer for caller in callers for answer in caller.right]
    wrong = [reason for caller in callers for reason in caller.wrong]
    if not answers:
        raise RuntimeError(wrong[0] if wrong else "no answer")
    measured = [answer for answer in answers if start_s < answer[0] <= end_s]
    if len(measured) < options.callers:
        measured, start_s, end_s = answers, began_s, now_s
    return {
        "num_requests": len(answers),
        "requests_per_s": len(measured) / (min(end_s, now_s) - start_s),
        **quantiles_ms("", [delay_s for _, delay_s, _ in measured]),
        **quantiles_ms("first_", [first_s for _, _, first_s in measured]),
        "num_wrong": len(wrong),
        "wrong": wrong[0] if wrong else "",
        "client_cpu": time.process_time() / (now_s - began_s),
    }


def quantiles_ms(prefix: str, delays_s: list[float]) -> dict[str, float]:
    ordered_ms = sorted(1000 * delay_s for delay_s in delays_s)
    return {
        f"{prefix}p50_ms": ordered_ms[len(ordered_ms) // 2],
        f"{prefix}p99_ms": ordered_ms[len(ordered_ms) * 99 // 100],
    }


async def hold(url: str, prompts: list[str], num_streams: int, limit_s: float) -> None:
    requests = requests_of(PATH, prompts, "stream")
    callers = [ChatCaller(requests, n, math.inf, iter(range(1 << 30))) for n in range(num_streams)]
    async with asyncio.timeout(limit_s):
        await connected(url, callers)
        await asyncio.gather(*[caller.has_piece for caller in callers])
        print(json.dumps({"num_open": sum(not caller.done.done() for caller in callers)}))
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--path", default=PATH, help="another that ends so is not scored")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--spread-s", type=float, default=0.0, help="between first and last caller")
    parser.add_argument("--num-requests", type=int, help="so many instead of --seconds")
    parser.add_argument("--kind", choices=["plain", "stream", "mixed"], default="plain")
    parser.add_argument("--hold", type=int, help="open so many streams and keep them")
    parser.add_argument("--limit-s", type=float, default=120.0, help="give up after so long")
    options = parser.parse_args()
    prompts = json.loads(sys.stdin.readline())
    try:
        if options.hold:
            uvloop.run(hold(options.url, prompts, options.hold, options.limit_s))
        else:
            print(json.dumps(uvloop.run(load(options.url, prompts, options))))
    except (RuntimeError, OSError, TimeoutError) as error:
        raise SystemExit(f"{options.url}: {error or type(error).__name__}") from None


if __name__ == "__main__":
    main()
