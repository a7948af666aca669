"""
What `pars doctor` makes of an endpoint: does it answer, and does its engine go by priority.

    findings = engine_findings(seen)           # pure; pars.doctor.doctor looks, and fills `Seen`
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pars.doctor.findings import OK, PROBLEM, UNKNOWN, Finding
from pars.doctor.metrics_page import MetricsPage
from pars.outcomes.queue_order import Contests
from pars.scheduling.engines import Engine, way_of
from pars.serving.known_engine import NOT_KNOWN, REFUSES_PRIORITIES

POLICY = "pars_engine_schedules_by_priority"
REFUSALS = "pars_priority_refusals_total"
START_VLLM = (
    "start vLLM with --scheduling-policy priority, or SGLang with --enable-priority-scheduling"
)
REFUSED = "the engine refuses priorities: pars repeats requests and passes them on without"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    What an endpoint showed.

    Attributes:
        failure: Why it does not answer as it should.
        gateway: Its /pars/health, where it is a gateway.
        engine, told: How it takes priorities, and what it says it is.
        warnings: What is to be changed in the engine, each with how.
        answer_s: How long one page took.
        first, last: Its /metrics at the first look and at the last, with pars' own metrics.
        queue: Requests that run and that wait, at each look.
        metrics_failure: Why the last look failed.
        obeys: What the probe found, or why it found nothing; None: not asked for.
        is_probe_refused: The engine refused the probe for its priorities.
        contests: Of the latest recorded requests.
    """

    failure: str | None = None
    gateway: dict[str, Any] | None = None
    engine: Engine | None = None
    told: str = ""
    warnings: Sequence[str] = ()
    answer_s: float = 0.0
    first: MetricsPage = field(default_factory=MetricsPage)
    last: MetricsPage = field(default_factory=MetricsPage)
    queue: Sequence[tuple[float, float]] = ()
    metrics_failure: str | None = None
    obeys: bool | str | None = None
    is_probe_refused: bool = False
    contests: Contests = field(default_factory=Contests)

    @property
    def is_up(self) -> bool:
        """Whether there is an engine to look at."""
        return self.failure is None and (self.gateway or {}).get("status") != "down"

    @property
    def upstream(self) -> dict[str, Any]:
        """What a gateway says of the server behind it; empty where there is no gateway."""
        return self.part("upstream")

    def part(self, name: str) -> dict[str, Any]:
        """A part of a gateway's page; empty where there is none, or it is shown to keys only."""
        value = (self.gateway or {}).get(name)
        return value if isinstance(value, dict) else {}

    @property
    def state(self) -> str:
        """What a gateway knows of its engine, in a word; empty where there is no gateway."""
        return str((self.gateway or {}).get("engine", ""))

    @property
    def refuses(self) -> bool:
        """Whether the engine refused priorities, those of pars or of the probe."""
        told_by_metrics = bool(self.last.total(REFUSALS)) and self.last.values(POLICY) == [0.0]
        return self.state == REFUSES_PRIORITIES or told_by_metrics or self.is_probe_refused


def engine_findings(seen: Seen) -> list[Finding]:
    """Whether it answers; if so, whether and how it goes by priority."""
    if seen.failure is not None:
        change = "start the server, or correct --endpoint"
        return [Finding("endpoint", PROBLEM, seen.failure, change)]
    answered = {"answer_s": round(seen.answer_s, 4)}
    what = "pars gateway answers" if seen.gateway is not None else "answers"
    endpoint = Finding("endpoint", OK, f"{what} in {seen.answer_s * 1e3:.0f} ms", "", answered)
    if not seen.is_up:
        return [endpoint, _upstream(seen)]
    warned = [Finding("engine", PROBLEM, warning) for warning in seen.warnings]
    scheduling = _scheduling_behind_hold(seen) if seen.part("held") else [_scheduling(seen)]
    return [endpoint, _priority(seen), *scheduling, *warned]


