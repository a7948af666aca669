"""
A day in virtual time whose traffic changes at noon: who orders the queue well, and who notices.

    python benchmarks/noon_shift.py

Until noon prompts come from Alpaca (text-davinci-003), after it from ShareGPT (ChatGPT), each with
its real answer length and each at most once. Arrivals are Poisson at a rate that follows the day:
LOAD is the share of what the engine can serve of that hour's kind. The engine is the preset h100-8b
with 8 slots; every priority is aged as by default (30 s). The day is scaled down: an hour has
HOUR_S seconds, so that the records last. Who orders:

    fcfs               the order of arrival
    fixed              a lite ranker trained on yesterday's traffic, all of it Alpaca's
    fixed, watched     the same, disabled by `outcomes.drift` when it is worse than useless
    rule               shorter prompts get longer answers: true of Alpaca, not of ShareGPT
    rule, watched      the same, with `pars.outcomes.drift`
    wrong              fixed upside down, the long first: a mistake in somebody's labels
    wrong, watched     the same, with `pars.outcomes.drift`
    learning, watched  fixed at first; each hour `pars learn` tries a ranker that learnt from the
                       last answers, and promotes it if it orders the newest of them better
    online             the ranker that learns while it serves, from nothing at midnight
    oracle             true lengths

The line "after noon" tells which share of the oracle's gain over fcfs each has, of the first 2,000
requests after noon and of the whole afternoon. `--only fcfs,online,oracle` runs some of them, and
trains nothing that they do not need.

Retraining takes no virtual time, and no engine time. There are NUM_DAYS such days, each with other
records at other times; what is printed is over all of them. The last line of stdout is one JSON
document; the picture is noon_shift.png in --work-dir. PARS_SHARED names the folder with
data/*.jsonl.gz (default ../shared); they are not part of the project, and without them there is
nothing to run.
"""

import argparse
import gzip
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np

from pars.learn.own_traffic.from_outcomes import LearnConfig, learn
from pars.learn.training.calibration import calibrate
from pars.learn.training.config import LITE_DEFAULTS, TrainConfig
from pars.learn.training.train import train
from pars.outcomes.drift import Drift
from pars.outcomes.records import OUTCOMES, PROMPTS, SUFFIX, Outcome, json_line
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.engine.step_time import EnginePreset
from pars.prove.report.times import RequestTimes
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import START_S, Line
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.order_metrics import kendall_tau_b
from pars.ranking.ranker import Ranker
from pars.scheduling.demand import Calibration, Demand
from pars.scheduling.keys import EPOCH_S
from pars.scheduling.policies.shortest_first import DEFAULT_MAX_OVERTAKE_S, ShortestFirst

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
MORNING, AFTERNOON = "instruction_alpaca_davinci003", "chat_sharegpt"
NUM_DAYS, NUM_YESTERDAY = 2, 12_000
HOUR_S, NOON, NUM_HOURS = 165.0, 12, 24
LOAD = (0.3,) * 6 + (0.6,) * 2 + (1.0,) * 12 + (0.6,) * 4  # by the hour
SLOTS = 8
PRESET = EnginePreset.named("h100-8b")
LIMITS = replace(PRESET.limits, max_num_seqs=SLOTS)
AGED = f"@{DEFAULT_MAX_OVERTAKE_S:g}"
AGING = ShortestFirst(DEFAULT_MAX_OVERTAKE_S)
MOST_PROMPT_TOKENS = 4096
NUM_REMEMBERED, NEWEST_SHARE, NUM_RESAMPLES = 4000, 0.1, 400  # of `pars learn`
SHARE_VALIDATION = 0.1
NUM_FIRST = 2_000  # requests after noon
COLORS = {
    "fcfs": "black",
    "fixed": "tab:blue",
    "rule": "tab:red",
    "wrong": "tab:gray",
    "learning": "tab:orange",
    "online": "tab:purple",
    "oracle": "tab:green",
}
HALVES = (("until noon", range(NOON)), ("after noon", range(NOON, NUM_HOURS)))


@dataclass(frozen=True, slots=True)
class Day:
    """The requests in order of arrival, their answer lengths and hours, and yesterday's rows."""

    requests: list[WorkloadRequest]
    tokens: np.ndarray
    hours: np.ndarray
    yesterday: list[dict]


