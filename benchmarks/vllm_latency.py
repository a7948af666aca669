"""
Real prompts on a real vLLM: first come first served, beside a ranker's order and the oracle's.

    make engine
    python benchmarks/vllm_latency.py                      # all 200 at once, the bundled ranker
    python benchmarks/vllm_latency.py --rate 8 --ranker build/ranker --data build/val_data.json

The model is the tests' tiny one, so tokens mean nothing; but each answer is as long as the real one
was, and prompts have their real number of tokens. The policies take turns on one server, with the
same prompts and the same arrivals, and all three pass the middleware:

    fcfs    every priority is 0, set by a trusted header: vLLM then goes by arrival
    lite    what the middleware makes of the prompt; max_tokens, which here gives the true length
            away, is hidden from it by PARS_OBEY_LIMITS=0
    oracle  the priority is the true length, set by a trusted header: shortest first, without aging

PARS_SHARED names the folder with data/*.jsonl.gz (default ../shared); without it, prompts and
lengths are made up. `pars`'s own ranker has seen neither set; for one trained on a set, name the
val_data.json that it was not trained on. The last line of stdout is one JSON with all of it.
"""

import argparse
import asyncio
import gzip
import json
import os
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop

from pars.ranking.order_metrics import kendall_tau_b
from pars.ranking.ranker import Ranker, bundled_ranker

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
from engine import MODEL, Engine, Engines  # noqa: E402  # the tests' real vLLM

SHARED = Path(os.environ.get("PARS_SHARED", ROOT.parent / "shared"))
RECORDS = {
    "alpaca": "instruction_alpaca_davinci003.jsonl.gz",
    "sharegpt": "chat_sharegpt.jsonl.gz",
}
POLICIES = ("fcfs", "lite", "oracle")
MEASURES = {"end_to_end_s": "end-to-end, s", "ttft_s": "first token, s", "ntpot_s": "NTPOT, s"}
SECRET = "benchmark"
MAX_PROMPT_TOKENS = 4000