def _upstream(seen: Seen) -> Finding:
    told = "the server behind the gateway is down"
    if seen.upstream:
        status = seen.upstream.get("health_status")
        why = seen.upstream.get("problem") or f"its /health answers HTTP {status}"
        told += f": {seen.upstream.get('url')}: {why}"
    return Finding("upstream", PROBLEM, told, "start it, or correct the gateway's --upstream")


def _priority(seen: Seen) -> Finding:
    if held := seen.part("held"):
        return _held(held)
    if seen.refuses:
        count = seen.last.total(REFUSALS) or 0.0
        return Finding("priority", PROBLEM, REFUSED, START_VLLM, {"refusals": count})
    engine = seen.engine
    if seen.state == NOT_KNOWN or engine is None or not engine.takes_priority:
        return Finding(
            "priority",
            PROBLEM,
            f"none is set: {seen.told or NOT_KNOWN}",
            "if it is a vLLM or SGLang behind a proxy, name it: --engine vllm here,"
            f" PARS_ENGINE=vllm for pars; {START_VLLM}",
        )
    told = f"{seen.told}: {way_of(engine)}"
    return Finding("priority", OK, told, "", {"engine": engine.name})


def _held(held: dict[str, Any]) -> Finding:
    """The gateway holds the queue, whatever the engine takes."""
    waits = f"the gateway holds the queue: {held['num_waiting']} wait in it"
    if held["slots"]:
        told = f"{waits}; the engine answers {held['slots']} at once, by {held['slots_by']}"
        return Finding("priority", OK, told, "", held)
    told = f"{waits}; how many the engine answers at once is not known yet, so all are sent on"
    change = "give the gateway --slots N, or look again when streams have had to wait"
    return Finding("priority", UNKNOWN, told, change, held)


def _scheduling_behind_hold(seen: Seen) -> list[Finding]:
    """The engine need not go by priority: a line only where requests wait there all the same."""
    if min(seen.last.values(POLICY), default=-1.0) != 0:
        return []
    told = "requests wait in the engine, first come, first served, and not in the gateway's queue"
    change = "give the gateway as many --slots as the engine answers at once"
    return [Finding("scheduling", PROBLEM, told, change, {POLICY: 0.0})]


def _scheduling(seen: Seen) -> Finding:
    policy = min(seen.last.values(POLICY), default=-1.0)
    numbers: dict[str, Any] = {POLICY: policy}
    if seen.contests.num:
        numbers |= {"contests": seen.contests.num, "contests_won": seen.contests.num_won}
    ignores = "first come, first served: the engine ignores priorities"
    if isinstance(seen.obeys, bool):
        numbers |= {"probed": seen.obeys}
        if seen.obeys:
            return Finding("scheduling", OK, "it admits by priority (probed)", "", numbers)
        return Finding("scheduling", PROBLEM, f"{ignores} (probed)", START_VLLM, numbers)
    if seen.obeys is not None:
        told = f"the probe came to no result: {seen.obeys}"
        return Finding("scheduling", UNKNOWN, told, "", numbers)
    obeys, why = seen.contests.obeys, str(seen.contests)
    if policy in (0, 1) and not seen.refuses and obeys is not bool(policy):
        obeys, why = bool(policy), f"{POLICY} {policy:.0f}"
    if obeys:
        return Finding("scheduling", OK, f"by priority: {why}", "", numbers)
    if obeys is not None:
        return Finding("scheduling", PROBLEM, f"{ignores}: {why}", START_VLLM, numbers)
    told = "not known whether the engine admits by priority: none tells, and no requests show it"
    if seen.contests.num:
        told = f"not clear whether the engine admits by priority: {seen.contests}"
    return Finding(
        "scheduling",
        UNKNOWN,
        told,
        "look again when requests have waited (--outcomes shows it best), or with --probe, on an"
        " idle server, which is filled for some seconds",
        numbers,
    )
