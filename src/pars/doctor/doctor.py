"""
Whether pars can help an endpoint, and what to change: looks for some seconds, and disturbs nothing.

    report = diagnose(DoctorOptions(endpoint="http://localhost:8000"))
    print(report.render()); sys.exit(report.exit_code)

Only pages are read (/version, /metrics, /pars/metrics), and the folder of outcomes if there is one.
With `probe` the server is filled for some seconds, which wants it idle.
"""

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pars.doctor.engine import Seen, engine_findings
from pars.doctor.findings import OK, PROBLEM, UNKNOWN, Finding, Report
from pars.doctor.metrics_page import RUNNING, WAITING, MetricsPage
from pars.doctor.outcomes import ranker_finding, waits_finding
from pars.doctor.probe import key_header
from pars.doctor.traffic import (
    DECISIONS,
    judged_ranker,
    longest_wait,
    serving_ranker,
    traffic_findings,
)
from pars.errors import ParsError
from pars.outcomes.queue_order import WINDOW, Waited, contests_of
from pars.outcomes.records import OutcomesRead, read_outcomes
from pars.scheduling.engines import ENGINES, FOREIGN, NONE, Engine, EngineTold, contradictions
from pars.serving.answer import UpstreamError
from pars.serving.engine_watch import NotTold, ask_engine
from pars.serving.pages import HEALTH_PATH, METRICS_PATH, SERVER_NAME
from pars.serving.upstream import Upstream

EVERY_S = 0.5
PATIENCE_S = 5.0  # for one page


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """
    What to look at.

    Attributes:
        engine: One of `ENGINES`, or "auto": it is asked.
        outcomes: Folder that PARS_OUTCOMES names.
        watch_s: How long to look.
        max_overtake_s: As set where pars runs; None: it is not, as by default.
        probe: Fill the server and see whether it admits by priority.

    Raises:
        ParsError: a value makes no sense.
    """

    endpoint: str
    engine: str = "auto"
    outcomes: Path | None = None
    watch_s: float = 10.0
    max_overtake_s: float | None = None
    probe: bool = False
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if self.engine not in ("auto", *ENGINES):
            raise ParsError(f"--engine must be one of auto, {', '.join(ENGINES)}")
        if not 0 <= self.watch_s <= 86_400:
            raise ParsError(f"--watch-s must be from 0 to 86400, not {self.watch_s:g}")
        if self.max_overtake_s is not None and not self.max_overtake_s >= 0:
            raise ParsError(f"--max-overtake-s must be 0 or more, not {self.max_overtake_s:g}")


def diagnose(options: DoctorOptions) -> Report:
    """
    Look, and say what was found.

    Raises:
        ParsError: the endpoint is no URL, or the outcomes cannot be read.
    """
    upstream = Upstream(options.endpoint, connect_timeout_s=options.patience_s)
    read = None if options.outcomes is None else read_outcomes(options.outcomes)
    latest = read.outcomes[-WINDOW:] if read else []
    contests = contests_of(filter(None, map(Waited.of, latest)))
    seen = replace(asyncio.run(_look(upstream, options)), contests=contests)
    findings = engine_findings(seen)
    if seen.is_up:
        findings += traffic_findings(seen)
    if read is not None:
        findings += _outcome_findings(read, options, seen.last.total(DECISIONS))
    elif seen.is_up:
        findings += [judged_ranker(seen.last), longest_wait(seen, options.max_overtake_s)]
    return Report(upstream.url, options.watch_s, _with_ranker(findings, serving_ranker(seen)))


def _with_ranker(findings: list[Finding], serves: str) -> list[Finding]:
    """The findings, of which the one about the ranker says which one serves."""
    return [
        replace(it, told=f"{serves}; {it.told}") if serves and it.name == "ranker" else it
        for it in findings
    ]


async def _look(upstream: Upstream, options: DoctorOptions) -> Seen:
    async with upstream:
        return await _seen(upstream, options)


async def _seen(upstream: Upstream, options: DoctorOptions) -> Seen:
    begun_s = time.perf_counter()
    try:
        gateway, status = await _gateway(upstream, options), 200
        if gateway is None:
            status, _ = await upstream.get(
                b"/health", timeout_s=options.patience_s, headers=key_header()
            )
    except UpstreamError as error:
        return Seen(failure=f"no answer: {error}")
    answer_s = time.perf_counter() - begun_s
    if status >= 500:
        return Seen(failure=f"/health answers HTTP {status}: it is loading, or down")
    seen = Seen(gateway=gateway, answer_s=answer_s)
    if not seen.is_up:
        return replace(seen, last=(await _page(upstream, METRICS_PATH.encode(), options))[0])
    told, engine = await _engine(upstream, options, seen)
    seen = replace(
        await _watched(upstream, options),
        gateway=gateway,
        answer_s=answer_s,
        engine=engine,
        told=told.told,
        warnings=list(dict.fromkeys((*told.warnings, *_warnings(gateway)))),
    )
    if not (options.probe and engine.takes_priority):
        return seen
    probed: dict[str, Any] = await _probed(upstream, engine, options)
    return replace(seen, **probed)


