"""
How a predicted length should spend the overtaking range: curves compared at the same bound.

A queueing model without an engine: SLOTS requests run at once, each for its length; Poisson
arrivals come in bursts, a minute at 1.7 times what the slots can do and a minute at 0.6; lengths
are log-normal (median 180, sigma 1.0, up to 2048 tokens), predictions have log-normal noise
(sigma 0.7). Every curve maps a prediction into [0, RANGE) seconds, so every one keeps the same
bound. NTPOT is the time from arrival to end per token. The last line is one JSON document.

    python benchmarks/overtake_curve.py
"""

import heapq
import json
import math
import random
import statistics
from collections.abc import Callable

from pars.scheduling.policies.shortest_first import cost_share

SLOTS, TOKEN_S, NUM_REQUESTS, SEEDS = 32, 0.012, 4000, (0, 1, 2)
MEDIAN_TOKENS, SIGMA, MAX_TOKENS, NOISE = 180.0, 1.0, 2048.0, 0.7
RANGES_S = (10.0, 30.0, 60.0, 120.0)

Curve = Callable[[float], float]  # predicted tokens -> share of the range
CURVES: dict[str, Curve] = {
    "linear to the longest": lambda tokens: tokens / MAX_TOKENS,
    "linear to p90, cut": lambda tokens: min(tokens / 650, 1.0),
    "linear to p90, tail (ours)": lambda tokens: cost_share(tokens, 650),
    "hyperbola at the median": lambda tokens: tokens / (tokens + MEDIAN_TOKENS),
    "logarithm": lambda tokens: math.log1p(tokens) / math.log1p(MAX_TOKENS),
}


def workload(seed: int) -> list[tuple[float, float, float]]:
    """Arrival (s), true and predicted length (tokens) of each request."""
    rng = random.Random(seed)
    capacity_per_s = SLOTS / (295 * TOKEN_S)  # 295 tokens is the mean length
    at_s, requests = 0.0, []
    for _ in range(NUM_REQUESTS):
        load = 1.7 if at_s % 120 < 60 else 0.6
        at_s += rng.expovariate(load * capacity_per_s)
        length = min(MAX_TOKENS, max(4.0, rng.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA)))
        guess = min(MAX_TOKENS, max(4.0, length * math.exp(rng.gauss(0, NOISE))))
        requests.append((at_s, length, guess))
    return requests


def run(requests: list[tuple[float, float, float]], key: Callable[[float, float], float]):
    """Mean NTPOT and mean, p99 and longest wait (s) with static keys, smaller first."""
    queue: list[tuple[float, int]] = []
    ends: list[float] = []
    waits, ntpots = [], []
    upcoming, free = 0, SLOTS
    while upcoming < len(requests) or queue:
        next_s = requests[upcoming][0] if upcoming < len(requests) else math.inf
        if next_s <= (ends[0] if ends else math.inf):
            now_s = next_s
            heapq.heappush(queue, (key(now_s, requests[upcoming][2]), upcoming))
            upcoming += 1
        else:
            now_s = heapq.heappop(ends)
            free += 1
        while free and queue:
            at_s, length, _ = requests[heapq.heappop(queue)[1]]
            heapq.heappush(ends, now_s + length * TOKEN_S)
            free -= 1
            waits.append(now_s - at_s)
            ntpots.append((now_s - at_s) / length + TOKEN_S)
    waits.sort()
    return statistics.mean(ntpots), statistics.mean(waits), waits[-len(waits) // 100], waits[-1]


def main() -> None:
    """Print the table, then the JSON."""
    loads = [workload(seed) for seed in SEEDS]
    cases: list[tuple[float, str, Callable[[float, float], float]]] = [
        (0.0, "first come, first served", lambda at_s, _: at_s),
        (math.inf, "shortest first", lambda _, tokens: tokens),
    ]
    for range_s in RANGES_S:
        for name, curve in CURVES.items():
            cases.append((range_s, name, lambda t, n, r=range_s, c=curve: t + r * c(n)))
    print(f"{'range':>6}  {'curve':<28}{'NTPOT':>8}{'wait':>8}{'p99':>8}{'longest':>9}  (seconds)")
    rows = []
    for range_s, name, key in cases:
        runs = [run(requests, key) for requests in loads]
        means = [statistics.mean(column) for column in zip(*runs, strict=True)]
        print(
            f"{range_s:>6g}  {name:<28}{means[0]:>8.3f}" + "".join(f"{x:>8.1f}" for x in means[1:])
        )
        rows.append({"range_s": str(range_s), "curve": name, "ntpot_wait_p99_longest_s": means})
    print(json.dumps({"slots": SLOTS, "requests": NUM_REQUESTS, "rows": rows}))


if __name__ == "__main__":
    main()
