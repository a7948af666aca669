"""
What `pars doctor` makes of the requests that come: are they scored, do they wait, who scores them.

    findings = traffic_findings(seen)          # pure
"""

import math
from typing import Any

from pars.doctor.engine import Seen
from pars.doctor.findings import OK, PROBLEM, UNKNOWN, Finding
from pars.doctor.metrics_page import PREEMPTIONS, QUEUE_TIME, WAITING, MetricsPage
from pars.outcomes.metrics import FAILED_OPEN
from pars.outcomes.switchback import FEWEST_BLOCKS
from pars.ranking.intervals import Estimate

DECISIONS = "pars_decisions_total"
MOST_UNSCORED = 0.01  # of requests; beyond it something is to mend
TAU_B = "pars_ranker_tau_b"
CLASSES = "pars_requests_by_class_total"
LEAST_GAIN = 0.01  # of the time per output token; less is none
MOST_EXCEEDED = 0.01  # of requests that wait beyond the bound
REMEDIES = {
    "learning": "too few answers to order by yet: some dozens are needed",
    "unordered": "the engine was not known, takes no priorities or refused them: see priority",
    "drifted": "the ranker's order is no better than chance, so none is made: `pars learn` trains"
    " one on this traffic (docs/learning.md)",
    "over_budget": "the ranker is late: a smaller ranker, a free core, or a larger PARS_BUDGET_MS",
    "queue_full": "more prompts come than the ranker scores: a smaller ranker, or a larger"
    " PARS_MAX_QUEUED_PROMPTS",
    "scorer_failed": "the ranker raises: the log says why",
    "no_ranker": "no ranker is loaded: PARS_RANKER must name a ranker folder; the log says why",
    "undecodable": "clients send bodies that are no JSON, which the engine refuses too",
    "too_large": "bodies are larger than PARS_MAX_BODY_BYTES",
    "buffers_full": "more is held at once than PARS_MAX_BUFFERED_BYTES",
    "client_left": "clients leave in the middle of their bodies",
    "error": "a fault of pars: the log says which; please report it",
}


def traffic_findings(seen: Seen) -> list[Finding]:
    """A finding for each question that the endpoint's metrics answer."""
    found = [_decisions(seen), _queue(seen), *_queues(seen), *_preemptions(seen)]
    return found + _worth(seen) + _holdout(seen)


def _worth(seen: Seen) -> list[Finding]:
    """What the order is worth, as pars tells of the last hour; nothing where it does not."""
    page = seen.last
    gain, wait_gain = page.total("pars_gain_ratio"), page.total("pars_wait_gain_ratio")
    if gain is None or wait_gain is None or math.isnan(gain):
        return []
    numbers = {"gain_ratio": round(gain, 4), "wait_gain_ratio": round(wait_gain, 4)}
    beside = "than first come, first served would have made it, in the last hour"
    if abs(gain) < LEAST_GAIN:
        told = f"time per output token as {beside.removeprefix('than ')}"
        change = "hardly a queue, or answers that nobody can tell apart: see queue and ranker"
        return [Finding("worth", UNKNOWN, told, change, numbers)]
    if gain < 0:
        told = f"time per output token {-gain:.0%} LONGER {beside}"
        change = "pars ctl URL policy fcfs until it is understood; see ranker and scheduling"
        return [Finding("worth", PROBLEM, told, change, numbers)]
    told = f"time per output token {gain:.0%} shorter {beside}, the wait {wait_gain:.0%}"
    exceeded, classed = page.total("pars_bound_exceeded_total"), page.total(CLASSES)
    if exceeded and classed and exceeded > MOST_EXCEEDED * classed:
        numbers["bound_exceeded"] = exceeded
        told += f"; but {exceeded:,.0f} of {classed:,.0f} requests waited beyond the bound"
        change = "several gateways before one engine need PARS_SHARED_ENGINE=1"
        return [Finding("worth", PROBLEM, told, change, numbers)]
    return [Finding("worth", OK, told, "", numbers)]


