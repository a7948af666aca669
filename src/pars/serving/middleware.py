"""
Gives each generation request a priority chosen from its prompt. Pure ASGI; the one place that does.

In vLLM's own process, with its settings from PARS_* variables:

    vllm serve MODEL --scheduling-policy priority --middleware pars.PriorityMiddleware

The same class stands in front of the proxy in `serving.gateway`. It carries out what `decider`
decides, and fails open: whatever goes wrong there, the request goes on with a neutral priority and
a counter rises.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from pars.outcomes.decision import DECISION, Decision
from pars.outcomes.holdout import watch_of
from pars.outcomes.metrics import OutcomeMetrics, ServeMetrics
from pars.outcomes.queue_order import OrderJudge
from pars.outcomes.recorder import Recorder
from pars.outcomes.records import Outcome
from pars.outcomes.spans import Spans
from pars.outcomes.tenant_watch import TenantMetrics, TenantWatch
from pars.outcomes.worth_metrics import WorthMetrics
from pars.outcomes.worth_watch import WorthWatch
from pars.outcomes.writer import OutcomeWriter
from pars.ranking.live_ranker import LiveRanker
from pars.request.body import (
    TOO_MUCH,
    ASGIApp,
    ByteBudget,
    HeldBody,
    Message,
    Receive,
    Scope,
    Send,
)
from pars.request.paths import METHODS
from pars.request.prompts import reader_of
from pars.scheduling.dialects import DIALECT_HEADERS, DIRECT, Standing
from pars.scheduling.engines import ENGINES, Engine, engine_of_host, scheduling_policy
from pars.scheduling.stamping import stamped, unstamped, without
from pars.scheduling.trust import WISH_HEADERS
from pars.serving.asked import beside_loop
from pars.serving.decider import Decider
from pars.serving.known_engine import KnownEngine
from pars.serving.own_priority import is_refused, may_have_own, pass_without_own
from pars.serving.placing import Placing
from pars.serving.prediction import Predictor
from pars.serving.probes import PROBE_PATHS, Probes, problem_of_host
from pars.serving.refusals import Passage
from pars.serving.settings import Settings, unknown_variables

# vLLM shows what its own loggers say, so that is where to speak inside it.
log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")


class PriorityMiddleware:
    """
    An ASGI app around another one; lives as long as its server.

    Attributes:
        known: The engine: how it takes priorities, and whether it refuses them.
        order: Whether the engine goes by them.
        predictor: Who says how long answers will be.
        placing: Who gives them their places.
        worth: What the order is worth to the requests.
        spans: Hear of each request; None: nobody asked.
        tenants: What each tenant gets; None: there are no tenants.
        holds: Whether what stands behind goes by `Decision.outcome.key`, whatever the engine takes.
        byte_budget: Body bytes held by all requests together.
        max_closing_s: How long a scorer that hangs may hold up the server's shutdown.
    """

    max_closing_s = 5.0

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings | None = None,
        *,
        ranker: LiveRanker | None = None,
        metrics: ServeMetrics | None = None,
        known: KnownEngine | None = None,
        holds: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        if settings is None:
            settings = Settings.from_env()
            for line in unknown_variables():
                log.warning("%s", line)
        self.settings = settings
        self.metrics = metrics or ServeMetrics()
        host = engine_of_host() if settings.engine == "auto" else ENGINES[settings.engine]
        self.holds = holds
        self.known = known or KnownEngine(host, self.metrics)
        self.order = OrderJudge(self.metrics)
        self.known.when_new = self.order.start_afresh
        self.predictor = Predictor(settings, self.metrics, ranker)
        self.byte_budget = ByteBudget(settings.max_buffered_bytes)
        self._kept_budget = ByteBudget(settings.max_buffered_bytes)  # of bodies at the engine
        self.placing = Placing(settings, self.metrics, clock)
        self.spans = Spans() if settings.otel else None
        self.worth = WorthWatch(
            WorthMetrics(self.metrics.registry),
            lambda: self.placing.max_slowdown,
            tau_b=lambda: self.predictor.tau_b,
            holdout=watch_of(settings.holdout_schedule(), self.metrics.registry, clock),
            spans=self.spans,
            clock=clock,
        )
        self.tenants: TenantWatch | None = None
        if settings.tenants:
            self.tenants = TenantWatch(TenantMetrics(self.metrics.registry), clock)
        self._not_theirs = WISH_HEADERS | (DIALECT_HEADERS if settings.dialect != DIRECT else set())
        self._probes = Probes(partial(problem_of_host, app))
        self._writer: OutcomeWriter | None = None
        self._upkeep: list[asyncio.Task[None]] = []
        self._recorder = self._record_requests(clock)
        self._decider = Decider(
            settings,
            self.predictor,
            self.placing,
            self.metrics,
            writer=self._writer,
            clock=clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._upkeep:  # a host that sends no lifespan
            self._start(scope)
        if scope["path"] in PROBE_PATHS:
            await self._probes.answer(scope, send)
            return
        is_generation = scope["method"] in METHODS and reader_of(scope["path"]) is not None
        passing = without(scope, self._not_theirs)
        if not (is_generation or may_have_own(passing, self.known.engine)):
            await self.app(passing, receive, send)
            return
        with HeldBody(self.byte_budget, self.settings.max_body_bytes) as body:
            if not is_generation:
                await pass_without_own(self.app, self.known.engine, body, passing, receive, send)
                return
            await body.take(receive)
            engine = self.known.engine_for(is_held=body.outcome not in TOO_MUCH)
            if await is_refused(engine, body, passing, send):
                return
            if engine.takes_priority or self.holds():
                peer = (scope.get("client") or (None,))[0]
                decision = await self._decider.decide(
                    engine, scope["path"], scope["headers"], peer, body
                )
                await self._pass_on(engine, decision, passing, body, receive, send)
            else:
                self.metrics.count("unordered")
                passing, receive = await beside_loop(
                    body.num_bytes, unstamped, passing, body, receive
                )
                await self.app(passing, receive, send)

    async def _pass_on(
        self,
        engine: Engine,
        decision: Decision,
        scope: Scope,
        body: HeldBody,
        receive: Receive,
        send: Send,
    ) -> None:
        """Hand the request on with its priority, and follow it to its end."""
        # Nothing here may keep the body: what follows takes as long as the answer.
        app = self.app
        if engine.takes_priority:
            app = Passage(
                self.app,
                self.known,
                self._kept_budget,
                body.content() if body.outcome is None else None,
                checks_keys=bool(self.settings.client_keys),
            )
        app = partial(self._recorder.follow, app, decision)
        self.worth.arrived(decision)
        self._show_tenant(decision)
        try:
            num_bytes = body.num_bytes
            if engine.takes_priority:
                at = decision.standing or Standing(decision.priority)
                scope, receive = await beside_loop(
                    num_bytes, stamped, engine, scope, body, at, receive
                )
            else:
                scope, receive = await beside_loop(num_bytes, unstamped, scope, body, receive)
            await app({**scope, DECISION: decision}, receive, send)
        finally:
            self.placing.ended(decision)
            self._show_tenant(decision)

    def parts_to_reload(self) -> dict[str, Callable[[], Awaitable[str]]]:
        """What can be read again without a restart, for `Reload`."""
        parts: dict[str, Callable[[], Awaitable[str]]] = {}
        if self.predictor.offline.is_there:
            parts["the ranker"] = self.predictor.offline.load_again
        if self.settings.key_offsets:
            again = self._decider.read_trust_again
            parts["the file of key offsets"] = partial(asyncio.to_thread, again)
        if self.settings.tenants:
            parts["the file of tenants"] = self._read_tenants_again
        return parts

    async def _read_tenants_again(self) -> str:
        return self._decider.read_tenants_again()

    def _record_requests(self, clock: Callable[[], float]) -> Recorder:
        metrics = OutcomeMetrics(self.metrics.registry)
        observers: list[Callable[[Outcome], None]] = []
        if self.settings.outcomes:
            self._writer = OutcomeWriter(
                Path(self.settings.outcomes), self.settings.outcome_limits(), metrics
            )
            observers.append(self._writer.put)
        return Recorder(
            observers + self.predictor.observers,
            metrics,
            when_begun=self._began,
            when_ended=self._ended,
            clock=clock,
            limits_are_ends=not self.settings.obey_limits,
        )

    def _began(self, decision: Decision) -> None:
        """The engine begins to answer."""
        self.order.began(decision)
        self.placing.began(decision)
        self.worth.began(decision)
        self._show_tenant(decision)

    def _ended(self, decision: Decision, outcome: Outcome) -> None:
        """An answer is known: what it truly took, and how long it was."""
        self.order.ended(decision, outcome)
        self.worth.ended(decision, outcome)
        if self.tenants is not None:
            self.tenants.ended(decision, outcome)
        self.placing.correct(decision, outcome)
        self.predictor.learn(decision.guess, outcome)

    def _show_tenant(self, decision: Decision) -> None:
        if self.tenants is not None:
            self.tenants.moved(decision)

    # Start-up, upkeep and shutdown

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def last_word(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await self._stop()  # before the server hears it and ends the event loop
            await send(message)

        self._start(scope)
        try:
            await self.app(scope, receive, last_word)
        finally:
            await self._stop()

    def _start(self, scope: Scope) -> None:
        upkeep = [*self.predictor.start(), self.worth.keep_looking()]
        if self._writer is not None:
            self._writer.start()
        policy = scheduling_policy(scope.get("app"))
        if policy is None:  # it is seen from who begins when
            upkeep += [self.order.keep_judging(), self._recorder.lateness.keep_looking()]
        else:
            self.order.told(policy)
        self._upkeep = [asyncio.create_task(work) for work in upkeep]

    async def _stop(self) -> None:
        for task in self._upkeep:
            task.cancel()
        self._upkeep = []
        self._recorder.close()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close, self.max_closing_s)
        await self.predictor.close(self.max_closing_s)
