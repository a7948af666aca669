"""
Run by vLLM's own Python: the slowdown's bound on vLLM's real scheduler, in virtual time.

Prints a JSON list, one item a case: [wait, first-come wait] of each ordinary request, in seconds.
"""

import json
import math
import random
import sys
from collections.abc import Callable

from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import StepTime
from pars.prove.engine.stepping import EngineLimits
from pars.prove.engine.vllm_engine import VllmEngine
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.demand import Demand
from pars.scheduling.policies.max_slowdown import MaxSlowdown

NOON_S = 1_795_694_400.0
STEP_S, NUM_SLOTS, NUM_REQUESTS, SKEW_S = 0.1, 4, 250, 0.05
LIMITS = EngineLimits(
    max_num_seqs=NUM_SLOTS, max_num_batched_tokens=256, num_blocks=4000, block_size=16
)
STEP_TIME = StepTime(base_s=STEP_S, prefill_token_s=0.0, decode_seq_s=0.0, kv_token_s=0.0)
PREDICTORS: dict[str, Callable[[random.Random, float], float]] = {
    "perfect": lambda chance, tokens: tokens,
    "noisy": lambda chance, tokens: tokens * math.exp(chance.gauss(0, 0.7)),
    "random": lambda chance, tokens: math.exp(chance.gauss(3.0, 1.0)),
    "inverted": lambda chance, tokens: 400.0 / tokens,
    "all short": lambda chance, tokens: 1.0,
    "too small": lambda chance, tokens: tokens / 20,
}


def load(seed: int) -> list[WorkloadRequest]:
    """Bursts a little above what the engine gets done; the prompts cost nothing."""
    chance, at_s, requests = random.Random(seed), 0.0, []
    for number in range(NUM_REQUESTS):
        at_s += chance.expovariate(1.0) * (0.2 if chance.random() < 0.8 else 3.0)
        tokens = min(400, max(1, round(math.exp(chance.gauss(3.0, 1.0)))))
        requests.append(WorkloadRequest(f"{number:04d}", at_s, None, 1, tokens))
    return requests


def waits(
    requests: list[WorkloadRequest], lanes: list[MaxSlowdown], predictor: str, seed: int
) -> tuple[dict[str, float], dict[str, bool]]:
    """Seconds to each first token, and who is express."""
    chance, places, first_s = random.Random(seed), {}, {}
    of = {it.request_id: number % len(lanes) for number, it in enumerate(requests)}

    def keyed():
        for it in requests:
            guess = max(1.0, PREDICTORS[predictor](chance, float(it.output_tokens)))
            gateway = of[it.request_id]
            came_s = NOON_S + it.arrival_s + SKEW_S * gateway
            place = lanes[gateway].place(Demand(guess, guess), came_s)
            places[it.request_id] = place
            yield it, place.key

    def began(request_id: str, now_s: float) -> None:
        first_s[request_id] = now_s
        lanes[of[request_id]].began(places[request_id])

    def ended(times) -> None:
        lane, place = lanes[of[times.request_id]], places[times.request_id]
        lane.ended(place, times.finished_s)
        lane.correct(place, float(times.output_tokens), times.output_tokens)

    simulate(
        keyed(),
        VllmEngine(LIMITS),
        STEP_TIME,
        policy="bound",
        on_finished=ended,
        on_first_token=began,
    )
    told = {it.request_id: first_s[it.request_id] - it.arrival_s for it in requests}
    return told, {name: bool(place.is_express) for name, place in places.items()}


def main() -> None:
    found = []
    for seed, predictor in enumerate(PREDICTORS):
        requests = load(seed)
        first_come, _ = waits(requests, [MaxSlowdown(1.0)], predictor, seed)
        for ratio in (1.33, 2.0):
            for num_gateways in (1, 3):
                shared = num_gateways > 1
                lanes = [MaxSlowdown(ratio, shares_engine=shared) for _ in range(num_gateways)]
                own, is_express = waits(requests, lanes, predictor, seed)
                pairs = [[own[it], first_come[it]] for it in own if not is_express[it]]
                largest_s = max(it.output_tokens for it in requests) * STEP_S
                found.append(
                    {
                        "predictor": predictor,
                        "ratio": ratio,
                        "num_gateways": num_gateways,
                        "num_express": sum(is_express.values()),
                        "largest_s": largest_s,
                        "waits": pairs,
                    }
                )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
