"""
Whether pars can help an endpoint, and what to change: looks for some seconds, and disturbs nothing.

    report = diagnose(DoctorOptions(endpoint="http://localhost:8000"))
    print(report.render()); sys.exit(report.exit_code)

Only pages are read (/version, /metrics, /pars/metrics), and the folder of outcomes if there is one.
With `probe` the server is filled for some seconds, which wants it idle.
"""

import asyncio
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pars.doctor.engine import Seen, engine_findings, longest_wait, served_ranker
from pars.doctor.findings import OK, PROBLEM, Finding, Report
from pars.doctor.metrics_page import RUNNING, WAITING, MetricsPage
from pars.doctor.outcomes import ranker_finding, waits_finding
from pars.errors import ParsError
from pars.outcomes.records import read_outcomes
from pars.scheduling.engines import ENGINES, Engine
from pars.scheduling.priority import DEFAULT_MAX_OVERTAKE_S
from pars.serving.exchange import UpstreamError
from pars.serving.gateway import METRICS_PATH, engine_of
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
        max_overtake_s: As set where pars runs.
        probe: Fill the server and see whether it admits by priority.

    Raises:
        ParsError: a value makes no sense.
    """

    endpoint: str
    engine: str = "auto"
    outcomes: Path | None = None
    watch_s: float = 10.0
    max_overtake_s: float = DEFAULT_MAX_OVERTAKE_S
    probe: bool = False
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if self.engine not in ("auto", *ENGINES):
            raise ParsError(f"--engine must be one of auto, {', '.join(ENGINES)}")
        if not 0 <= self.watch_s <= 86_400:
            raise ParsError(f"--watch-s must be from 0 to 86400, not {self.watch_s:g}")
        if not self.max_overtake_s >= 0:
            raise ParsError(f"--max-overtake-s must be 0 or more, not {self.max_overtake_s:g}")


def diagnose(options: DoctorOptions) -> Report:
    """
    Look, and say what was found.

    Raises:
        ParsError: the endpoint is no URL, or the outcomes cannot be read.
    """
    url = options.endpoint.rstrip("/").removesuffix("/v1")
    upstream = Upstream(url, connect_timeout_s=options.patience_s)
    told_by_outcomes = _outcome_findings(options)
    seen = asyncio.run(_look(upstream, options))
    findings = engine_findings(seen)
    if not told_by_outcomes and seen.failure is None:
        told_by_outcomes = [served_ranker(seen.last), longest_wait(seen, options.max_overtake_s)]
    return Report(upstream.url, options.watch_s, findings + told_by_outcomes)


async def _look(upstream: Upstream, options: DoctorOptions) -> Seen:
    begun_s = time.perf_counter()
    try:
        await upstream.get(b"/health", timeout_s=options.patience_s)
        answer_s = time.perf_counter() - begun_s
        if options.engine == "auto":
            engine, told = await engine_of(upstream)
        else:
            engine, told = ENGINES[options.engine], f"taken for {options.engine}, as told"
    except UpstreamError as error:
        return Seen(failure=str(error))
    seen = await _watched(upstream, options)
    can_probe = options.probe and engine.takes_priority
    obeys = await _probed(upstream, engine, options) if can_probe else None
    return replace(seen, engine=engine, told=told, answer_s=answer_s, obeys=obeys)


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
        status, body = await upstream.get(path, timeout_s=options.patience_s, headers=_key_header())
    except UpstreamError as error:
        return MetricsPage(), f"{name}: {error}"
    if status in (401, 403):
        return MetricsPage(), f"{name}: HTTP {status}; a key goes into PARS_API_KEYS"
    if status != 200:
        return MetricsPage(), f"{name}: HTTP {status}"
    page = MetricsPage.parse(body.decode(errors="replace"))
    return page, None if page.samples else f"{name} holds no metrics"


def _key_header() -> list[tuple[bytes, bytes]]:
    key = os.environ.get("PARS_API_KEYS", "").split(",")[0].strip()
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


async def _probed(upstream: Upstream, engine: Engine, options: DoctorOptions) -> bool | str:
    from pars.doctor.probe import PATIENCE_S as PROBE_PATIENCE_S
    from pars.doctor.probe import Probe, ProbeError

    patience_s = min(options.patience_s, PROBE_PATIENCE_S)
    try:
        return await Probe(upstream, engine, patience_s=patience_s).obeys_priority()
    except (ProbeError, UpstreamError) as error:
        return str(error)


def _outcome_findings(options: DoctorOptions) -> list[Finding]:
    if options.outcomes is None:
        return []
    read = read_outcomes(options.outcomes)
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
