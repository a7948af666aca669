"""
What one queue before two vLLM servers is worth, beside the two queues of their own.

    make engine; python benchmarks/held_fleet.py [--requests 150] [--share 1.2] [--litellm DIR]

Two real vLLM servers of two slots each with the tiny model of `make engine`, first come, first
served. Real Alpaca prompts with their answers' lengths (DaVinci's, 160 tokens at most) imposed by
max_tokens, streamed, Poisson arrivals at a share of what the two get done in a closed loop. The
same arrivals sent in turns to the two servers; with --litellm DIR through LiteLLM, to the one that
is less busy; and through one queue that pars holds: first come, first served, in the order of the
bundled ranker (which learns nothing here, and is not shown max_tokens, since that is the length),
and shortest first by the true lengths. The last line of stdout is one JSON; PARS_SHARED names the
folder with data (default ../shared).
"""

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from gateway_proxies import LITELLM_CONFIG, RIVALS, Running, Server, free_port, install, running
from held_queue import DATA, ROOT, SECRET, SHARED, Timed, figures, session

SLOTS, MAX_TOKENS, MAX_PROMPT_CHARS = 2, 160, 1000
MODEL = "tiny-llama"


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and how long its answer will be."""

    prompt: str
    tokens: int


async def answer(opened: aiohttp.ClientSession, url: str, ask: Ask, told: bool) -> Timed:
    body = {
        **{"model": MODEL, "messages": [{"role": "user", "content": ask.prompt}], "stream": True},
        **{"max_tokens": ask.tokens, "ignore_eos": True, "temperature": 0},
    }
    key = {"X-Pars-Secret": SECRET, "X-Vllm-Priority": str(ask.tokens)} if told else {}
    begin_s, due_s = None, time.perf_counter()
    async with opened.post(f"{url}/v1/chat/completions", json=body, headers=key) as came:
        came.raise_for_status()
        async for line in came.content:
            if line.startswith(b"data: {") and begin_s is None:
                begin_s = time.perf_counter()
    assert begin_s is not None
    return Timed(begin_s - due_s, time.perf_counter() - due_s, ask.tokens)


async def closed_loop(urls: list[str], asks: list[Ask]) -> float:
    """How long all of them take, with every slot busy."""
    left = iter(asks)
    async with session() as opened:

        async def caller(url: str) -> None:
            for ask in left:
                await answer(opened, url, ask, told=False)

        began_s = time.perf_counter()
        await asyncio.gather(*(caller(url) for url in urls for _ in range(SLOTS + 1)))
    return time.perf_counter() - began_s


async def open_loop(
    urls: list[str], asks: list[Ask], arrivals_s: list[float], *, told: bool
) -> tuple[list[Timed], float]:
    """Every answer to requests that are sent when they are due, to the servers in turn."""
    async with session() as opened:
        began_s = time.perf_counter()

        async def one(url: str, ask: Ask, at_s: float) -> Timed:
            await asyncio.sleep(began_s + at_s - time.perf_counter())
            return await answer(opened, url, ask, told)

        turns = zip(itertools.cycle(urls), asks, arrivals_s, strict=False)
        answers = await asyncio.gather(*(one(*turn) for turn in turns))
    return list(answers), time.perf_counter() - began_s


@contextlib.contextmanager
def vllm(folder: Path) -> Iterator[Running]:
    port = free_port()
    command = ["bash", str(ROOT / "engine/serve.sh"), "--port", str(port)]
    server = Server([*command, "--max-num-seqs", str(SLOTS)])
    with running(server, port, folder / f"vllm-{port}.log") as started:
        yield started


@contextlib.contextmanager
def gateway(folder: Path, urls: list[str], *options: str) -> Iterator[list[str]]:
    port = free_port()
    command = [sys.executable, "-m", "pars", "gateway", "--port", str(port), "--learn", "off"]
    command += [word for url in urls for word in ("--upstream", url)]
    environment = {**os.environ, "PARS_TRUSTED_SECRET": SECRET, "PARS_OBEY_LIMITS": "0"}
    server = Server([*command, "--slots", str(SLOTS), *options], "/pars/health", environment)
    with running(server, port, folder / f"gateway-{port}.log") as started:
        yield [started.url]


@contextlib.contextmanager
def litellm(folder: Path, urls: list[str], venv: Path) -> Iterator[list[str]]:
    rival, port = RIVALS["litellm"], free_port()
    models = [
        {
            "model_name": MODEL,
            # No max_parallel_requests: beyond it LiteLLM (1.106.2) refuses with a 429, and queues
            # nothing. So the queues are the servers' own.
            "litellm_params": {
                **{"model": f"hosted_vllm/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
            },
        }
        for url in urls
    ]
    routing = {"router_settings": {"routing_strategy": "least-busy", "num_retries": 0}}
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": models, **LITELLM_CONFIG, **routing}))
    command = [str(venv.resolve() / "bin/litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **rival.environment}
    server = Server(command, rival.ready_path, environment)
    with running(server, port, folder / "litellm.log") as started:
        yield [started.url]


def read_asks(number: int) -> list[Ask]:
    with gzip.open(SHARED / DATA, "rt") as file:
        rows = [json.loads(line) for line in file]
    asks = {
        row["prompt"]: Ask(row["prompt"], min(row["response_tokens"], MAX_TOKENS))
        for row in rows
        if 0 < len(row["prompt"]) <= MAX_PROMPT_CHARS and row["response_tokens"] > 0
    }
    return random.Random(0).sample([asks[prompt] for prompt in sorted(asks)], number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--share", type=float, default=1.2, help="Of what the servers get done.")
    parser.add_argument("--litellm", type=Path, help="LiteLLM's environment; made if need be.")
    options = parser.parse_args()
    if not (SHARED / DATA).exists():
        sys.exit(f"{SHARED / DATA} is not there: set PARS_SHARED")
    if not (ROOT / ".engine").exists():
        sys.exit("no vLLM: make engine")
    if options.litellm is not None and (problem := install(RIVALS["litellm"], options.litellm)):
        sys.exit(f"LiteLLM: {problem}")
    measure(read_asks(options.requests), options.share, options.litellm)


def measure(asks: list[Ask], share: float, venv: Path | None) -> None:
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as servers:
        folder = Path(name)
        urls = [servers.enter_context(vllm(folder)).url for _ in range(2)]
        asyncio.run(closed_loop(urls, asks[:20]))  # warm
        took_s = asyncio.run(closed_loop(urls, asks))
        rate = share * len(asks) / took_s
        rng = random.Random(1)
        arrivals_s = np.cumsum([rng.expovariate(rate) for _ in asks]).tolist()
        num_tokens = sum(ask.tokens for ask in asks)
        print(
            f"{len(asks)} prompts, {num_tokens:,} tokens; closed loop {num_tokens / took_s:.0f}"
            f" tokens/s; {rate:.2f} requests/s, {share:g} of it"
        )
        print(f"{'':<28}{'NTPOT s':>9}{'e2e s':>8}{'p99 wait':>10}{'longest':>9}{'tokens/s':>10}")
        ways = {
            "in turns": contextlib.nullcontext(urls),
            "held, first come": gateway(folder, urls, "--max-slowdown", "1"),
            "held, bundled ranker": gateway(folder, urls),
            "held, oracle": gateway(folder, urls, "--max-overtake-s", "inf"),
        }
        if venv is not None:
            ways["LiteLLM, least busy"] = litellm(folder, urls, venv)
        for way, opened in ways.items():
            with opened as doors:
                told = way == "held, oracle"
                answers, took_s = asyncio.run(open_loop(doors, asks, arrivals_s, told=told))
            results[way] = it = figures(answers, took_s)
            print(
                f"{way:<28}{it['ntpot_s']:>9.3f}{it['e2e_s']:>8.1f}{it['p99_wait_s']:>10.1f}"
                f"{it['longest_wait_s']:>9.1f}{it['tokens_per_s']:>10.1f}",
                flush=True,
            )
    direct, oracle = results["in turns"], results["held, oracle"]
    gained = direct["ntpot_s"] - results["held, bundled ranker"]["ntpot_s"]
    part = gained / (direct["ntpot_s"] - oracle["ntpot_s"])
    print(f"share of the oracle's gain in time per token over requests in turns: {part:.0%}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