class Rule:
    """A ranker without learning: the shorter the prompt, the longer the answer."""

    def __init__(self, rows: list[dict]) -> None:
        lengths = [row["answer_length"] for row in rows]
        self.info = calibrate(self.score([row["prompt"] for row in rows]), lengths, "tokens")

    def score(self, prompts: list[str]) -> np.ndarray:
        return -np.log1p([len(prompt) for prompt in prompts])


class UpsideDown:
    """A ranker the wrong way round, calibrated as if it were right."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker, info = ranker, ranker.info
        quantiles = [-score for score in reversed(info.score_quantiles)]
        self.info = replace(info, score_quantiles=quantiles)

    def score(self, prompts: list[str]) -> np.ndarray:
        return -self._ranker.score(prompts)


class Order:
    """Who goes first: by one of `pars simulate`'s policies that needs no ranker."""

    def __init__(self, name: str, day: Day, policy: str) -> None:
        self.name, self.day = name, day
        self.events: list[str] = []
        self.taus = np.full(NUM_HOURS, np.nan)  # of each hour's arrivals
        self.drift_taus = np.full(NUM_HOURS, np.nan)  # as Drift has it when the hour ends
        self.ntpot_s, self.ttft_s = np.full((2, len(day.requests)), np.nan)
        self.learning_s: list[float] = []
        contender = Contender.parse(policy)
        self._line = Line(contender.policy, contender.fitted(day.requests))

    def key(self, number: int) -> int:
        return self._line.key(self.day.requests[number])

    def begin_hour(self, hour: int) -> None: ...

    def ended(self, number: int, now_s: float) -> None: ...

    def end_day(self) -> None: ...


class RankerOrder(Order):
    """By a ranker, which `drift` may disable."""

    def __init__(self, name: str, day: Day, ranker: object, drift: Drift | None = None) -> None:
        super().__init__(name, day, "fcfs")
        self.drift = drift
        self.expected = np.full(len(day.requests), np.nan)
        self._use(ranker, 0)

    def key(self, number: int) -> int:
        request = self.day.requests[number]
        if self.drift is None or self.drift.is_useful:
            return self._line.key(request, self._scores[number])
        neutral, long = self._calibration.neutral_tokens, self._calibration.long_tokens
        demand = Demand(neutral, neutral)
        return AGING.place(demand, START_S + request.arrival_s, long_tokens=long).key

    def begin_hour(self, hour: int) -> None:
        if self.drift is not None and self.drift.tau_b is not None and hour:
            self.drift_taus[hour - 1] = self.drift.tau_b.value

    def ended(self, number: int, now_s: float) -> None:
        if self.drift is None:
            return
        self.drift.observe(self.expected[number], self.day.tokens[number])
        if self.drift.is_due and self.drift.judge():
            what = "enabled again" if self.drift.is_useful else "disabled"
            self.events.append(f"{clock(now_s)} {self.name}: {what}, tau-b {self.drift.tau_b}")

    def end_day(self) -> None:
        self.begin_hour(NUM_HOURS)
        for hour in range(NUM_HOURS):
            of_hour = self.day.hours == hour
            self.taus[hour] = kendall_tau_b(self.expected[of_hour], self.day.tokens[of_hour])

    def _use(self, ranker: object, first: int) -> None:
        """Order by `ranker` from request number `first` on."""
        self.ranker = ranker
        prompts = [request.prompt for request in self.day.requests[first:]]
        scores = [float(score) for score in ranker.score(prompts)]
        self._scores = [math.nan] * first + scores
        self._calibration = Calibration.of(ranker.info)
        self.expected[first:] = [self._calibration.expected_tokens(score) for score in scores]
        ranked = Contender.parse(f"ranker{AGED}")
        self._line = Line(ranked.policy, ranked.fitted(self.day.requests, self._calibration))


class OnlineOrder(Order):
    """By the ranker that learns each answer when it ends, and begins with nothing."""

    def __init__(self, name: str, day: Day) -> None:
        super().__init__(name, day, f"online{AGED}")

    def ended(self, number: int, now_s: float) -> None:
        request = self.day.requests[number]
        self._line.ended(
            request.request_id,
            now_s,
            answer_tokens=request.output_tokens,
            prompt_tokens=request.prompt_tokens,
        )


