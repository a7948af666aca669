"""
A streaming reverse proxy inside `PriorityMiddleware`, for any OpenAI-compatible server.

    pars gateway --upstream http://localhost:8000

    client ─► API key ─► body deadline ─► PriorityMiddleware ─► Relay ─► upstream

Every path and method passes; `/pars/health` and `/pars/metrics` are the gateway's own.
"""

import asyncio
import hmac
import json
import logging
import math
import time
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from pars.outcomes.metrics import ServeMetrics
from pars.ranking.live_ranker import LiveRanker
from pars.request.body import Message, Receive, Scope, Send
from pars.scheduling.engines import ENGINES, Engine, vllm_engine
from pars.serving.client_protocol import ClientProtocol
from pars.serving.exchange import Headers, UpstreamError
from pars.serving.middleware import PriorityMiddleware
from pars.serving.relay import BodyTimeout, Relay, TimedBody
from pars.serving.replies import send_bytes, send_error, send_json
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

log = logging.getLogger("pars")

# The upstream's own Date and Server pass; the peer's address is who really connected, so that trust
# by address cannot be had by a header.
UVICORN_OPTIONS = {
    "http": ClientProtocol,
    "server_header": False,
    "date_header": False,
    "proxy_headers": False,
    "backlog": 2048,
    # Longer than clients (5 s) and load balancers (60 s) keep a connection: they close it, or
    # a request may meet a connection that is just being closed.
    "timeout_keep_alive": 75,
}
HEALTH_PATH, METRICS_PATH = "/pars/health", "/pars/metrics"
BODY_TIMEOUT_S = 60.0  # without a byte of a body that the client announced
HEALTH_IS_FRESH_S = 1.0  # the health page is open to all, and asks the upstream no oftener
ENGINE_RETRY_S = 2.0


class Gateway:
    """
    The gateway as an ASGI app.

    Args:
        settings: With `api_keys`, requests need one of them; the gateway's own two pages do not.
        registry: For /pars/metrics.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings,
        *,
        ranker: LiveRanker | None = None,
        registry: CollectorRegistry | None = None,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self.upstream = upstream
        self.settings = settings
        self.registry = registry or CollectorRegistry()
        self.relay = Relay(upstream, self.registry)
        self.middleware = PriorityMiddleware(
            self.relay, settings, ranker=ranker, metrics=ServeMetrics(self.registry)
        )
        self.engine_is_known = settings.engine != "auto"
        self._api_keys = [key.encode() for key in settings.client_keys]
        self._body_timeout_s = body_timeout_s
        self._health: tuple[float, int, dict[str, Any]] = (-math.inf, 0, {})
        self._health_lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == HEALTH_PATH:
            await send_json(send, *await self._health_report())
        elif path == METRICS_PATH:
            await send_bytes(
                send, 200, b"text/plain; version=0.0.4", generate_latest(self.registry)
            )
        elif self._api_keys and not self._has_key(scope["headers"]):
            await send_error(send, 401, "invalid_api_key", "the API key is missing or wrong")
        else:
            body = TimedBody(receive, self._body_timeout_s)
            try:
                await self.middleware(scope, body, send)
            except BodyTimeout as error:  # before the relay had any of it
                await send_error(send, 408, "request_timeout", str(error), close=True)

    def _has_key(self, headers: Headers) -> bool:
        sent = dict(reversed(headers))  # the first of each name counts
        scheme, _, key = sent.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = sent.get(b"x-api-key", b"")  # as Anthropic's clients send it
        matches = [hmac.compare_digest(key.strip(), known) for known in self._api_keys]
        return any(matches)

    async def _health_report(self) -> tuple[int, dict[str, Any]]:
        async with self._health_lock:
            if time.monotonic() - self._health[0] > HEALTH_IS_FRESH_S:
                status, report = await self._look()
                self._health = (time.monotonic(), status, report)
        return self._health[1:]

    async def _look(self) -> tuple[int, dict[str, Any]]:
        answer: int | None = None
        problem: str | None = None
        try:
            answer, _ = await self.upstream.get(b"/health")
        except UpstreamError as error:
            problem = str(error)
        is_up = answer is not None and answer < 500
        ranker = self.middleware.ranker
        report: dict[str, Any] = {
            "status": "down" if not is_up else "ok" if ranker.is_loaded else "unscored",
            "upstream": {"url": self.upstream.url, "reachable": is_up, "health_status": answer},
            "ranker": {"loaded": ranker.is_loaded, "folder": str(ranker.folder)},
            "engine": self.middleware.engine.name if self.engine_is_known else "not known yet",
        }
        if problem:
            report["upstream"]["problem"] = problem
        return 200 if is_up else 503, report

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        finding = asyncio.create_task(self._find_engine())

        async def last_word(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                finding.cancel()
                await self.upstream.close()
            await send(message)

        await self.middleware(scope, receive, last_word)

    async def _find_engine(self) -> None:
        """Ask the upstream what it is, until it answers; then set priorities its way."""
        while not self.engine_is_known:
            try:
                engine, remark = await engine_of(self.upstream)
            except UpstreamError:
                await asyncio.sleep(ENGINE_RETRY_S)
                continue
            self.middleware.use_engine(engine)
            self.engine_is_known = True
            log.log(logging.INFO if engine.takes_priority else logging.WARNING, "%s", remark)


async def engine_of(upstream: Upstream) -> tuple[Engine, str]:
    """
    What the upstream is, by the pages that only vLLM or SGLang has, with a line to log.

    Raises:
        UpstreamError: it does not answer.
    """
    version = await _json_page(upstream, b"/version")
    if "version" in version:
        engine = vllm_engine(str(version["version"]))
        return engine, f"the upstream is vLLM {version['version']}: priorities as for {engine.name}"
    for page in (b"/server_info", b"/get_server_info"):
        info = await _json_page(upstream, page)
        if "schedule_low_priority_values_first" in info:
            low_first = info["schedule_low_priority_values_first"]
            engine = ENGINES["sglang-low-first" if low_first else "sglang"]
            if not info.get("enable_priority_scheduling"):
                return ENGINES["none"], (
                    "the upstream is SGLang WITHOUT --enable-priority-scheduling: it would ignore"
                    " priorities or refuse them, so none are set"
                )
            return engine, f"the upstream is SGLang: priorities as for {engine.name}"
    return ENGINES["none"], (
        "the upstream is neither vLLM nor SGLang as far as it tells: no priorities are set"
        " (--engine names it if that is wrong)"
    )


async def _json_page(upstream: Upstream, target: bytes) -> dict[str, Any]:
    status, body = await upstream.get(target)
    with suppress(ValueError, RecursionError):
        page = json.loads(body)
        if status == 200 and isinstance(page, dict):
            return page
    return {}