def _holdout(seen: Seen) -> list[Finding]:
    """What the order is worth beside held-out windows; nothing where none are held out."""
    page, name = seen.last, "pars_holdout_gain_ratio"
    told_by = (name, f"{name}_low", f"{name}_high", "pars_holdout_blocks")
    gain, low, high, num_blocks = (page.total(it) for it in told_by)
    if gain is None or low is None or high is None or num_blocks is None:
        return []
    numbers: dict[str, Any] = {"blocks": num_blocks}
    if num_blocks < FEWEST_BLOCKS:
        told = f"{num_blocks:.0f} blocks of windows are over; {FEWEST_BLOCKS} are needed"
        return [Finding("holdout", UNKNOWN, told, "look again later", numbers)]
    numbers |= {"gain_ratio": Estimate(gain, low, high).as_json()}
    told = f"time per output token {abs(gain):.0%} {'LONGER' if gain < 0 else 'shorter'} in order"
    told += f" than in held-out windows [{low:.0%}, {high:.0%}], {num_blocks:.0f} blocks"
    if high < 0:
        change = "pars ctl URL policy fcfs until it is understood; see ranker and scheduling"
        return [Finding("holdout", PROBLEM, told, change, numbers)]
    if low <= 0:
        change = "look again later: more blocks narrow the interval, which holds 0"
        return [Finding("holdout", UNKNOWN, told, change, numbers)]
    return [Finding("holdout", OK, told, "", numbers)]


def _decisions(seen: Seen) -> Finding:
    first, last = seen.first, seen.last
    if not last.values(DECISIONS):
        return Finding(
            "decisions",
            PROBLEM,
            f"pars is not here: no {DECISIONS} on /metrics or /pars/metrics",
            "give vLLM --middleware pars.middleware.PriorityMiddleware, or put pars gateway in"
            " front; where pars gateway is there, name its URL",
        )
    page, when = last.since(first), "just now"
    if not page.total(DECISIONS):
        page, when = last, "since its start"
    counts = {name: count for name, count in page.by(DECISIONS, "outcome").items() if count}
    total = sum(counts.values())
    numbers: dict[str, Any] = {"requests": total, "by_outcome": counts}
    if not total:
        change = "send a request through pars"
        return Finding("decisions", UNKNOWN, "no request came so far", change, numbers)
    unscored = {name: count for name, count in counts.items() if name in FAILED_OPEN}
    told = f"{counts.get('scored', 0):,.0f} of {total:,.0f} requests scored {when}"
    others = sorted(counts.items(), key=lambda it: -it[1])
    told += "".join(f", {count:,.0f} {name}" for name, count in others if name != "scored")
    added_s = page.mean("pars_decision_seconds")
    if added_s is not None:
        numbers["added_s"] = round(added_s, 6)
        told += f"; {added_s * 1e3:.1f} ms added in the mean"
    if sum(unscored.values()) > MOST_UNSCORED * total:
        worst = max(unscored, key=lambda name: unscored[name])
        change = f"{worst}: {REMEDIES[worst]}"
        return Finding("decisions", PROBLEM, told, change, numbers)
    return Finding("decisions", OK, told, "", numbers)


def _queue(seen: Seen) -> Finding:
    held = seen.part("held")
    if held and not seen.queue:
        return _held_queue(held["num_waiting"])
    if not seen.queue:
        why = seen.metrics_failure or "/metrics has none of vLLM's or SGLang's names"
        return Finding(
            "queue",
            UNKNOWN,
            f"its length is not told: {why}",
            "let vLLM's /metrics through, or name its own URL (SGLang's cost more than they tell:"
            " docs/serving.md)",
        )
    running, waiting = zip(*seen.queue, strict=True)
    num_looks, num_with = len(seen.queue), sum(one > 0 for one in waiting)
    numbers: dict[str, Any] = {
        "looks": num_looks,
        "with_queue": num_with,
        "most_waiting": max(waiting),
        "mean_waiting": round(sum(waiting) / num_looks, 2),
        "mean_running": round(sum(running) / num_looks, 2),
        "has_queue": num_with > 0,
    }
    told = f"up to {max(waiting):,.0f} wait, in {num_with} of {num_looks} looks"
    if not num_with:
        told = f"no request waits in {num_looks} looks"
    told += f"; up to {max(running):,.0f} run"
    mean_s = seen.last.since(seen.first).mean(*QUEUE_TIME)
    since_start_s = seen.last.mean(*QUEUE_TIME)
    if mean_s is not None or since_start_s is not None:
        numbers |= {"mean_wait_s": mean_s, "mean_wait_since_start_s": since_start_s}
        shown_s, when = (mean_s, "just now") if mean_s is not None else (since_start_s, "so far")
        told += f"; {shown_s:.2f} s in the queue in the mean {when}"
    if num_with:
        return Finding("queue", OK, told, "", numbers)
    change = "nothing; order matters when requests wait: look again at the peak (--watch-s 600)"
    return Finding("queue", OK, told, change, numbers)