async def _gateway(upstream: Upstream, options: DoctorOptions) -> dict[str, Any] | None:
    """What a pars gateway tells of itself; None where there is none."""
    _, body = await upstream.get(
        HEALTH_PATH.encode(), timeout_s=options.patience_s, headers=key_header()
    )
    with suppress(ValueError, RecursionError):
        page = json.loads(body)
        if isinstance(page, dict) and page.get("server") == SERVER_NAME:
            return page
    return None


async def _engine(
    upstream: Upstream, options: DoctorOptions, seen: Seen
) -> tuple[EngineTold, Engine]:
    """What the engine tells, and what it is taken for: by --engine, a gateway, or its own word."""
    named = ENGINES.get(options.engine) or ENGINES.get(seen.state)
    try:
        told = await ask_engine(upstream, headers=key_header())
    except NotTold as error:
        return replace(FOREIGN, told=str(error)), named or NONE
    if named is None:
        return told, told.engine
    warnings = (*contradictions(named, told), *told.warnings)
    as_told = f"taken for {named.name}, as told" if told is FOREIGN else told.told
    return replace(told, told=as_told, warnings=warnings), named


def _warnings(gateway: dict[str, Any] | None) -> list[str]:
    warnings = (gateway or {}).get("warnings")
    return [str(it) for it in warnings] if isinstance(warnings, list) else []


async def _watched(upstream: Upstream, options: DoctorOptions) -> Seen:
    """Looks at /metrics until the time is over, and at a gateway's own page before and after."""
    gateway, _ = await _page(upstream, METRICS_PATH.encode(), options)
    page, failure = await _page(upstream, b"/metrics", options)
    # Where a gateway and vLLM both run pars, vLLM's knows how its queue is ordered.
    first = MetricsPage({**gateway.samples, **page.samples})
    queue = _queue_in(page)
    end_s = time.monotonic() + options.watch_s
    while failure is None and (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(min(EVERY_S, left_s))
        last, failure = await _page(upstream, b"/metrics", options)
        if failure is None:
            page = last
            queue += _queue_in(page)
    gateway, _ = await _page(upstream, METRICS_PATH.encode(), options)
    last = MetricsPage({**gateway.samples, **page.samples})
    return Seen(first=first, last=last, queue=queue, metrics_failure=failure)


def _queue_in(page: MetricsPage) -> list[tuple[float, float]]:
    """Requests that run and that wait, where the page tells both."""
    running, waiting = page.total(*RUNNING), page.total(*WAITING)
    return [] if running is None or waiting is None else [(running, waiting)]


async def _page(
    upstream: Upstream, path: bytes, options: DoctorOptions
) -> tuple[MetricsPage, str | None]:
    """A page of metrics, empty where there is none, and why."""
    name = path.decode()
    try:
        status, body = await upstream.get(path, timeout_s=options.patience_s, headers=key_header())
    except UpstreamError as error:
        return MetricsPage(), f"{name}: {error}"
    if status in (401, 403):
        return MetricsPage(), f"{name}: HTTP {status}; a key goes into PARS_API_KEYS"
    if status != 200:
        return MetricsPage(), f"{name}: HTTP {status}"
    page = MetricsPage.parse(body.decode(errors="replace"))
    return page, None if page.samples else f"{name} holds no metrics"


async def _probed(
    upstream: Upstream, engine: Engine, options: DoctorOptions
) -> dict[str, bool | str]:
    """What the probe found, as fields of `Seen`."""
    from pars.doctor.probe import PATIENCE_S as PROBE_PATIENCE_S
    from pars.doctor.probe import PriorityRefused, Probe, ProbeError

    patience_s = min(options.patience_s, PROBE_PATIENCE_S)
    try:
        return {"obeys": await Probe(upstream, engine, patience_s=patience_s).obeys_priority()}
    except PriorityRefused:
        return {"is_probe_refused": True}
    except (ProbeError, UpstreamError) as error:
        return {"obeys": str(error)}


def _outcome_findings(
    read: OutcomesRead, options: DoctorOptions, num_requests: float | None
) -> list[Finding]:
    if not read.outcomes and num_requests == 0:
        told = f"{options.outcomes} holds none yet, since no request came so far"
        return [Finding("outcomes", UNKNOWN, told, "send a request through pars")]
    if not read.outcomes:
        told = f"{options.outcomes} holds none"
        change = "PARS_OUTCOMES must name this folder where pars runs"
        return [Finding("outcomes", PROBLEM, told, change)]
    age_s = max(0.0, time.time() - read.outcomes[-1].arrival_s)
    told = f"{len(read.outcomes):,} requests, the newest came {_ago(age_s)} ago"
    if read.num_damaged:
        told += f"; {read.num_damaged:,} damaged lines were left out"
    numbers = {
        "requests": len(read.outcomes),
        "newest_age_s": round(age_s, 1),
        "damaged": read.num_damaged,
    }
    return [
        Finding("outcomes", OK, told, "", numbers),
        ranker_finding(read.outcomes),
        waits_finding(read.outcomes, options.max_overtake_s),
    ]


def _ago(seconds: float) -> str:
    for size_s, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {name}"
    return f"{seconds:.0f} s"