class LearningOrder(RankerOrder):
    """By a ranker that `pars learn` replaces every hour if it finds a better one."""

    def __init__(self, name: str, day: Day, ranker: Path, folder: Path) -> None:
        super().__init__(name, day, Ranker.load(ranker), Drift())
        self._outcomes, self._served = folder / "outcomes", folder / "served"
        self._outcomes.mkdir(parents=True)
        shutil.copytree(ranker, self._served)
        self._ended: list[int] = []

    def ended(self, number: int, now_s: float) -> None:
        self._ended.append(number)
        super().ended(number, now_s)

    def begin_hour(self, hour: int) -> None:
        super().begin_hour(hour)
        if not 0 < hour < NUM_HOURS:
            return
        self._write_outcomes(self._ended[-NUM_REMEMBERED:])
        began_s = time.perf_counter()
        report = learn(
            LearnConfig(
                outcomes=self._outcomes,
                ranker=self._served,
                newest_share=NEWEST_SHARE,
                num_resamples=NUM_RESAMPLES,
            )
        )
        self.learning_s.append(time.perf_counter() - began_s)
        print(f"{clock(hour * HOUR_S)} {report.verdict}", file=sys.stderr)
        if report.is_promoted:
            self._use(Ranker.load(self._served), int(np.searchsorted(self.day.hours, hour)))
            self.drift.reset()
            better = report.tau_b.difference
            self.events.append(f"{clock(hour * HOUR_S)} {self.name}: promoted, tau-b +{better}")

    def _write_outcomes(self, numbers: list[int]) -> None:
        """As the middleware would have left them."""
        with (
            (self._outcomes / f"{OUTCOMES}day{SUFFIX}").open("wb") as outcomes,
            (self._outcomes / f"{PROMPTS}day{SUFFIX}").open("wb") as prompts,
        ):
            for number in numbers:
                request = self.day.requests[number]
                outcome = Outcome(
                    arrival_s=EPOCH_S + request.arrival_s,
                    path="/v1/completions",
                    decision="scored",
                    answer_tokens=request.output_tokens,
                    is_exact=True,
                    finish_reason="stop",
                    status=200,
                    prompt_key=request.request_id,
                )
                outcomes.write(outcome.to_line())
                key = {"prompt_key": request.request_id, "prompt": request.prompt}
                prompts.write(json_line(key))


