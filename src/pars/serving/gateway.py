"""
A streaming reverse proxy inside `PriorityMiddleware`, for any OpenAI-compatible server.

    pars gateway --upstream http://localhost:8000

    client ─► ClientProtocol ─► API key ─► PriorityMiddleware ─► Hold ─► Relay ─► upstream
                                                                  └────► Relay ─► upstream

Every path and method passes, but for the gateway's own pages under `/pars/` (`pages`).
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext

from prometheus_client import CollectorRegistry

from pars.outcomes.metrics import ServeMetrics
from pars.ranking.live_ranker import LiveRanker
from pars.request.body import ASGIApp, Message, Receive, Scope, Send
from pars.scheduling.trust import keys_in
from pars.serving.client_protocol import ClientProtocol
from pars.serving.control import CTL_PATH, Control, answer_ctl
from pars.serving.engine_watch import SETTLED_S, SOON_S
from pars.serving.header_fields import end_to_end
from pars.serving.held.fleet import Fleet
from pars.serving.held.hold import Hold
from pars.serving.held.queue import LOOK_EVERY_S, HeldQueue
from pars.serving.known_engine import KnownEngine
from pars.serving.middleware import PriorityMiddleware
from pars.serving.pages import PATHS, Pages
from pars.serving.reload import Reload
from pars.serving.replies import send_error
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

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


class Gateway:
    """
    The gateway as an ASGI app.

    Args:
        upstream: The server behind it, or several that do the same.
        settings: With `api_keys`, requests need one of them; its own pages do too where they tell
            more than metrics and whether it is well.
        registry: For /pars/metrics.
        pauses_s: Between two looks at what the engine is: while something changes, and else.
    """

    def __init__(
        self,
        upstream: Upstream | Sequence[Upstream],
        settings: Settings,
        *,
        ranker: LiveRanker | None = None,
        registry: CollectorRegistry | None = None,
        pauses_s: tuple[float, float] = (SOON_S, SETTLED_S),
    ) -> None:
        self.upstreams = [upstream] if isinstance(upstream, Upstream) else list(upstream)
        self.settings = settings
        self.registry = registry or CollectorRegistry()
        metrics = ServeMetrics(self.registry)
        self.known = KnownEngine(settings.named_engine, metrics)
        self.fleet = Fleet(self.upstreams, settings, self.known, self.registry, pauses_s)
        self.queue = HeldQueue(
            list(self.fleet.relays), max_held=settings.max_held, max_held_s=settings.max_held_s
        )
        self.hold = Hold(
            self.fleet.relays,
            self.queue,
            self._holds,
            self.registry,
            max_held_bytes=settings.max_held_bytes,
        )
        self.middleware = PriorityMiddleware(
            self.hold,
            settings,
            ranker=ranker,
            metrics=metrics,
            known=self.known,
            holds=self._holds,
        )
        self._api_keys = [key.encode() for key in settings.client_keys]
        urls = [it.base for it in self.upstreams]
        self.control = Control(self.middleware, settings.state_folder, urls)
        self.reload = Reload(self._parts_to_reload())
        self.pages = Pages(self.upstreams, self.middleware, self.known, self.registry, self.hold)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == CTL_PATH:
            await answer_ctl(self.control, self.settings.admin_key, scope, receive, send)
        elif scope["path"] in PATHS:
            await self.pages.answer(scope, send, shows_key=self._shows_key(scope))
        elif not (self._shows_key(scope) or _is_preflight(scope)):
            await send_error(send, 401, "invalid_api_key", "the API key is missing or wrong")
        else:
            # Before the middleware adds its own, which no client may name in Connection.
            passing = {**scope, "headers": end_to_end(scope["headers"])}
            spans = self.middleware.spans
            with nullcontext() if spans is None else spans.around(scope["headers"]):
                await _until_shutdown(self.middleware, passing, receive, send)

    def _holds(self) -> bool:
        """Whether requests wait here, and not at the engine; before several, always."""
        if self.settings.hold != "auto":
            return self.settings.hold == "on"
        if len(self.upstreams) > 1:
            return True
        return self.known.is_known and not self.known.engine.takes_priority

    def _shows_key(self, scope: Scope) -> bool:
        """Whether it shows a key, if one is asked for."""
        if not self._api_keys:
            return True
        matches = [
            hmac.compare_digest(key, known)
            for key in keys_in(scope["headers"])
            for known in self._api_keys
        ]
        return any(matches)

    def _parts_to_reload(self) -> dict[str, Callable[[], Awaitable[str]]]:
        parts = self.middleware.parts_to_reload()
        if self.settings.upstream_api_key_file:
            parts["the upstream's API key"] = self._read_upstream_key_again
        return parts

    async def _read_upstream_key_again(self) -> str:
        key = await asyncio.to_thread(lambda: self.settings.upstream_key)
        for upstream in self.upstreams:
            upstream.use_key(key)
        return f"from {self.settings.upstream_api_key_file}"

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.settings.admin_key:  # else nobody may have set what is kept there
            await self.control.restore()
        works = (self._keep_holding(), self.reload.keep_waiting(), *self.fleet.watch())
        beside = [asyncio.create_task(work) for work in works]

        async def last_word(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                for upstream in self.upstreams:
                    await upstream.close()
            await send(message)

        await self.middleware(scope, receive, last_word)

    async def _keep_holding(self) -> None:
        """See every so often whether the engine is full, or has room again."""
        while True:
            self.hold.look()
            await asyncio.sleep(LOOK_EVERY_S)


async def _until_shutdown(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Have a request served; one whose answer has not begun once the draining is over hears so."""
    has_begun = False

    async def noted(message: Message) -> None:
        nonlocal has_begun
        has_begun = True
        await send(message)

    try:
        await app(scope, receive, noted)
    except asyncio.CancelledError:  # by uvicorn, which gives up waiting
        if not has_begun:
            why = "the gateway is shut down before an answer came; repeat the request"
            await send_error(send, 503, "shutting_down", why, close=True)


def _is_preflight(scope: Scope) -> bool:
    """
    Whether a browser asks if it may send a request (Fetch standard, "CORS-preflight"), which never
    carries a key; what it asks is for the engine to say.
    """
    fields = dict(scope["headers"])
    has_body = fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields
    asks = b"origin" in fields and b"access-control-request-method" in fields
    return scope["method"] == "OPTIONS" and asks and not has_body
