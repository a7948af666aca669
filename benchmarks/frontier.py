"""
What a bound on waiting costs, and what it buys: the gain kept against p99 and the longest wait.

    python benchmarks/frontier.py [--requests 8000] [--windows 2]

Virtual time, h100-8b; windows of four loads at three shares of what the engine gets done. "Gain" is
the share of what shortest first gains over first come, first served in mean time per output token,
over all windows of a load; the other columns are ratios to first come, first served in the same
window, of the worst window. Predictions are the true length times a log-normal factor (0.7), drawn
at random from the lengths, inverted, or by the ranker that learns as answers end, from nothing.
`@30` is 30 s of overtaking, `@1.33x` the slowdown. Also tried: `aged`, the slowdown at 1.25 with
the ordinary requests aged by a tenth of the backlog, and `boost`, the key of Yu and Scully (2024)
at half of first come, first served's p99. Draws results/frontier.svg. The last line of stdout is
one JSON; PARS_SHARED names the folder with data/ (default ../shared).
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from frontier_loads import SHARED, TRACES, Case, Chats, load_of
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import START_S, Line
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.demand import Demand
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN, MaxSlowdown
from pars.scheduling.policies.policy import Place
from pars.scheduling.policies.shortest_first import ShortestFirst
from virtual_load import PRESET, Job, Load, finished, rounded

PICTURE = Path(__file__).with_name("results") / "frontier.svg"
LOADS = (0.8, 1.0, 1.2)
RATIOS = (1.11, 1.25, 1.33, 1.5, 2.0)  # express has 10, 20, 25, 33 and 50% of the work
SECONDS = (10.0, 30.0, 100.0)
PREDICTORS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "lognormal 0.7": lambda rng, tokens: tokens * np.exp(rng.normal(0, 0.7, len(tokens))),
    "random": lambda rng, tokens: rng.permutation(tokens).astype(float),
    "inverted": lambda rng, tokens: float(tokens.max()) / tokens,
}
DEFAULT = f"@{DEFAULT_MAX_SLOWDOWN:g}x"
LEAST_GAIN = 0.01  # of the mean time per token: where shortest first gains less, nothing is kept
MEASURES = ("ntpot", "ttft", "e2e", "p99_ttft", "longest")
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=8000, help="Of a window, at most.")
    parser.add_argument("--windows", type=int, default=2, help="Of each load.")
    options = parser.parse_args()
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED}/data/traces is not there: set PARS_SHARED")
    windows = range(options.windows)
    cases = [
        Case(trace, share, options.requests, window, options.windows)
        for trace in TRACES
        for share in LOADS
        for window in windows
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = iter(pool.map(measured, cases))
        results = {
            f"{trace} at {share:g}": compared([next(runs) for _ in windows])
            for trace in TRACES
            for share in LOADS
        }
    for name, rows in results.items():
        print_table(name, rows)
    verdict(results)
    draw(results)
    print(json.dumps(rounded(results)))


def print_table(name: str, rows: dict[str, Figures]) -> None:
    print(f"\n{name} of what the engine gets done")
    print(f"{'':<30}{'gain':>7}{'NTPOT':>8}{'TTFT':>7}{'e2e':>7}{'p99':>7}{'longest':>9}")
    for policy, row in rows.items():
        print(
            f"{policy:<30}{row['gain']:>7.0%}{row['ntpot']:>8.2f}{row['ttft']:>7.2f}"
            f"{row['e2e']:>7.2f}{row['p99_ttft']:>7.2f}{row['longest']:>9.2f}"
        )


def verdict(results: dict[str, dict[str, Figures]]) -> None:
    """The targets, met or missed, and where the worst of each is."""
    usual = {name: rows[f"lognormal 0.7 {DEFAULT}"] for name, rows in results.items()}
    twice = {name: rows["lognormal 0.7 @2x"] for name, rows in results.items()}
    harm = {
        f"{name}, {predictor}": rows[f"{predictor} {DEFAULT}"]
        for name, rows in results.items()
        for predictor in PREDICTORS
    }
    told = (
        ("gain kept by the default, least", usual, "gain", 0.65, 1),
        ("its p99 TTFT over FCFS's, most", usual, "p99_ttft", 1.3, -1),
        ("its longest wait over FCFS's, most", usual, "longest", 1.35, -1),
        ("gain kept by @2x, least", twice, "gain", 0.80, 1),
        ("mean NTPOT over FCFS's, any prediction, most", harm, "ntpot", 1.02, -1),
        ("mean e2e over FCFS's, any prediction, most", harm, "e2e", 1.02, -1),
    )
    print(f"\nworst of all loads (gain: where shortest first gains {LEAST_GAIN:.0%} or more)")
    for what, rows, measure, target, sign in told:
        if measure == "gain":
            rows = {name: row for name, row in rows.items() if gains(results[name])}
        where = min(rows, key=lambda it: sign * rows[it][measure])
        value = rows[where][measure]
        is_met = sign * (value - target) >= 0
        num_missed = sum(sign * (row[measure] - target) < 0 for row in rows.values())
        told = "met" if is_met else f"MISSED at {num_missed} of {len(rows)}"
        print(f"{what:<46}{value:>6.2f} ({where}); target {target:g}: {told}")


def gains(rows: dict[str, Figures]) -> bool:
    """Whether order is worth anything there."""
    return rows["lognormal 0.7 shortest first"]["saved"] >= LEAST_GAIN


def compared(windows: list[dict[str, Figures]]) -> dict[str, Figures]:
    """Each policy beside first come, first served: its gain over all windows, and its worst."""
    fcfs = [it.pop("fcfs") for it in windows]
    whole = sum(it["ntpot"] for it in fcfs)
    best = sum(it["lognormal 0.7 shortest first"]["ntpot"] for it in windows)
    rows = {}
    for name in windows[0]:
        saved = whole - sum(it[name]["ntpot"] for it in windows)
        row = {"gain": saved / (whole - best), "saved": saved / whole}
        for measure in MEASURES:
            row[measure] = max(
                it[name][measure] / base[measure] for it, base in zip(windows, fcfs, strict=True)
            )
        rows[name] = row
    return rows


def measured(case: Case) -> dict[str, Figures]:
    """Every policy on one window."""
    load, chats = load_of(case)
    tokens = load.output_tokens.astype(float)
    runs = {"fcfs": figures(finished(Job(load, ticks(load.arrivals_s))), load)}
    for name, predict in PREDICTORS.items():
        expected = np.maximum(predict(np.random.default_rng(0), tokens), 1.0)
        cost = np.sqrt(expected * (expected + load.prompt_tokens))
        demands = [
            Demand(it, work)
            for it, work in zip(
                cost.tolist(), (expected + load.prompt_tokens).tolist(), strict=True
            )
        ]
        runs[f"{name} shortest first"] = figures(finished(Job(load, ticks(cost / 1e3))), load)
        if name == "lognormal 0.7":
            for seconds in SECONDS:
                keys = aged(load, demands, seconds)
                runs[f"{name} @{seconds:g}"] = figures(finished(Job(load, keys)), load)
            keys = boosted(load, expected, 0.5 * runs["fcfs"]["p99_ttft"])
            runs[f"{name} boost"] = figures(finished(Job(load, keys)), load)
            runs[f"{name} aged"] = figures(by_policy(load, demands, AgedSlowdown(1.25)), load)
        ratios = RATIOS if name == "lognormal 0.7" else (DEFAULT_MAX_SLOWDOWN,)
        for ratio in ratios:
            runs[f"{name} @{ratio:g}x"] = figures(
                by_policy(load, demands, MaxSlowdown(ratio)), load
            )
    if chats is not None:
        for spelled in ("online", f"online{DEFAULT}"):
            name = (
                spelled.replace("online", "online ") if "@" in spelled else "online shortest first"
            )
            runs[name] = figures(by_online(load, chats, spelled), load)
    return runs


def ticks(seconds: np.ndarray) -> np.ndarray:
    return np.round(seconds * 1e6).astype(np.int64)


def aged(load: Load, demands: list[Demand], seconds: float) -> np.ndarray:
    policy = ShortestFirst(seconds)
    long_tokens = float(np.quantile([it.cost for it in demands], 0.9))
    keys = [
        policy.place(it, START_S + at_s, long_tokens=long_tokens).key
        for it, at_s in zip(demands, load.arrivals_s.tolist(), strict=True)
    ]
    return np.array(keys, dtype=np.int64)


def boosted(load: Load, expected: np.ndarray, boost_s: float) -> np.ndarray:
    """Arrival - B ln(1 / (1 - exp(-s / B))), s the seconds of the whole engine that it takes."""
    step = PRESET.step_time
    per_token_s = step.decode_seq_s + step.base_s / PRESET.limits.max_num_seqs
    work_s = per_token_s * expected + step.prefill_token_s * load.prompt_tokens
    ahead_s = boost_s * -np.log1p(-np.exp(-work_s / boost_s))
    return ticks(load.arrivals_s - ahead_s)


class AgedSlowdown(MaxSlowdown):
    """Ordinary requests are moved back by a tenth of the backlog, the cheapest not at all."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = 0.0

    def place(self, demand: Demand, arrival_s: float, **kwargs) -> Place:
        backlog_s = self._waiting / self._rate.work_per_s if self.capacity else 0.0
        back_s = 0.1 * min(backlog_s, 3600.0) * self._costs.below(demand.cost)
        place = super().place(demand, arrival_s, **kwargs)
        self._waiting += place.work
        place.key += 0 if place.is_express else round(1e6 * back_s)
        return place

    def began(self, place: Place) -> None:
        self._waiting -= 0.0 if place.has_begun else place.work
        super().began(place)