def main() -> None:
    """Make the day, let everybody order it, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--work-dir", type=Path, default=Path("build/noon_shift"))
    parser.add_argument("--num-days", type=int, default=NUM_DAYS)
    parser.add_argument("--only", default="", help="some of the orders, by commas")
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    days = [a_day(seed) for seed in range(options.num_days)]
    orders = [
        orders_of(day, options.work_dir / f"day_{seed}", seed, options.only)
        for seed, day in enumerate(days)
    ]
    told = figures(orders)
    print_report(told, is_whole=not options.only)
    if not options.only:
        draw(told, options.work_dir / "noon_shift.png")
    print(json.dumps(told))


def orders_of(day: Day, folder: Path, seed: int, only: str = "") -> list["Order"]:
    """The day, served in every order."""
    shutil.rmtree(folder, ignore_errors=True)
    fixed = cache(lambda: trained(day.yesterday, folder / "fixed", seed))
    rule = Rule(day.yesterday)

    def learning(name: str) -> LearningOrder:
        fixed()
        return LearningOrder(name, day, folder / "fixed/ranker", folder / "learning")

    makers: dict[str, Callable[[str], Order]] = {
        "fcfs": lambda name: Order(name, day, "fcfs"),
        "fixed": lambda name: RankerOrder(name, day, fixed()),
        "fixed, watched": lambda name: RankerOrder(name, day, fixed(), Drift()),
        "rule": lambda name: RankerOrder(name, day, rule),
        "rule, watched": lambda name: RankerOrder(name, day, rule, Drift()),
        "wrong": lambda name: RankerOrder(name, day, UpsideDown(fixed())),
        "wrong, watched": lambda name: RankerOrder(name, day, UpsideDown(fixed()), Drift()),
        "learning, watched": learning,
        "online": lambda name: OnlineOrder(name, day),
        "oracle": lambda name: Order(name, day, f"oracle{AGED}"),
    }
    names = only.split(",") if only else list(makers)
    if unknown := set(names) - set(makers):
        sys.exit(f"--only: {', '.join(sorted(unknown))} is none of {'; '.join(makers)}")
    orders = [makers[name](name) for name in names]
    for order in orders:
        serve(order)
        print(f"day {seed + 1}: {order.name}: done", file=sys.stderr)
    return orders


def a_day(seed: int) -> Day:
    """Yesterday's rows, and the day's requests at the rates that LOAD asks for."""
    rng = random.Random(seed)
    requests, yesterday = [], []
    for name, hours in ((MORNING, HALVES[0][1]), (AFTERNOON, HALVES[1][1])):
        records = records_of(name)
        rng.shuffle(records)
        if name == MORNING:
            yesterday, records = records[:NUM_YESTERDAY], records[NUM_YESTERDAY:]
        capacity_rps = measured_capacity_rps(records[:4000])
        upcoming = iter(records)
        for hour in hours:
            at_s = hour * HOUR_S + rng.expovariate(LOAD[hour] * capacity_rps)
            while at_s < (hour + 1) * HOUR_S:
                record = next(upcoming, None)
                if record is None:
                    sys.exit(f"{name} has too few records for HOUR_S {HOUR_S:g}")
                requests.append(request_of(record, len(requests), at_s))
                at_s += rng.expovariate(LOAD[hour] * capacity_rps)
    return Day(
        requests,
        np.array([request.output_tokens for request in requests]),
        np.array([int(request.arrival_s // HOUR_S) for request in requests]),
        [{"prompt": it["prompt"], "answer_length": it["response_tokens"]} for it in yesterday],
    )


def records_of(name: str) -> list[dict]:
    """The records with a prompt that the engine takes and an answer."""
    with gzip.open(SHARED / f"data/{name}.jsonl.gz", "rt") as file:
        records = map(json.loads, file)
        return [
            {field: it[field] for field in ("prompt", "prompt_tokens", "response_tokens")}
            for it in records
            if it["prompt"].strip()
            and it["response_tokens"]
            and 1 <= it["prompt_tokens"] <= MOST_PROMPT_TOKENS
        ]


def request_of(record: dict, number: int, at_s: float) -> WorkloadRequest:
    """The record as a request whose id sorts by number."""
    return WorkloadRequest(
        request_id=f"{number:07d}",
        arrival_s=at_s,
        prompt=record["prompt"],
        prompt_tokens=record["prompt_tokens"],
        output_tokens=record["response_tokens"],
    )


def measured_capacity_rps(records: list[dict]) -> float:
    """Requests a second that the engine serves of records that are all there at once."""
    requests = [request_of(record, number, 0.0) for number, record in enumerate(records)]
    engine = FastEngine(LIMITS)
    pairs = ((request, 0) for request in requests)
    done = simulate(pairs, engine, PRESET.step_time, policy="fcfs", on_finished=lambda times: None)
    return len(requests) / done.duration_s


def trained(rows: list[dict], folder: Path, seed: int) -> Ranker:
    """A lite ranker that learnt from the rows; every tenth, by chance, to validate."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = random.Random(seed).sample(rows, len(rows))
    num_validation = int(SHARE_VALIDATION * len(rows))
    files = {"val_data": rows[:num_validation], "train_data": rows[num_validation:]}
    for name, part in files.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    paths = {name: folder / f"{name}.json" for name in files}
    config = TrainConfig(output_dir=folder, model="lite", seed=seed, **paths, **LITE_DEFAULTS)
    with (folder / "training.txt").open("w") as said, redirect_stderr(said):
        train(config)
    return Ranker.load(folder / "ranker")