@dataclass(frozen=True)
class Job:
    """A prompt, and the real answer's length after the cap, both in tokens."""

    prompt: str
    prompt_tokens: int
    answer_tokens: int

    def request(self, policy: str) -> bytes:
        """The bytes of its HTTP request."""
        body = {
            "model": MODEL,
            "prompt": self.prompt,
            "truncate_prompt_tokens": self.prompt_tokens,  # the tiny model has a token a byte
            "max_tokens": self.answer_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(body).encode()
        head = ["POST /v1/completions HTTP/1.1", "Host: bench", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        if policy != "lite":
            head.append(f"X-Pars-Secret: {SECRET}")
            head.append(f"X-Vllm-Priority: {self.answer_tokens if policy == 'oracle' else 0}")
        return "\r\n".join([*head, "", ""]).encode() + content


@dataclass(frozen=True)
class Answer:
    """When one job's first token and its last came, in seconds after it was due."""

    ttft_s: float
    end_to_end_s: float
    ended_at_s: float  # on the clock of the run
    num_tokens: int

    @property
    def ntpot_s(self) -> float:
        """Normalized time per output token: the whole wait, shared among the tokens."""
        return self.end_to_end_s / self.num_tokens


def read_jobs(data: str, max_tokens: int) -> tuple[list[Job], str]:
    """All jobs of a data set, and where they come from."""
    path = SHARED / "data" / RECORDS[data] if data in RECORDS else Path(data)
    if data not in RECORDS:
        rows = json.loads(path.read_text(encoding="utf-8"))
        known = [(row["prompt"], len(row["prompt"]) // 4, row["answer_length"]) for row in rows]
    elif path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            records = map(json.loads, lines)
            known = [(it["prompt"], it["prompt_tokens"], it["response_tokens"]) for it in records]
    else:
        return list(made_up_jobs(max_tokens)), f"made-up prompts: {path} is not here"
    jobs = [
        Job(prompt, min(max(1, prompt_tokens), MAX_PROMPT_TOKENS), min(int(length), max_tokens))
        for prompt, prompt_tokens, length in known
        if prompt and length >= 1
    ]
    return jobs, path.name


def made_up_jobs(max_tokens: int) -> Iterator[Job]:
    """Lengths log-normal about what the prompt asks for."""
    rng = random.Random(0)
    tasks = {"Name": 8, "Explain in a few words": 40, "Write a story about": 250}
    for number in range(2000):
        task, typical = rng.choice(list(tasks.items()))
        length = round(typical * rng.lognormvariate(0, 0.5))
        yield Job(f"{task} the number {number}", 8, min(max(1, length), max_tokens))


async def run_policy(
    engine: Engine, policy: str, jobs: list[Job], due_s: list[float]
) -> tuple[list[Answer], float]:
    """Send every job when it is due: an answer a job in their order, and our longest stall in s."""
    address = urlsplit(engine.url)
    start_s = time.perf_counter()

    async def run_job(job: Job, due_s: float) -> Answer:
        await asyncio.sleep(start_s + due_s - time.perf_counter())
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(job.request(policy))
        received, first_s = b"", None
        while piece := await reader.read(65536):
            received += piece
            if first_s is None and b"data: {" in received:
                first_s = time.perf_counter() - start_s
        end_s = time.perf_counter() - start_s
        writer.close()
        usage = re.search(rb'"completion_tokens":(\d+)', received)
        if first_s is None or usage is None or int(usage[1]) != job.answer_tokens:
            raise RuntimeError(f"not the answer asked for: {received[:500]!r}")
        return Answer(first_s - due_s, end_s - due_s, end_s, job.answer_tokens)

    async with stalls_s() as stalls:
        answers = await asyncio.gather(*map(run_job, jobs, due_s))
    return answers, max(stalls)


@asynccontextmanager
async def stalls_s() -> AsyncIterator[list[float]]:
    """How much too late each pause of 10 ms in the block ended: this client's own standstills."""
    late_s = [0.0]

    async def watch() -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(0.01)
            late_s.append(time.perf_counter() - before_s - 0.01)

    watching = asyncio.create_task(watch())
    try:
        yield late_s
    finally:
        watching.cancel()


def arrivals_s(num_jobs: int, rate: float, rng: random.Random) -> list[float]:
    """When each job is due: all at once for rate 0, else a Poisson process."""
    due_s = [0.0]
    while len(due_s) < num_jobs:
        due_s.append(due_s[-1] + (rng.expovariate(rate) if rate else 0.0))
    return due_s


def decisions(engine: Engine) -> dict[str, int]:
    """The middleware's counters, by outcome."""
    page = urllib.request.urlopen(f"{engine.url}/metrics").read().decode()
    found = re.findall(r'^pars_decisions_total{outcome="(\w+)"} (\S+)$', page, re.MULTILINE)
    return {outcome: int(float(value)) for outcome, value in found}


def measure(engine: Engine, ranker: Ranker, jobs: list[Job], options: argparse.Namespace) -> list:
    """One run a policy and repeat: its answers, and how they lie to scores and lengths."""
    runs = []
    for repeat in range(options.repeats):
        rng = random.Random(options.seed + repeat)
        chosen = rng.sample(jobs, min(options.num_prompts, len(jobs)))
        due_s = arrivals_s(len(chosen), options.rate, rng)
        scores = ranker.score([job.prompt for job in chosen])
        lengths = [job.answer_tokens for job in chosen]
        turn = repeat % len(POLICIES)
        for policy in POLICIES[turn:] + POLICIES[:turn]:
            before = decisions(engine)
            answers, largest_stall_s = uvloop.run(run_policy(engine, policy, chosen, due_s))
            counts = {name: n - before[name] for name, n in decisions(engine).items()}
            ends_s = [answer.ended_at_s for answer in answers]
            firsts_s = [answer.ttft_s + due for answer, due in zip(answers, due_s, strict=True)]
            run = {
                "repeat": repeat,
                "policy": policy,
                "answers": answers,
                "tau_b_score_first_token": kendall_tau_b(scores, firsts_s),
                "tau_b_score_completion": kendall_tau_b(scores, ends_s),
                "tau_b_length_completion": kendall_tau_b(lengths, ends_s),
                "tau_b_score_length": kendall_tau_b(scores, lengths),
                "tokens_per_s": sum(lengths) / max(ends_s),
                "largest_stall_s": largest_stall_s,
                "decisions": {name: n for name, n in counts.items() if n},
            }
            runs.append(run)
            print_run(run)
    return runs


def print_run(run: dict[str, Any]) -> None:
    mean_s = np.mean([answer.end_to_end_s for answer in run["answers"]])
    print(
        f"repeat {run['repeat']} {run['policy']:<6} mean {mean_s:6.2f} s,"
        f" {run['tokens_per_s']:5.0f} tokens/s, own stalls up to {run['largest_stall_s']:.2f} s,"
        f" {run['decisions']}",
        flush=True,
    )


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each measure and policy, over all repeats: mean, percentiles, share of oracle's gain."""
    summary: dict[str, Any] = {}
    for measure_name in MEASURES:
        rows = {}
        for policy in POLICIES:
            of_policy = [run["answers"] for run in runs if run["policy"] == policy]
            values = [getattr(answer, measure_name) for answers in of_policy for answer in answers]
            p50, p90, p99, longest = np.percentile(values, [50, 90, 99, 100]).tolist()
            rows[policy] = {
                "mean": float(np.mean(values)),
                "p50": p50,
                "p90": p90,
                "p99": p99,
                "longest": longest,
                "mean_of_each_repeat": [
                    float(np.mean([getattr(answer, measure_name) for answer in answers]))
                    for answers in of_policy
                ],
            }
        gain = rows["fcfs"]["mean"] - rows["oracle"]["mean"]
        for policy in POLICIES:
            reached = rows["fcfs"]["mean"] - rows[policy]["mean"]
            rows[policy]["share_of_oracle_gain"] = reached / gain if gain > 0 else None
        summary[measure_name] = rows
    summary["tau_b"] = {
        policy: {
            name: float(np.mean([run[name] for run in runs if run["policy"] == policy]))
            for name in runs[0]
            if name.startswith("tau_b")
        }
        for policy in POLICIES
    }
    return summary


def print_tables(summary: dict[str, Any]) -> None:
    columns = ("mean", "p50", "p90", "p99", "longest")
    for measure_name, title in MEASURES.items():
        print(f"\n{title:<16}" + "".join(f"{column:>9}" for column in columns), end="")
        print("  mean of fcfs  of oracle's gain")
        rows = summary[measure_name]
        for policy, row in rows.items():
            ratio = row["mean"] / rows["fcfs"]["mean"]
            share = row["share_of_oracle_gain"]
            cells = "".join(f"{row[column]:9.3f}" for column in columns)
            told = "-" if share is None else f"{share:.0%}"
            print(f"  {policy:<14}{cells}{ratio:13.2f}x{told:>18}")
    print("\ntau-b of              score and       score and      length and")
    print("                    first token      completion      completion")
    for policy, row in summary["tau_b"].items():
        names = ("score_first_token", "score_completion", "length_completion")
        print(f"  {policy:<14}" + "".join(f"{row['tau_b_' + name]:15.3f} " for name in names))
    print(f"of the scores and the true lengths: {row['tau_b_score_length']:.3f}")


@contextmanager
def real_vllm(options: argparse.Namespace) -> Iterator[Engine]:
    """A vLLM with the middleware and the ranker, for the block."""
    environment = {
        "PARS_RANKER": str(options.ranker.resolve()),
        "PARS_MAX_OVERTAKE_S": str(options.max_overtake_s),
        "PARS_BUDGET_MS": str(options.budget_ms),
        "PARS_OBEY_LIMITS": "0",
        "PARS_TRUSTED_SECRET": SECRET,
    }
    with tempfile.TemporaryDirectory() as logs:
        engines = Engines(Path(logs), {})
        try:
            yield engines(
                *("--scheduling-policy", "priority"),
                *("--middleware", "pars.middleware.PriorityMiddleware"),
                *("--max-num-seqs", str(options.num_slots)),
                "--no-enable-prefix-caching",  # the policies send the same prompts
                **environment,
            )
        finally:
            engines.stop()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "--data", default="alpaca", help="alpaca, sharegpt, or a val_data.json of `pars prepare`"
    )
    parser.add_argument("--ranker", type=Path, default=bundled_ranker())
    parser.add_argument("--num-prompts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s; 0: all at once")
    parser.add_argument("--max-tokens", type=int, default=400, help="cap of the real lengths")
    parser.add_argument("--num-slots", type=int, default=8, help="--max-num-seqs of vLLM")
    parser.add_argument("--max-overtake-s", type=float, default=30.0)
    parser.add_argument("--budget-ms", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json-out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Start vLLM, let the policies take turns, print tables and JSON."""
    options = read_options()
    jobs, source = read_jobs(options.data, options.max_tokens)
    ranker = Ranker.load(options.ranker)
    arrivals = f"{options.rate} requests/s" if options.rate else "all at once"
    print(f"{options.num_prompts} of {len(jobs)} prompts: {source}; {arrivals}")
    print(f"lite: {options.ranker}")
    if not (ROOT / ".engine/tiny-llama.stamp").exists():
        sys.exit("needs the real vLLM in .engine/: run `make engine`")
    with real_vllm(options) as engine:
        warm_up = jobs[: options.num_slots]
        for policy in POLICIES:
            uvloop.run(run_policy(engine, policy, warm_up, [0.0] * len(warm_up)))
        runs = measure(engine, ranker, jobs, options)
    summary = summarize(runs)
    print_tables(summary)
    kept = [{name: value for name, value in run.items() if name != "answers"} for run in runs]
    asked = {name: str(value) for name, value in vars(options).items() if name != "json_out"}
    report = {"source": source, "options": asked, "summary": summary, "runs": kept}
    if options.json_out:
        options.json_out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
