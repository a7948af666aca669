"""
What `pars doctor` makes of an endpoint's own pages: is there a queue, and who orders it.

    findings = engine_findings(seen)           # pure; pars.doctor.doctor looks, and fills `Seen`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pars.doctor.findings import OK, PROBLEM, UNKNOWN, Finding
from pars.doctor.metrics_page import PREEMPTIONS, QUEUE_TIME, WAITING, MetricsPage
from pars.outcomes.metrics import FAILED_OPEN
from pars.ranking.order_metrics import Estimate
from pars.scheduling.engines import Engine

DECISIONS, POLICY = "pars_decisions_total", "pars_engine_schedules_by_priority"
MOST_UNSCORED = 0.01  # of requests; beyond it something is to mend
START_VLLM = (
    "start vLLM with --scheduling-policy priority, or SGLang with --enable-priority-scheduling"
)
TAU_B = "pars_ranker_tau_b"
REMEDIES = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    What an endpoint showed.

    Attributes:
        failure: Why it does not answer.
        engine, told: How it takes priorities, and what it says it is.
        answer_s: How long one page took.
        first, last: Its /metrics at the first look and at the last, with pars' own metrics.
        queue: Requests that run and that wait, at each look.
        metrics_failure: Why the last look failed.
        obeys: What the probe found, or why it found nothing; None: not asked for.
    """

    failure: str | None = None
    engine: Engine | None = None
    told: str = ""
    answer_s: float = 0.0
    first: MetricsPage = field(default_factory=MetricsPage)
    last: MetricsPage = field(default_factory=MetricsPage)
    queue: Sequence[tuple[float, float]] = ()
    metrics_failure: str | None = None
    obeys: bool | str | None = None


def engine_findings(seen: Seen) -> list[Finding]:
    """A finding for each question that the endpoint itself can answer."""
    if seen.failure is not None:
        told = f"no answer: {seen.failure}"
        return [Finding("endpoint", PROBLEM, told, "start the server, or correct --endpoint")]
    answered = {"answer_s": round(seen.answer_s, 4)}
    endpoint = Finding("endpoint", OK, f"answers in {seen.answer_s * 1e3:.0f} ms", "", answered)
    found = [endpoint, _priority(seen), _scheduling(seen), _decisions(seen), _queue(seen)]
    return [*found, *_queues(seen), *_preemptions(seen)]


def _priority(seen: Seen) -> Finding:
    engine = seen.engine
    if engine is None or not engine.takes_priority:
        return Finding(
            "priority",
            PROBLEM,
            f"none is set: {seen.told}",
            "if it is a vLLM or SGLang behind a proxy, name it: --engine vllm here,"
            f" PARS_ENGINE=vllm for pars; {START_VLLM}",
        )
    where = "in the header X-Vllm-Priority" if engine.takes_header else "in the body"
    way = "larger first" if engine.larger_first else "smaller first"
    told = f"{seen.told} ({where}, {way})"
    return Finding("priority", OK, told, "", {"engine": engine.name})


def _scheduling(seen: Seen) -> Finding:
    if isinstance(seen.obeys, bool):
        numbers = {"probed": seen.obeys}
        if seen.obeys:
            return Finding("scheduling", OK, "it admits by priority (probed)", "", numbers)
        told = "it ignores priorities: the probe saw first come, first served"
        return Finding("scheduling", PROBLEM, told, START_VLLM, numbers)
    if seen.obeys is not None:
        return Finding("scheduling", UNKNOWN, f"the probe came to no result: {seen.obeys}")
    policy = min(seen.last.values(POLICY), default=-1.0)
    stated = {POLICY: policy}
    if policy == 1:
        return Finding("scheduling", OK, f"by priority ({POLICY} 1)", "", stated)
    if policy == 0:
        told = f"first come, first served: the engine ignores priorities ({POLICY} 0)"
        return Finding("scheduling", PROBLEM, told, START_VLLM, stated)
    return Finding(
        "scheduling",
        UNKNOWN,
        "no engine tells over HTTP whether it admits by priority",
        "with --probe, on an idle server, which is filled for some seconds; or run the middleware"
        " inside vLLM, which reads it off vLLM's configuration",
        stated,
    )


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
    if not seen.queue:
        why = seen.metrics_failure or "/metrics has none of vLLM's or SGLang's names"
        return Finding(
            "queue",
            UNKNOWN,
            f"its length is not told: {why}",
            "let /metrics through (SGLang: --enable-metrics), or name the engine's own URL",
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


def served_ranker(page: MetricsPage) -> Finding:
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


def longest_wait(seen: Seen, max_overtake_s: float) -> Finding:
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
    if high_s <= max_overtake_s:
        return Finding("waits", OK, told, "", numbers)
    return Finding("waits", UNKNOWN, f"{told}; whose it was is not told", change, numbers)
