"""
The gateway's own pages, all under /pars/.

    /pars/          for people: is there a queue, what is gained, who waits, what is to be looked at
    /pars/now       the same for programs, as JSON
    /pars/health    for probes: ok, unscored (no ranker) or down
    /pars/metrics   for Prometheus; in OpenMetrics, with request ids as exemplars, if asked for
    /pars/live, /pars/ready   for orchestrators: `probes`
"""

import asyncio
import math
import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pars.outcomes.metrics import Exposed
from pars.request.body import Scope, Send
from pars.serving.answer import UpstreamError
from pars.serving.held.hold import Hold
from pars.serving.known_engine import KnownEngine
from pars.serving.middleware import PriorityMiddleware
from pars.serving.probes import PROBE_PATHS, Probes
from pars.serving.replies import send_bytes, send_error, send_json
from pars.serving.upstream import Upstream

SERVER_NAME = "pars gateway"  # by which its health page is known
PAGE_PATH, NOW_PATH = "/pars/", "/pars/now"
HEALTH_PATH, METRICS_PATH = "/pars/health", "/pars/metrics"
PATHS = frozenset((PAGE_PATH, PAGE_PATH[:-1], NOW_PATH, HEALTH_PATH, METRICS_PATH)) | PROBE_PATHS
HEALTH_PATIENCE_S = 3.0  # less than those have who ask for the health page
HEALTH_IS_FRESH_S = 1.0  # the health page is open to all, and asks the upstream no oftener
# The page is one file and asks nobody but this server.
PAGE_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
        b" connect-src 'self'; img-src data:; form-action 'none'; frame-ancestors 'none';"
        b" base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Pages:
    """One gateway's."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        middleware: PriorityMiddleware,
        known: KnownEngine,
        registry: CollectorRegistry,
        hold: Hold,
    ) -> None:
        self._upstreams = upstreams
        self._middleware = middleware
        self._known = known
        self._registry = registry
        self._hold = hold
        self._health: tuple[float, int, dict[str, Any]] = (-math.inf, 0, {})
        self._health_lock = asyncio.Lock()
        self._probes = Probes(self._engine_problem)

    async def answer(self, scope: Scope, send: Send, *, shows_key: bool) -> None:
        """
        Answer one of PATHS.

        Args:
            shows_key: Whether the request shows an API key, or needs none. Where things are, and
                how much passes, is nobody else's business.
        """
        path = scope["path"]
        if path in PROBE_PATHS:
            await self._probes.answer(scope, send)
        elif path == PAGE_PATH[:-1]:
            await send_bytes(send, 308, b"text/plain", b"", more=[(b"location", b"pars/")])
        elif path == PAGE_PATH:
            await send_bytes(send, 200, b"text/html; charset=utf-8", _page(), more=PAGE_HEADERS)
        elif path == METRICS_PATH:
            accepted = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
            encode, kind = _encoder_for(accepted)
            await send_bytes(send, 200, kind.encode(), encode(Exposed(self._registry)))
        elif path == HEALTH_PATH:
            status, report = await self._health_report()
            if not shows_key:
                report = {name: report[name] for name in ("server", "status")}
            await send_json(send, status, report)
        elif shows_key:
            _, report = await self._health_report()
            await send_json(send, 200, report | self._now())
        else:
            await send_error(send, 401, "invalid_api_key", "the API key is missing or wrong")

    async def _engine_problem(self, _: Scope) -> str:
        """Why no engine has answered, for anybody to read; empty: one did."""
        status, _report = await self._health_report()
        return "" if status == 200 else "no engine behind this gateway has answered yet"

    def _now(self) -> dict[str, Any]:
        middleware, tenants = self._middleware, self._middleware.tenants
        return {
            "policy": middleware.placing.in_words,
            "express_bucket_ratio": middleware.placing.bucket_ratio,
            "worth": middleware.worth.as_json(),
            "tenants": None if tenants is None else tenants.as_json(middleware.placing.lanes),
        }

    async def _health_report(self) -> tuple[int, dict[str, Any]]:
        async with self._health_lock:
            if time.monotonic() - self._health[0] > HEALTH_IS_FRESH_S:
                status, report = await self._look()
                self._health = (time.monotonic(), status, report)
        return self._health[1:]

    async def _look(self) -> tuple[int, dict[str, Any]]:
        looks = await asyncio.gather(*map(_health_of, self._upstreams))
        is_up = any(look["reachable"] for look in looks)
        predictor = self._middleware.predictor
        ranker, learner = predictor.offline.live, predictor.learner
        report: dict[str, Any] = {
            "server": SERVER_NAME,
            "status": "down" if not is_up else "ok" if predictor.can_order else "unscored",
            "upstream": next((look for look in looks if look["reachable"]), looks[0]),
            "ranker": {
                "loaded": ranker.is_loaded,
                "folder": str(ranker.folder),
                "model": ranker.model_name,
                "fingerprint": ranker.fingerprint,
            },
            "learning": None if learner is None else learner.as_json(),
            "engine": self._known.state,
            "held": self._hold.as_json(),
            "schedules_by_priority": self._middleware.order.obeys,
            "warnings": self._known.warnings,
        }
        if len(looks) > 1:
            report["upstreams"] = looks
        return 200 if is_up else 503, report


async def _health_of(upstream: Upstream) -> dict[str, Any]:
    """Whether a server answers, by its /health."""
    status: int | None = None
    report: dict[str, Any] = {"url": upstream.url}
    try:
        status, _ = await upstream.get(b"/health", timeout_s=HEALTH_PATIENCE_S)
    except UpstreamError as error:
        report["problem"] = str(error)
    return report | {"reachable": status is not None and status < 500, "health_status": status}


@cache
def _page() -> bytes:
    return files("pars.serving").joinpath("page/index.html").read_bytes()


def _encoder_for(accepted: str) -> tuple[Any, str]:
    """How the metrics are written, by an Accept field; the plain way where it makes no sense."""
    try:
        return choose_encoder(accepted)
    except (ValueError, TypeError):  # a version that is no number
        return choose_encoder("")