def serve(order: Order) -> None:
    """Serve the day in that order."""

    def in_order() -> Iterator[tuple[WorkloadRequest, int]]:
        # The simulator asks for a request when it has taken the one before, so what a key can know
        # of ended answers is as of that arrival.
        hour = -1
        for number, request in enumerate(order.day.requests):
            while hour < order.day.hours[number]:
                hour += 1
                order.begin_hour(hour)
            yield request, order.key(number)

    def on_finished(times: RequestTimes) -> None:
        number = int(times.request_id)
        order.ttft_s[number] = times.first_token_s - times.arrival_s
        order.ntpot_s[number] = (times.finished_s - times.arrival_s) / times.output_tokens
        order.ended(number, times.finished_s)

    engine = FastEngine(LIMITS)
    simulate(in_order(), engine, PRESET.step_time, policy=order.name, on_finished=on_finished)
    order.end_day()


def figures(days: list[list[Order]]) -> dict:
    """What is printed and drawn, by name of the order: over all requests of all days."""
    hours = np.concatenate([orders[0].day.hours for orders in days])
    tokens = np.concatenate([orders[0].day.tokens for orders in days])
    return {
        "hour_s": HOUR_S,
        "slots": SLOTS,
        "load": LOAD,
        "num_days": len(days),
        "num_yesterday": NUM_YESTERDAY,
        "num_requests": np.bincount(hours, minlength=NUM_HOURS).tolist(),
        "mean_tokens": {half: float(tokens[np.isin(hours, of)].mean()) for half, of in HALVES},
        "orders": {turns[0].name: figures_of(turns, hours) for turns in zip(*days, strict=True)},
        "shares_after_noon": shares_after_noon(days),
    }


def shares_after_noon(days: list[list[Order]]) -> dict[str, list[float]]:
    """By order: of the oracle's gain over fcfs, that of the first requests, and of all."""

    def mean_s(number: int, most: int | None) -> float:
        means = []
        for orders in days:
            first = int(np.searchsorted(orders[0].day.hours, NOON))
            means.append(orders[number].ntpot_s[first:][:most].mean())
        return float(np.mean(means))

    names = [order.name for order in days[0]]
    if not {"fcfs", "oracle"} <= set(names):
        return {}
    fcfs, oracle = names.index("fcfs"), names.index("oracle")
    return {
        name: [
            (mean_s(fcfs, most) - mean_s(number, most))
            / (mean_s(fcfs, most) - mean_s(oracle, most))
            for most in (NUM_FIRST, None)
        ]
        for number, name in enumerate(names)
    }


def figures_of(turns: list[Order], hours: np.ndarray) -> dict:
    """One order's, from its turns on all days."""
    ntpot_s = np.concatenate([turn.ntpot_s for turn in turns])
    ttft_s = np.concatenate([turn.ttft_s for turn in turns])
    taus = np.mean([turn.taus for turn in turns], axis=0)

    def row(of: Sequence[int]) -> dict:
        members = np.isin(hours, of)
        return {
            "mean_ntpot_s": rounded(ntpot_s[members].mean()),
            "p90_ntpot_s": rounded(np.percentile(ntpot_s[members], 90)),
            "mean_ttft_s": rounded(ttft_s[members].mean()),
            "p99_ttft_s": rounded(np.percentile(ttft_s[members], 99)),
            "tau_b": rounded(taus[list(of)].mean()),  # mean of the hours'
        }

    return {
        "halves": {half: row(of) for half, of in HALVES},
        "hours": [row([hour]) for hour in range(NUM_HOURS)],
        "drift_tau_b": [[rounded(tau) for tau in turn.drift_taus] for turn in turns],
        "drift_less_arrivals": [
            rounded(it) for turn in turns for it in (turn.drift_taus - turn.taus).tolist()
        ],
        "events": [
            f"day {number}, {event}"
            for number, turn in enumerate(turns, 1)
            for event in turn.events
        ],
        "learning_s": [round(it, 1) for turn in turns for it in turn.learning_s],
    }


