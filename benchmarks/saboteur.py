"""
What one caller can do to the others, and to his own place, by what the ranker learns from him.

    python benchmarks/saboteur.py

Poison: a quarter of the traffic is one caller's, who asks what others ask and turns round what he
gets: the longest answers to what has short ones. The others, with four API keys of their own, are
served in the queue of benchmarks/cold_start.py (32 slots, bursts, 0.95, shortest first). Their
gain over first come, first served in mean time per answer token (NTPOT) with him is held against
the same queue in which his answers are served and not learned.

Disguise: a caller who was never seen begins to send, among 3,000 known requests, the words of the
shortest answers and gets the longest. After how many of his answers is his next request expected to
be longer than the median? The mean over NUM_DISGUISED such callers.

The last line of stdout is one JSON document; PARS_SHARED names the folder with data/.
"""

import json
import sys
from dataclasses import replace

import numpy as np

from cold_start import CV, LIMITS, LOAD, PRESET, alpaca
from online import SHARED
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.policy_run import run_policy
from pars.prove.report.sweep import capacity_rps
from pars.prove.workload.arrivals import gamma
from pars.prove.workload.contenders import Contender
from pars.prove.workload.learning import LearningEstimator
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.online.model import Callers
from pars.ranking.online.ranker import OnlineRanker
from pars.request.features import signals_of_row

NUM_REQUESTS, NUM_RUNS, SHARE = 4_000, 6, 0.25
NUM_KNOWN, NUM_DISGUISED, MOST_TRIES = 3_000, 10, 300
SABOTEUR = "saboteur"


class DeafEstimator(LearningEstimator):
    """Does not learn from the saboteur."""

    def __init__(self, deaf_to: set[str]) -> None:
        super().__init__()
        self._deaf_to = deaf_to

    def learn(self, request_id: str, answer_tokens: int | None) -> None:
        super().learn(request_id, None if request_id in self._deaf_to else answer_tokens)


class Gullible(Callers):
    """Takes everybody at his word, as the model would without its guard."""

    def trust(self, caller: int, expected: float, came: float) -> float:
        return 1.0


def main() -> None:
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED}/data is not there: set PARS_SHARED")
    rows = alpaca()
    gains = np.array([gains_of_others(rows, seed) for seed in range(NUM_RUNS)])
    beside, unguarded, without = gains.mean(axis=0)
    loss = 1 - beside / without
    print(f"others' mean NTPOT gain over first come, first served, {NUM_RUNS} runs:")
    print(f"  his answers learned {1000 * beside:.1f} ms, not learned {1000 * without:.1f} ms")
    print(f"  poison costs them {loss:.1%} (target: under 5%)")
    print(f"  and would cost {1 - unguarded / without:.1%} if all were taken at their word")
    tries = [answers_until_known(rows, seed) for seed in range(NUM_DISGUISED)]
    print(
        f"a disguise is seen through after {np.mean(tries):.0f} answers, {max(tries)} at the most"
        f" of {NUM_DISGUISED} (target: 100)"
    )
    print(json.dumps({"loss": loss, "gains_s": gains.tolist(), "answers_until_known": tries}))


def gains_of_others(rows: list[dict], seed: int) -> list[float]:
    """Seconds a token that the others gain: his answers learned, without the guard, and not."""
    requests, his = poisoned(rows, seed)
    others = np.array([it.request_id not in his for it in requests])
    fcfs = ntpot_s(requests, Contender.parse("fcfs").fitted(requests), "fcfs")[others].mean()
    gains = []
    gullible = LearningEstimator()
    gullible.ranker.model.callers = Gullible()
    for estimator in (LearningEstimator(), gullible, DeafEstimator(his)):
        gains.append(float(fcfs - ntpot_s(requests, estimator, "online")[others].mean()))
    return gains


def poisoned(rows: list[dict], seed: int) -> tuple[list[WorkloadRequest], set[str]]:
    rng = np.random.default_rng(seed)
    chosen = [rows[int(it)] for it in rng.permutation(len(rows))[:NUM_REQUESTS]]
    is_his = rng.random(NUM_REQUESTS) < SHARE
    lengths = np.array([row["response_tokens"] for row in chosen])
    mine = np.flatnonzero(is_his)
    by_length = mine[np.argsort(lengths[mine], kind="stable")]
    turned = lengths.copy()
    turned[by_length] = lengths[by_length[::-1]]
    requests = []
    for number, row in enumerate(chosen):
        key = SABOTEUR if is_his[number] else f"key {number % 4}"
        requests.append(
            WorkloadRequest(
                request_id=f"{number:05d}",
                arrival_s=0.0,
                prompt=row["prompt"],
                prompt_tokens=max(1, row["prompt_tokens"]),
                output_tokens=int(turned[number]),
                facts=signals_of_row({"api_key": key}, row["prompt"]).facts,
            )
        )
    rate = LOAD * capacity_rps(requests, replace(PRESET, limits=LIMITS))
    arrivals_s = gamma(len(requests), rate, CV, seed)
    timed = [replace(it, arrival_s=at) for it, at in zip(requests, arrivals_s, strict=True)]
    return timed, {it.request_id for it, his in zip(timed, is_his, strict=True) if his}


def ntpot_s(requests: list[WorkloadRequest], estimator, policy: str) -> np.ndarray:
    found = np.full(len(requests), np.nan)

    def keep(times) -> None:
        took_s = times.finished_s - times.arrival_s
        found[int(times.request_id)] = took_s / times.output_tokens

    contender = Contender.parse(policy)
    engine = FastEngine(LIMITS)
    run_policy(requests, contender, estimator, engine, PRESET.step_time, on_finished=keep)
    return found


def answers_until_known(rows: list[dict], seed: int) -> int:
    """His answers until ten requests of his in a row are expected to be longer than the median."""
    rng = np.random.default_rng(seed)
    chosen = [rows[int(it)] for it in rng.permutation(len(rows))[: NUM_KNOWN + 3_000]]
    ranker = OnlineRanker(b"not kept, sixteen")
    for number, row in enumerate(chosen[:NUM_KNOWN]):
        signals = signals_of_row({"api_key": f"key {number % 4}"}, row["prompt"])
        ranker.learn(ranker.expect(signals), row["response_tokens"])
    rest = sorted(chosen[NUM_KNOWN:], key=lambda row: row["response_tokens"])
    median = rest[len(rest) // 2]["response_tokens"]
    short, long = rest[:1_000], rest[-1_000:]
    in_a_row = 0
    for number in range(MOST_TRIES):
        prompt = short[int(rng.integers(1_000))]["prompt"]
        guess = ranker.expect(signals_of_row({"api_key": SABOTEUR}, prompt))
        in_a_row = in_a_row + 1 if guess.tokens > median else 0
        if in_a_row == 10:
            return number - 9
        ranker.learn(guess, long[int(rng.integers(1_000))]["response_tokens"])
        other = chosen[int(rng.integers(NUM_KNOWN))]  # the others go on meanwhile
        signals = signals_of_row({"api_key": f"key {number % 4}"}, other["prompt"])
        ranker.learn(ranker.expect(signals), other["response_tokens"])
    return MOST_TRIES


if __name__ == "__main__":
    main()
