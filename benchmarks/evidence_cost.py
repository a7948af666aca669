"""
What it costs a gateway to be seen: metrics, the order's worth and the page, with and without.

    python benchmarks/evidence_cost.py [--turns 40] [--requests 250]

Two gateways of one commit stand in front of one fake upstream (benchmarks/gateway_servers.py), with
two tenants, and take turns under the same load: callers in a closed loop, half of the answers
streamed. In the one everything is counted and followed, its page is polled each second and its
metrics every five; in the other nothing is, by a seam that is in this file alone. Then requests
come with 20,000 names of models, tenants and paths. CPU time is the gateway's own, of both threads.
"Look" is how long it takes to work the order's worth out anew, every five seconds, from as many
requests as are remembered at most. The last line of stdout is one JSON.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from gateway_load import ChatCaller, connected
from gateway_memory import resident_mib
from gateway_proxies import Running, Server, free_port, running
from gateway_servers import NUM_PIECES
from pars.outcomes.decision import Decision
from pars.outcomes.records import Outcome
from pars.outcomes.worth import MOST_REQUESTS, Worth

HERE = Path(__file__).resolve()
CALLERS = 32
POLL_S, SCRAPE_S = 1.0, 5.0
FIRST_REQUESTS = 4000  # of each gateway, before the first turn
NUM_NAMES = 10_000
TENANTS = 'header = "x-tenant"\n[tenants.search]\nweight = 3\n[tenants.batch]\n'
CPU_TARGET, MEMORY_TARGET_MIB = 0.05, 20.0


def serve(port: int, upstream: str, folder: Path, *, is_seen: bool) -> None:
    """A gateway in this process."""
    from pars.cli.serve import run_app
    from pars.serving.gateway import UVICORN_OPTIONS, Gateway
    from pars.serving.settings import Settings
    from pars.serving.upstream import Upstream

    if not is_seen:
        look_away()
    settings = Settings(
        engine="vllm", hold="off", state="none", tenants=str(folder / "tenants.toml")
    )
    app = Gateway(Upstream(upstream), settings)
    run_app(app, "127.0.0.1", port, "serves at {url}", UVICORN_OPTIONS)


def look_away() -> None:
    """Nothing is counted, followed or worked out, in this process."""
    from prometheus_client import Counter, Gauge, Histogram

    from pars.outcomes.tenant_watch import TenantWatch
    from pars.outcomes.worth_watch import WorthWatch

    async def nothing(*_: Any) -> None:
        pass

    for kind, name in (
        *((Counter, "inc"), (Gauge, "inc"), (Gauge, "dec"), (Gauge, "set"), (Histogram, "observe")),
        *((WorthWatch, it) for it in ("arrived", "began", "ended")),
        *((TenantWatch, it) for it in ("moved", "ended")),
    ):
        setattr(kind, name, lambda *_, **__: None)
    WorthWatch.keep_looking = nothing  # type: ignore[method-assign]


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond (Linux)."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(it.read_text().split()[0]) for it in files) / 1e9


def request(number: int, *, model: str = "fake", tenant: str = "search", path: str = "") -> bytes:
    """A chat completion, every other one streamed."""
    messages = [{"role": "user", "content": f"Explain lighthouse {number % 997} to a child. " * 4}]
    wanted = {"model": model, "messages": messages, "max_tokens": NUM_PIECES}
    body = json.dumps(wanted | {"stream": number % 2 == 1}).encode()
    head = (
        f"POST {path}/v1/chat/completions HTTP/1.1\r\nhost: bench\r\nx-tenant: {tenant}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


USUAL = [request(number, tenant=("search", "batch")[number % 2]) for number in range(4000)]
NAMES = [
    request(number, model=f"model-{number}", tenant=f"tenant-{number}", path=f"/team-{number}")
    for number in range(2 * NUM_NAMES)
]


def load(server: Running, requests: list[bytes], num_requests: int) -> None:
    """
    Send so many.

    Raises:
        RuntimeError: an answer was wrong.
    """

    async def send() -> None:
        tickets = iter(range(num_requests))
        spread = len(requests) // CALLERS
        callers = [ChatCaller(requests, at * spread, 1e18, tickets) for at in range(CALLERS)]
        await connected(server.url, callers)
        for caller in callers:
            await caller.done
            if caller.wrong:
                raise RuntimeError(caller.wrong[0])

    uvloop.run(send())


@contextmanager
def polled(server: Running) -> Iterator[None]:
    """Its page each second, and its metrics, while the block runs."""
    is_over = threading.Event()

    def keep_polling() -> None:
        paths = cycle(["/pars/metrics"] + ["/pars/now"] * round(SCRAPE_S / POLL_S))
        while not is_over.wait(POLL_S):
            server.get("/pars/now")
            if next(paths) == "/pars/metrics":
                server.get("/pars/metrics")

    thread = threading.Thread(target=keep_polling)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def gateway(stack: ExitStack, upstream: Running, folder: Path, name: str) -> Running:
    port = free_port()
    command = [sys.executable, str(HERE), "--serve", str(port), upstream.url, str(folder), name]
    return stack.enter_context(running(Server(command, "/pars/health"), port, folder / name))


def look_ms() -> float:
    """How long it takes to work out what the order was worth, of as many as are remembered."""
    now_s = time.time()
    worth = Worth(lambda: now_s)
    for number in range(MOST_REQUESTS):
        arrival_s = now_s - 3000 + 0.1 * number
        told = {"path": "/", "decision": "scored", "arrival_s": arrival_s}
        decision = Decision(outcome=Outcome(**told), began_s=0.0, work=40.0)
        worth.arrived(decision)
        came = Outcome(**told, status=200, answer_tokens=32, wait_s=1 + number % 7, total_s=9.0)
        worth.ended(decision, came)
    worth.look()
    began_s = time.process_time()
    for _ in range(5):
        worth.look()
    return 200 * (time.process_time() - began_s)


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    (folder / "tenants.toml").write_text(TENANTS)
    took_s: dict[str, list[float]] = {"seen": [], "unseen": []}
    with ExitStack() as stack:
        port = free_port()
        command = [sys.executable, str(HERE.with_name("gateway_servers.py")), "upstream", str(port)]
        upstream = stack.enter_context(running(Server(command), port, folder / "upstream"))
        servers = {name: gateway(stack, upstream, folder, name) for name in took_s}
        for server in servers.values():
            load(server, USUAL, options.first)
        with polled(servers["seen"]):
            for turn in range(2 * options.turns):
                name = ("seen", "unseen")[(turn + turn // 2) % 2]  # in turns, and each goes first
                server = servers[name]
                before_s = cpu_s(server.pid)
                load(server, USUAL, options.requests)
                took_s[name].append(cpu_s(server.pid) - before_s)
        mib = {name: resident_mib(server.pid) for name, server in servers.items()}
        seen = servers["seen"]
        load(seen, USUAL, MOST_REQUESTS)  # as many as are remembered are so by now
        looks = [resident_mib(seen.pid)]
        lines = [len(seen.get("/pars/metrics").splitlines())]
        for names in (NAMES[:NUM_NAMES], NAMES[NUM_NAMES:]):
            load(seen, names, NUM_NAMES)
            looks.append(resident_mib(seen.pid))
            lines.append(len(seen.get("/pars/metrics").splitlines()))
    seen_s, unseen_s = (np.array(it) for it in took_s.values())
    drawn = np.random.default_rng(0).integers(len(seen_s), size=(2000, len(seen_s)))
    ratios = seen_s[drawn].sum(axis=1) / unseen_s[drawn].sum(axis=1)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "cpu_us_a_request": {
            name: 1e6 * float(np.mean(it)) / options.requests for name, it in took_s.items()
        },
        "cpu_ratio": float(seen_s.sum() / unseen_s.sum()),
        "cpu_ratio_95": np.quantile(ratios, [0.025, 0.975]).tolist(),
        "resident_mib": mib,
        "names_mib": [later - looks[0] for later in looks[1:]],
        "metrics_lines": lines,
        "look_ms": look_ms(),
    }


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        port, upstream, folder, name = sys.argv[2:]
        serve(int(port), upstream, Path(folder), is_seen=name == "seen")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--turns", type=int, default=40, help="Of each gateway.")
    parser.add_argument("--requests", type=int, default=250, help="Of a turn.")
    parser.add_argument("--first", type=int, default=FIRST_REQUESTS, help="Before the first turn.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    more = found["cpu_ratio"] - 1
    kept_mib = found["resident_mib"]["seen"] - found["resident_mib"]["unseen"]
    print(
        f"{found['machine']}; CPU time of the gateway a request, half of them streams of 32 events"
    )
    for name, us in found["cpu_us_a_request"].items():
        print(f"{name:<8}{us:>8.0f} us{found['resident_mib'][name]:>9.1f} MiB resident")
    is_met = "met" if more <= CPU_TARGET else "MISSED"
    low, high = found["cpu_ratio_95"]
    print(
        f"seen over unseen: {1 + more:.3f} [{low:.3f}, {high:.3f}] of the CPU; target"
        f" {1 + CPU_TARGET:g}: {is_met}"
    )
    is_met = "met" if kept_mib <= MEMORY_TARGET_MIB else "MISSED"
    print(f"memory: {kept_mib:.1f} MiB more; target {MEMORY_TARGET_MIB:g}: {is_met}")
    for number, (mib, lines) in enumerate(
        zip(found["names_mib"], found["metrics_lines"][1:], strict=True), 1
    ):
        print(
            f"{number * NUM_NAMES:,} names of models, tenants and paths: {mib:+.1f} MiB; metrics of"
            f" {lines:,} lines, {found['metrics_lines'][0]:,} before"
        )
    print(f"a look at {MOST_REQUESTS:,} requests, every five seconds: {found['look_ms']:.0f} ms")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