def by_policy(load: Load, demands: list[Demand], policy: MaxSlowdown) -> list:
    """The times of a run whose policy hears what a gateway would hear."""
    places: dict[str, Place] = {}

    def key(row: int, request: WorkloadRequest) -> int:
        place = policy.place(demands[row], START_S + request.arrival_s)
        places[request.request_id] = place
        return place.key

    def ended(it) -> None:
        place = places.pop(it.request_id)
        policy.ended(place, it.finished_s)
        policy.correct(place, float(it.output_tokens + it.prompt_tokens), it.output_tokens)

    return run(load, key, ended, lambda name: policy.began(places[name]))


def by_online(load: Load, chats: Chats, spelled: str) -> list:
    """The times of a run by the ranker that learns as answers end."""
    contender = Contender.parse(spelled)
    line = Line(contender.policy, contender.fitted([]))

    def ended(it) -> None:
        line.ended(
            it.request_id,
            it.finished_s,
            answer_tokens=it.output_tokens,
            prompt_tokens=it.prompt_tokens,
        )

    return run(load, lambda _, request: line.key(request), ended, line.began, chats.prompts)


def run(load: Load, key: Callable, ended: Callable, began: Callable, prompts=None) -> list:
    times: list = []

    def requests():
        arrivals_s = load.arrivals_s.tolist()
        lengths = (load.prompt_tokens.tolist(), load.output_tokens.tolist())
        for row, (at_s, prompt, output) in enumerate(zip(arrivals_s, *lengths, strict=True)):
            text = None if prompts is None else prompts[row]
            request = WorkloadRequest(f"{row:06d}", at_s, text, prompt, output)
            yield request, key(row, request)

    def finish(it) -> None:
        ended(it)
        times.append(it)

    simulate(
        requests(),
        FastEngine(PRESET.limits),
        PRESET.step_time,
        policy="slowdown",
        on_finished=finish,
        on_first_token=lambda name, _: began(name),
    )
    return times


