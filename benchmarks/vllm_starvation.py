"""
How long one long request waits in a flood of short ones on a real vLLM, for several bounds.

    make engine
    python benchmarks/vllm_starvation.py --flood-s 30 --bounds 0 5 10 inf

Short requests keep coming, always `--num-waiting` at a time, until the flood ends; the long one
comes with the first of them. For each bound a `pars gateway --max-overtake-s BOUND` of its own
stands in front of the same vLLM, which has one slot. The ranker is the tests': it reads expected
lengths off the prompts, so what is measured is the bound, not a ranker. The last line of stdout is
one JSON with all of it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import uvloop

from vllm_latency import stalls_s

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
from doors import completion, gateway, word_ranker  # noqa: E402  # the tests' ranker and gateway

from engine import Engine, Engines  # noqa: E402  # the tests' real vLLM

SHORT, LONG = completion(10, max_tokens=32), completion(900, max_tokens=300)


@dataclass(frozen=True)
class Starvation:
    """What one bound did; the long request's wait ends with its last token."""

    bound_s: str
    flood_s: float
    long_s: float
    num_overtaking: int
    num_short: int
    short_mean_s: float
    short_p99_s: float
    largest_stall_s: float  # of this client; in a long one the queue may have run dry


async def flood(url: str, bound_s: str, flood_s: float, num_waiting: int) -> Starvation:
    """The long request and the flood together; returns when all of it is answered."""
    start_s = time.perf_counter()
    shorts: list[tuple[float, float]] = []  # sent, ended

    async def send(client: httpx.AsyncClient, body: dict) -> tuple[float, float]:
        sent_s = time.perf_counter() - start_s
        answer = await client.post("/v1/completions", json=body)
        answer.raise_for_status()
        return sent_s, time.perf_counter() - start_s

    async def keep_sending(client: httpx.AsyncClient) -> None:
        while time.perf_counter() - start_s < flood_s:
            shorts.append(await send(client, SHORT.body))

    # No connection is used twice: after a stall its server may have closed it in the meantime.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client,
        stalls_s() as stalls,
        asyncio.TaskGroup() as group,
    ):
        first = [group.create_task(keep_sending(client)) for _ in range(num_waiting)]
        await asyncio.sleep(0.1)  # the slot is taken and a queue is there
        long = group.create_task(send(client, LONG.body))
        await asyncio.gather(*first)
    sent_s, end_s = long.result()
    waits_s = [ended - sent for sent, ended in shorts]
    return Starvation(
        bound_s,
        flood_s,
        end_s - sent_s,
        sum(sent > sent_s and ended < end_s for sent, ended in shorts),
        len(shorts),
        float(np.mean(waits_s)),
        float(np.percentile(waits_s, 99)),
        max(stalls),
    )


def measure(engine: Engine, ranker: Path, options: argparse.Namespace) -> list[Starvation]:
    """One flood a bound."""
    results = []
    print("bound s   long request s   overtaken by   of shorts   short: mean s     p99 s   stall s")
    for bound in options.bounds:
        with gateway(engine, ranker, "--max-overtake-s", bound) as door:
            it = uvloop.run(flood(door.url, bound, options.flood_s, options.num_waiting))
        print(
            f"{bound:>7}{it.long_s:17.2f}{it.num_overtaking:15}{it.num_short:12}"
            f"{it.short_mean_s:16.2f}{it.short_p99_s:10.2f}{it.largest_stall_s:10.2f}",
            flush=True,
        )
        results.append(it)
    return results


def main() -> None:
    """Start vLLM, flood it once a bound, print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--bounds", nargs="+", default=["0", "5", "10", "inf"])
    parser.add_argument("--flood-s", type=float, default=30.0)
    parser.add_argument("--num-waiting", type=int, default=32)
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    if not (ROOT / ".engine/tiny-llama.stamp").exists():
        sys.exit("needs the real vLLM in .engine/: run `make engine`")
    with tempfile.TemporaryDirectory() as folder:
        ranker = word_ranker(Path(folder) / "ranker")
        engines = Engines(Path(folder), {})
        try:
            results = measure(engines("--scheduling-policy", "priority"), ranker, options)
        finally:
            engines.stop()
    report = [asdict(it) for it in results]
    if options.json_out:
        options.json_out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