def print_report(told: dict, *, is_whole: bool = True) -> None:
    """The halves, what happened when, and the hours."""
    counts = told["num_requests"]
    print(
        f"{told['num_days']} days; an hour has {HOUR_S:g} s; of yesterday {NUM_YESTERDAY:,} answers"
        " are known"
    )
    for half, hours in HALVES:
        print(
            f"{half}: {sum(counts[hour] for hour in hours):,} requests of"
            f" {told['mean_tokens'][half]:.0f} tokens on average"
        )
    print("NTPOT, (end - arrival) / tokens: mean and p90 in ms; TTFT: mean and p99 in s")
    columns = f"{'tau-b':>8}{'NTPOT':>8}{'p90':>7}{'TTFT':>7}{'p99':>7}"
    print(f"\n{'':<18}{HALVES[0][0]:>37}{HALVES[1][0]:>37}")
    print(f"{'who orders':<18}{columns}{columns}")
    for name, order in told["orders"].items():
        print(f"{name:<18}{''.join(half_line(order['halves'][half]) for half, _ in HALVES)}")
    print(f"\nafter noon: share of the oracle's gain, first {NUM_FIRST:,} requests and all")
    for name, (first, whole) in told["shares_after_noon"].items():
        print(f"{name:<18}{first:>8.0%}{whole:>8.0%}")
    print()
    for order in told["orders"].values():
        print("\n".join(order["events"]), end="\n" if order["events"] else "")
    if not is_whole:
        return
    less = told["orders"]["fixed, watched"]["drift_less_arrivals"]
    mean = np.mean([it for it in less if it is not None])
    print(f"\nDrift's tau-b of fixed at an hour's end, less that of its arrivals: {mean:+.3f}")
    print_hours(told)


def print_hours(told: dict) -> None:
    """Mean NTPOT by hour of arrival, and the tau-b of two rankers."""
    names = ("fcfs", "fixed", "rule", "rule, watched", "learning, watched", "oracle")
    heads = (*names[:3], "watched", "learning", "oracle", "fixed", "learning")
    print("\nby hour of arrival: mean NTPOT in ms (watched: the rule), then tau-b\n")
    print(f"hour load requests{''.join(f'{head:>9}' for head in heads)}")
    for hour in range(NUM_HOURS):
        rows = {name: told["orders"][name]["hours"][hour] for name in names}
        delays = "".join(f"{1000 * row['mean_ntpot_s']:>9.1f}" for row in rows.values())
        taus = "".join(f"{rows[name]['tau_b']:>9.3f}" for name in ("fixed", "learning, watched"))
        print(f"{hour:>4}{LOAD[hour]:>5}{told['num_requests'][hour]:>9,}{delays}{taus}")


def half_line(row: dict) -> str:
    """One half of a line of the first table."""
    tau = "-" if row["tau_b"] is None else f"{row['tau_b']:.3f}"
    ntpots = f"{1000 * row['mean_ntpot_s']:>8.1f}{1000 * row['p90_ntpot_s']:>7.1f}"
    return f"{tau:>8}{ntpots}{row['mean_ttft_s']:>7.2f}{row['p99_ttft_s']:>7.1f}"


def draw(told: dict, path: Path) -> None:
    """Hourly mean NTPOT of everybody, and tau-b of the rankers."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 7), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    hours = np.arange(NUM_HOURS) + 0.5
    for name, order in told["orders"].items():
        who, _, is_watched = name.partition(", ")
        style = {"color": COLORS[who], "label": name, "linestyle": "--" if is_watched else "-"}
        above.plot(hours, [1000 * row["mean_ntpot_s"] for row in order["hours"]], **style)
        if name in ("fixed", "rule", "learning, watched"):
            below.plot(hours, [row["tau_b"] for row in order["hours"]], **style)
    above.set(ylabel="mean NTPOT, ms/token", yscale="log")
    above.set_title("A day whose traffic changes at noon, from Alpaca's to ShareGPT's")
    below.set(ylabel="Kendall tau-b", xlabel="hour of arrival", xlim=(0, NUM_HOURS))
    below.axhline(0, color="gray", linewidth=0.8)
    for axes in (above, below):
        axes.axvline(NOON, color="gray", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    below.set_xticks(range(0, NUM_HOURS + 1, 3))
    figure.savefig(path, dpi=120)


def rounded(value: float) -> float | None:
    """For JSON."""
    return None if math.isnan(value) else round(float(value), 6)


def clock(now_s: float) -> str:
    """The time of the scaled day."""
    minutes = int(now_s / HOUR_S * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


if __name__ == "__main__":
    main()