def figures(times: list, load: Load) -> Figures:
    times = sorted(times, key=lambda it: it.request_id)
    ttft = np.array([it.first_token_s for it in times]) - load.arrivals_s
    e2e = np.array([it.finished_s for it in times]) - load.arrivals_s
    return {
        "ntpot": float((e2e / load.output_tokens).mean()),
        "ttft": float(ttft.mean()),
        "e2e": float(e2e.mean()),
        "p99_ttft": float(np.quantile(ttft, 0.99)),
        "longest": float(ttft.max()),
    }


def draw(results: dict[str, dict[str, Figures]]) -> None:
    """Gain against p99 for each load, as SVG: the slowdown's line, and seconds of overtaking."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"], rcParams["svg.fonttype"] = "frontier", "none"
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(len(LOADS), len(TRACES), sharey=True)
    families = (
        ("tab:blue", "o-", "R times", [f"@{it:g}x" for it in RATIOS]),
        ("tab:orange", "s--", "T seconds", [f"@{it:g}" for it in SECONDS]),
        ("tab:green", "^", "boost", ["boost"]),
    )
    for panel, (name, rows) in zip(panels.T.flat, results.items(), strict=True):
        for color, marker, label, policies in families:
            found = [rows[f"lognormal 0.7 {it}"] for it in policies]
            x, y = ([it[measure] for it in found] for measure in ("p99_ttft", "gain"))
            panel.plot(x, y, marker, markersize=4, color=color, label=label)
        usual = rows[f"lognormal 0.7 {DEFAULT}"]
        panel.plot(usual["p99_ttft"], usual["gain"], "*", markersize=12, color="tab:blue")
        trace, _, share = name.rpartition(" at ")
        panel.set(title=f"{TRACES[trace]}, {share}", ylim=(-0.1, 1.1), xlim=(0.5, 2.5))
        panel.title.set_fontsize(8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("p99 wait over first come's")
    panels[1][0].set_ylabel("share of shortest first's gain")
    panels[0][0].legend(fontsize=7, loc="lower right")
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
