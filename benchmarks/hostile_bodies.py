"""
What hostile bodies cost the other clients of a gateway.

    python benchmarks/hostile_bodies.py [--seconds 3] [--engine vllm-body]

A bystander asks for short completions, one after the other, while an attacker sends bodies of one
megabyte (or of 16 kB, which are read on the event loop) that are dear to read, one as soon as the
last is answered. The bystander's delays are told
beside those that it has alone, and beside harmless bodies of the same size: a megabyte takes its
time to carry, whoever sends it. The upstream answers at once. The last line of stdout is one JSON.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
ROOM = 1_040_000
SMALL = 16_300  # just small enough to be read on the event loop
LIMIT_MS = 20.0  # p99 that the project promises
BODIES = {
    "nobody": b"",
    "harmless text": b'{"model":"m","prompt":"' + b"a" * ROOM + b'"}',
    "empty lists": b'{"model":"m","prompt":[' + b"[]," * (ROOM // 3) + b"[]]}",
    "empty strings": b'{"model":"m","prompt":[' + b'"",' * (ROOM // 3) + b'""]}',
    "empty objects": b'{"model":"m","messages":[' + b"{}," * (ROOM // 3) + b"{}]}",
    "token ids": b'{"model":"m","prompt":[' + b"1," * (ROOM // 2 - 20) + b"1]}",
    "deep nesting": b'{"prompt":' + b"[" * (ROOM // 2 - 20) + b"]" * (ROOM // 2 - 20) + b"}",
    "repeated priority": b'{"model":"m",' + b'"priority":0,' * (ROOM // 13 - 9) + b'"n":1}',
    "100,000 fields": b"{" + b",".join(b'"k%d":0' % i for i in range(90_000)) + b"}",
    "a huge number": b'{"model":"m","prompt":"x","max_tokens":' + b"9" * ROOM + b"}",
    "escapes": b'{"model":"m","prompt":"' + b"\\u00e9" * (ROOM // 6) + b'"}',
    "small messages": b'{"messages":['
    + b",".join([b'{"role":"user","content":"hi"}'] * (ROOM // 32))
    + b"]}",
    "few lists of texts": b'{"model":"m","prompt":['
    + b",".join([b'["%s"]' % (b"a" * 200)] * 4_990)
    + b"]}",
    "small, empty lists": b'{"model":"m","prompt":[' + b"[]," * (SMALL // 3 - 20) + b"[]]}",
    "small, lists in lists": b'{"prompt":[' + b"[[[[]]]]," * (SMALL // 9 - 9) + b"[]]}",
    "small, repeated priority": b'{"model":"m",' + b'"priority":0,' * (SMALL // 13 - 9) + b'"n":1}',
    "small, fields": b"{" + b",".join(b'"%d":0' % i for i in range(1700)) + b"}",
}
SHORT = json.dumps({"model": "m", "prompt": "Name a sea.", "max_tokens": 9}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--engine", default="vllm-body")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        upstream, door = free_port(), free_port()
        servers = [
            [sys.executable, str(HERE / "gateway_servers.py"), "upstream", str(upstream)],
            [
                *(sys.executable, "-m", "pars", "gateway", "--engine", arguments.engine),
                *("--upstream", f"http://127.0.0.1:{upstream}", "--port", str(door)),
            ],
        ]
        for command, port in zip(servers, (upstream, door), strict=True):
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.kill)
            wait_for(port)
        results = {}
        print(
            f"engine {arguments.engine}; ms that a bystander waits, {arguments.seconds:g} s each\n"
        )
        print("| beside bodies of | p50 | p99 | longest | bodies/s |\n|---|--:|--:|--:|--:|")
        for name, body in BODIES.items():
            results[name] = asyncio.run(beside(body, door, arguments.seconds))
            told = results[name]
            print(
                f"| {name} | {told['p50_ms']:.2f} | {told['p99_ms']:.2f} "
                f"| {told['longest_ms']:.2f} | {told['bodies_per_s']:.0f} |"
            )
    worst = max(results, key=lambda name: results[name]["p99_ms"])
    is_met = results[worst]["p99_ms"] <= LIMIT_MS
    print(
        f"\nworst p99 {results[worst]['p99_ms']:.2f} ms ({worst}); target {LIMIT_MS:g} ms:"
        f" {'met' if is_met else 'MISSED'}"
    )
    print(json.dumps(results))


async def beside(body: bytes, port: int, seconds: float) -> dict[str, float]:
    """The bystander's delays while somebody sends `body` again and again."""
    stop_at_s = time.perf_counter() + seconds
    attacker = asyncio.create_task(asks(body, port, stop_at_s)) if body else None
    delays_s = sorted(await asks(SHORT, port, stop_at_s))
    num_bodies = len(await attacker) if attacker else 0
    return {
        "p50_ms": delays_s[len(delays_s) // 2] * 1000,
        "p99_ms": delays_s[len(delays_s) * 99 // 100] * 1000,
        "longest_ms": delays_s[-1] * 1000,
        "bodies_per_s": num_bodies / seconds,
        "num_asked": len(delays_s),
    }


async def asks(body: bytes, port: int, stop_at_s: float) -> list[float]:
    """Seconds that each request took, over one connection, opened again where it was closed."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    delays_s: list[float] = []
    writer: asyncio.StreamWriter | None = None
    while time.perf_counter() < stop_at_s:
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began_s = time.perf_counter()
        try:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            delays_s.append(time.perf_counter() - began_s)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return delays_s


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(port: int, patience_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
