"""
What a queue held in the gateway is worth before a real llama.cpp, which has no priorities.

    make llamacpp; python benchmarks/held_queue.py [--requests 150] [--share 1.2] [--in-order]

Real Alpaca prompts to SmolLM2-135M on four slots, answers ended by the model itself (at most 128
tokens, temperature 0), streamed, Poisson arrivals at a share of what the server gets done. First
all of them in a closed loop, which tells the answers' lengths and that rate. Then the same arrivals
sent straight to the server, through the gateway as it starts for a stranger (nothing trained, an
empty state folder), and held by the true lengths, shortest first: the oracle, which knows all and
has no bound; with --in-order also held first come, first served. Each takes five minutes on one
core. The last line of stdout is one JSON; PARS_SHARED names the folder with data (default
../shared).
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from gateway_proxies import Running, Server, free_port, running

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PARS_SHARED", ROOT.parent / "shared"))
DATA = "data/instruction_alpaca_davinci003.jsonl.gz"
SLOTS, THREADS, MAX_TOKENS, MAX_PROMPT_CHARS = 4, 1, 128, 1000
SECRET = "oracle"
TARGET_SHARE, TARGET_RATE = 0.60, 0.97
MOST_APART = 0.03  # of one run's speed from another's, for their waits to be compared


@dataclass(slots=True)
class Timed:
    """One answer: seconds from when it was due, and tokens."""

    begin_s: float
    end_s: float
    tokens: int


async def ask(session: aiohttp.ClientSession, url: str, prompt: str, **headers: str) -> Timed:
    body = {
        "messages": [{"role": "user", "content": prompt}],
        **{"max_tokens": MAX_TOKENS, "temperature": 0, "stream": True},
        "stream_options": {"include_usage": True},
    }
    begin_s, due_s, tokens = None, time.perf_counter(), 0
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                begin_s = begin_s or time.perf_counter()
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    assert begin_s is not None
    return Timed(begin_s - due_s, time.perf_counter() - due_s, tokens)


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    )


async def closed_loop(url: str, prompts: list[str]) -> tuple[list[Timed], float]:
    """Every answer, a few more than the slots at once, and how long all took."""
    answers: dict[int, Timed] = {}
    left = iter(enumerate(prompts))
    async with session() as opened:

        async def caller() -> None:
            for number, prompt in left:
                answers[number] = await ask(opened, url, prompt)

        began_s = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(SLOTS + 2)))
    return [answers[number] for number in range(len(prompts))], time.perf_counter() - began_s


async def open_loop(
    url: str, prompts: list[str], arrivals_s: list[float], lengths: list[int] | None
) -> tuple[list[Timed], float]:
    """Every answer to requests that are sent when they are due."""
    async with session() as opened:
        began_s = time.perf_counter()

        async def one(number: int) -> Timed:
            await asyncio.sleep(began_s + arrivals_s[number] - time.perf_counter())
            told = {}
            if lengths is not None:
                told = {"X-Pars-Secret": SECRET, "X-Vllm-Priority": str(lengths[number])}
            return await ask(opened, url, prompts[number], **told)

        answers = await asyncio.gather(*(one(number) for number in range(len(prompts))))
    return list(answers), time.perf_counter() - began_s


def figures(answers: list[Timed], took_s: float) -> dict[str, float]:
    waits = np.array([it.begin_s for it in answers])
    e2e = np.array([it.end_s for it in answers])
    tokens = np.array([max(it.tokens, 1) for it in answers])
    return {
        "ntpot_s": float((e2e / tokens).mean()),
        "e2e_s": float(e2e.mean()),
        "p99_wait_s": float(np.quantile(waits, 0.99)),
        "longest_wait_s": float(waits.max()),
        "tokens_per_s": float(tokens.sum() / took_s),
        "second_half_ntpot_s": float((e2e / tokens)[len(tokens) // 2 :].mean()),
    }


@contextlib.contextmanager
def llama(folder: Path) -> Iterator[Running]:
    port = free_port()
    python = ROOT / ".llamacpp/bin/python"
    command = [
        str(python),
        str(ROOT / "engine/llamacpp/serve.py"),
        str(port),
        *map(str, (SLOTS, THREADS)),
    ]
    with running(Server(command), port, folder / "llama.log") as server:
        yield server


@contextlib.contextmanager
def gateway(folder: Path, upstream: str, *options: str) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "pars", "gateway", "--upstream", upstream, "--port", str(port)]
    state = tempfile.mkdtemp(dir=folder)
    environment = {**os.environ, "PARS_TRUSTED_SECRET": SECRET, "PARS_STATE": state}
    server = Server([*command, *options], "/pars/health", environment)
    with running(server, port, folder / "gateway.log") as started:
        while json.loads(started.get("/pars/now"))["held"] is None:
            time.sleep(0.1)  # until the engine has told what it is
        yield started


def read_prompts(number: int) -> list[str]:
    with gzip.open(SHARED / DATA, "rt") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    prompts = sorted({it for it in prompts if 0 < len(it) <= MAX_PROMPT_CHARS})
    return random.Random(0).sample(prompts, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--share", type=float, default=1.2, help="Of what the server gets done.")
    parser.add_argument(
        "--in-order", action="store_true", help="Held, but first come first served."
    )
    options = parser.parse_args()
    if not (SHARED / DATA).exists():
        sys.exit(f"{SHARED / DATA} is not there: set PARS_SHARED")
    if not (ROOT / ".llamacpp").exists():
        sys.exit("no llama.cpp: make llamacpp")
    prompts = read_prompts(options.requests)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, llama(Path(name)) as server:
        folder = Path(name)
        closed, took_s = asyncio.run(closed_loop(server.url, prompts))
        lengths = [it.tokens for it in closed]
        rate = options.share * len(prompts) / took_s
        rng = random.Random(1)
        arrivals_s = np.cumsum([rng.expovariate(rate) for _ in prompts]).tolist()
        print(
            f"{len(prompts)} prompts, {sum(lengths):,} tokens; closed loop"
            f" {sum(lengths) / took_s:.0f} tokens/s; {rate:.2f} requests/s, {options.share:g} of it"
        )
        print(f"{'':<22}{'NTPOT s':>9}{'e2e s':>8}{'p99 wait':>10}{'longest':>9}{'tokens/s':>10}")
        ways: dict[str, tuple[str, ...] | None] = {
            "direct": None,
            "held, cold start": (),
            "held, oracle": ("--max-overtake-s", "inf"),
        }
        if options.in_order:
            ways["held, in order"] = ("--max-slowdown", "1")
        for way, given in ways.items():
            with contextlib.ExitStack() as stack:
                url = server.url
                if given is not None:
                    url = stack.enter_context(gateway(folder, server.url, *given)).url
                told = lengths if way == "held, oracle" else None
                answers, took_s = asyncio.run(open_loop(url, prompts, arrivals_s, told))
            results[way] = it = figures(answers, took_s)
            print(
                f"{way:<22}{it['ntpot_s']:>9.3f}{it['e2e_s']:>8.1f}{it['p99_wait_s']:>10.1f}"
                f"{it['longest_wait_s']:>9.1f}{it['tokens_per_s']:>10.1f}",
                flush=True,
            )
    verdict(results)
    print(json.dumps(results))


def verdict(results: dict[str, dict[str, Any]]) -> None:
    """The shares of the oracle's gain and of the throughput, beside their targets."""
    direct, oracle = results["direct"], results["held, oracle"]
    cold = results["held, cold start"]
    speed = oracle["tokens_per_s"] / direct["tokens_per_s"]
    parts = {"all": "ntpot_s", "the second half": "second_half_ntpot_s"}
    if abs(speed - 1) > MOST_APART:
        parts = {}
        print(
            f"the server did {speed:.2f} of direct's tokens a second in the oracle's run, and at"
            " this load the backlog hangs on that: its gain, and shares of it, are no measure"
        )
    for part, name in parts.items():
        share = (direct[name] - cold[name]) / (direct[name] - oracle[name])
        print(
            f"share of the oracle's gain in time per token, {part}: {share:.0%}; target"
            f" {TARGET_SHARE:.0%}: {'met' if share >= TARGET_SHARE else 'MISSED'}"
        )
    rate = cold["tokens_per_s"] / direct["tokens_per_s"]
    print(
        f"throughput, of direct: {rate:.3f}; target {TARGET_RATE}:"
        f" {'met' if rate >= TARGET_RATE else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