def _held_queue(num_waiting: int) -> Finding:
    """The gateway's own, seen once: the engine tells none."""
    numbers = {"most_waiting": num_waiting, "has_queue": num_waiting > 0}
    if num_waiting:
        return Finding("queue", OK, f"{num_waiting:,} wait in the gateway", "", numbers)
    change = "nothing; order matters when requests wait: look again at the peak"
    return Finding("queue", OK, "no request waits in the gateway", change, numbers)


def _queues(seen: Seen) -> list[Finding]:
    """A line only where there are several."""
    ranks = len(seen.last.by(WAITING[0], "engine"))
    if ranks < 2:
        return []
    told = f"{ranks} data-parallel ranks: each orders its own queue, and none looks at the others'"
    change = "one engine a server, with a router in front, or accept it: bounds hold for each rank"
    return [Finding("ranks", PROBLEM, told, change, {"ranks": ranks})]


def _preemptions(seen: Seen) -> list[Finding]:
    in_all = seen.last.total(*PREEMPTIONS)
    if in_all is None:
        return []
    fresh = seen.last.since(seen.first).total(*PREEMPTIONS) or 0.0
    told = f"{fresh:,.0f} while watched, {in_all:,.0f} since its start"
    numbers = {"watched": fresh, "since_start": in_all}
    if not fresh:
        return [Finding("preemptions", OK, told, "", numbers)]
    change = (
        "KV memory is short, and a preempted request computes all again: fewer --max-num-seqs,"
        " or more memory for the cache"
    )
    return [Finding("preemptions", PROBLEM, told, change, numbers)]


def judged_ranker(page: MetricsPage) -> Finding:
    """What the server itself tells of its ranker, where no outcomes are at hand."""
    names = (TAU_B, f"{TAU_B}_low", f"{TAU_B}_high")
    value, low, high = (next(iter(page.values(name)), math.nan) for name in names)
    if math.isnan(value):
        told = "not known whether its order is better than none: the server has not judged it"
        change = "PARS_OUTCOMES=DIR where pars runs records answers; then --outcomes DIR here"
        return Finding("ranker", UNKNOWN, told, change)
    tau_b = Estimate(value, low, high)
    numbers: dict[str, Any] = {"tau_b": tau_b.as_json()}
    told = f"tau-b {tau_b} on its latest answers ({TAU_B})"
    if low > 0:
        return Finding("ranker", OK, told, "", numbers)
    change = "`pars learn` trains one on this traffic (docs/learning.md)"
    return Finding("ranker", PROBLEM, f"{told}: no better than chance", change, numbers)


def longest_wait(seen: Seen, max_overtake_s: float | None) -> Finding:
    """Whether anyone starves, as far as a histogram tells."""
    most = seen.last.most(*QUEUE_TIME)
    change = "PARS_OUTCOMES=DIR where pars runs, then --outcomes DIR, tells who waits how long"
    if most is None:
        told = "not known who waits how long: no outcomes were given"
        return Finding("waits", UNKNOWN, told, change)
    low_s, high_s = most
    bound = "" if math.isinf(high_s) else f" and at most {high_s:g} s"
    told = f"the longest wait since its start took more than {low_s:g} s{bound}"
    numbers = {"low_s": low_s, "high_s": None if math.isinf(high_s) else high_s}
    if max_overtake_s is not None and high_s <= max_overtake_s:
        return Finding("waits", OK, told, "", numbers)
    return Finding("waits", UNKNOWN, f"{told}; whose it was is not told", change, numbers)


def serving_ranker(seen: Seen) -> str:
    """Which ranker serves, in words; empty where no page tells."""
    folder = seen.part("ranker").get("folder")
    where = f" in {folder}" if folder else ""
    for (name, labels), value in seen.last.samples.items():
        if name == "pars_ranker_info" and value == 1:
            told = dict(labels)
            return f"{told.get('model') or 'a ranker'} ({told.get('ranker')}){where} serves"
    return ""
