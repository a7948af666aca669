"""
Gives each generation request a priority chosen from its prompt. Pure ASGI; the one place that does.

In vLLM's own process, with its settings from PARS_* variables:

    vllm serve MODEL --scheduling-policy priority --middleware pars.middleware.PriorityMiddleware

The same class stands in front of the proxy in `serving.gateway`. It fails open: whatever goes wrong
here, the request goes on with a neutral priority and a counter rises.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pars.errors import one_line
from pars.outcomes.learner import Learner
from pars.outcomes.metrics import DriftMetrics, LearnMetrics, OutcomeMetrics, ServeMetrics
from pars.outcomes.queue_order import OrderJudge
from pars.outcomes.ranker_judge import RankerJudge
from pars.outcomes.recorder import Decided, Recorder
from pars.outcomes.records import Outcome
from pars.outcomes.writer import OutcomeWriter
from pars.ranking.batching import Batcher, QueueFull
from pars.ranking.live_ranker import Expectation, LiveRanker, keep_fresh
from pars.ranking.online.ranker import Guess, OnlineRanker
from pars.request.body import ASGIApp, ByteBudget, HeldBody, Message, Receive, Scope, Send
from pars.request.features import Signals, signals_of
from pars.request.fields import SMALL_BYTES, read_fields
from pars.request.prompts import (
    GenerationRequest,
    Prompt,
    Reader,
    head_and_tail,
    reader_of,
    unread_request,
)
from pars.scheduling.engines import ENGINES, Engine, engine_of_host, scheduling_policy
from pars.scheduling.priority import (
    EPOCH_S,
    MAX_OFFSET_S,
    PROMPT_TOKEN_WORK,
    Calibration,
    demand_of,
)
from pars.scheduling.slowdown import Place
from pars.scheduling.stamping import stamped, unstamped, without
from pars.scheduling.trust import WISH_HEADERS, Wish, keys_in
from pars.serving.known_engine import KnownEngine
from pars.serving.refusals import Passage
from pars.serving.settings import Settings, unknown_variables

# vLLM shows what its own loggers say, so that is where to speak inside it.
log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")

_T = TypeVar("_T")
SECONDS_BETWEEN_WARNINGS = 60.0
NO_TEXT = GenerationRequest((Prompt(None, 0.0),))
ONLINE = "online"  # the ranker that learns, as outcomes name it
NOBODY = (None, None, None)
MAX_NAME_CHARS = 256  # of a model's or a request's name, kept until the answer ends


@dataclass(slots=True)
class _Asked:
    """A request as far as it could be read, and what its priority came from."""

    request: GenerationRequest = NO_TEXT
    decision: str = "error"
    model: str | None = None
    request_id: str | None = None
    expectations: list[Expectation] | None = None  # of the first texts, by an offline ranker
    signals: Signals | None = None
    guess: Guess | None = None  # of the ranker that learns
    is_ordered: bool = True  # False: first come, first served
    place: Place | None = None  # in the express lane's book

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.request.prompts if prompt.text]


class PriorityMiddleware:
    """
    An ASGI app around another one; lives as long as its server.

    Attributes:
        known: The engine: how it takes priorities, and whether it refuses them.
        order: Whether the engine goes by them.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        if settings is None:
            settings = Settings.from_env()
            for line in unknown_variables():
                log.warning("%s", line)
        self.settings = settings
        self.metrics = metrics or ServeMetrics()
        self.ranker = ranker or LiveRanker(settings.ranker_folder)
        host = engine_of_host() if settings.engine == "auto" else ENGINES[settings.engine]
        self.known = known or KnownEngine(host, self.metrics)
        self._slowdown = settings.slowdown()
        self._policies = {way: settings.policy(larger_first=way) for way in (False, True)}
        self._trust = settings.trust()
        self._clock = clock
        self._batcher = Batcher(
            self.ranker.expect,
            max_batch_s=settings.budget_ms / 2000,  # so that `_scored` sees the scorer get on
            max_queued_prompts=settings.max_queued_prompts,
        )
        self._writer: OutcomeWriter | None = None
        self._judge: RankerJudge | None = None
        self.order = OrderJudge(self.metrics)
        self.known.when_new = self.order.start_afresh
        self._recorder: Recorder | None = None
        self._upkeep: list[asyncio.Task[None]] = []
        self.byte_budget = ByteBudget(settings.max_buffered_bytes)
        self._kept_budget = ByteBudget(settings.max_buffered_bytes)  # of bodies at the engine
        self._quiet_until_s = 0.0
        # A ranker that was asked for is a signal for good; the bundled one only until enough is
        # learned to order without it.
        self._has_own_ranker = ranker is not None or settings.ranker not in ("", "none")
        self._has_ranker = settings.ranker != "none" or settings.learn == "off"
        if self._has_ranker:
            self._first_load()
        self.learner: Learner | None = None
        if settings.learn == "on":
            self.learner = Learner(settings.state_folder, LearnMetrics(self.metrics.registry))
        if settings.outcomes or settings.drift or self.learner is not None:
            self._follow_requests(OutcomeMetrics(self.metrics.registry))

    @property
    def can_order(self) -> bool:
        """Whether requests are ordered, or will be by themselves."""
        return self.learner is not None or self.ranker.is_loaded

    @property
    def learning(self) -> dict[str, Any] | None:
        """What the ranker that learns knows by now; None: none does."""
        if self.learner is None:
            return None
        gauge, folder = self.learner.ranker.gauge, self.learner.folder
        return {
            "folder": None if folder is None else str(folder),
            "num_learned": self.learner.ranker.model.num_learned,
            "in_use": self.learner.is_ready,
            "tau_b": gauge.tau_b.as_json(),
        }

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
        reader = reader_of(scope["path"]) if scope["method"] == "POST" else None
        if reader is None:
            await self.app(without(scope, WISH_HEADERS), receive, send)
            return
        client = scope.get("client")
        wish = self._trust.wish(scope["headers"], client[0] if client else None)
        scope = without(scope, WISH_HEADERS)
        with HeldBody(self.byte_budget, self.settings.max_body_bytes) as body:
            await body.take(receive)
            engine = self.known.engine
            if not engine.takes_priority:
                self.metrics.count("unordered")
                scope, receive = await _aside(body.num_bytes, unstamped, scope, body, receive)
                await self.app(scope, receive, send)
                return
            began_s = time.perf_counter()
            arrival_s = self._clock()  # once the body is here: a slow sender gains no age by it
            asked = await self._asked(scope, reader, body, wish)
            priority = self._priority(engine, asked, wish, arrival_s)
            place = asked.place
            try:
                self.metrics.decision_seconds.observe(time.perf_counter() - began_s)
                content = body.content() if body.outcome is None else None
                app: ASGIApp = Passage(self.app, self.known, self._kept_budget, content)
                if self._recorder is not None:
                    key = -priority if engine.larger_first else priority
                    decided = self._decided(asked, scope["path"], key, arrival_s, began_s)
                    app = partial(self._recorder.follow, app, decided)
                # Not the prompts nor the body: what follows takes as long as the answer.
                del asked, content
                scope, receive = await _aside(
                    body.num_bytes, stamped, engine, scope, body, priority, receive
                )
                await app(scope, receive, send)
            finally:
                if self._slowdown is not None and place is not None:
                    self._slowdown.ended(place, self._clock())

    async def _asked(self, scope: Scope, reader: Reader, body: HeldBody, wish: Wish) -> _Asked:
        """The request, scored if it can be. Never raises."""
        asked = _Asked()
        try:
            await self._read(scope, reader, body, asked)
            if wish.priority is not None:
                asked.decision = "trusted"
            elif asked.decision == "scored" and self._asks_ranker():
                asked.expectations = await self._expectations(asked.texts)
                if self._judge is not None and not self._judge.is_useful:
                    asked.decision = "drifted"
        except TimeoutError:
            asked.decision = "over_budget"
        except QueueFull:
            asked.decision = "queue_full"
        except Exception as error:  # scoring is a favour: nothing here may cost a request
            if asked.decision == "scored":
                asked.decision = "scorer_failed" if self.ranker.is_loaded else "no_ranker"
            self._warn(error)
        try:
            self._guess(asked)
        except Exception as error:  # the same holds for what was learned
            self._warn(error)
        return asked

    def _asks_ranker(self) -> bool:
        """Whether an offline ranker is asked: one of the user's own always, the bundled one
        as long as nothing better is known."""
        if self.learner is None or self._has_own_ranker:
            return True
        return self._has_ranker and not self.learner.is_ready

    def _guess(self, asked: _Asked) -> None:
        """Have the ranker that learns say what it expects, and go by it if that is worth it."""
        is_ready = self.learner is not None and self.learner.is_ready
        asked.is_ordered = is_ready or self._has_ranker
        if asked.decision == "drifted" and not is_ready:
            asked.is_ordered = False
        if self.learner is None or asked.signals is None:
            return
        first = asked.expectations[0] if asked.expectations else None
        asked.guess = self.learner.expect(asked.signals, first.score if first else None)
        if asked.decision != "trusted" and is_ready:
            asked.decision = "scored"
        elif asked.decision in ("scored", "no_text") and not asked.is_ordered:
            asked.decision = "learning"

    def _priority(self, engine: Engine, asked: _Asked, wish: Wish, arrival_s: float) -> int:
        """The request's priority; counts why it is what it is."""
        self.metrics.count(asked.decision)
        if wish.priority is not None and asked.decision == "trusted":
            return min(max(wish.priority, -(2**63)), 2**63 - 1)
        scale, policy = self._scale(), self._policies[engine.larger_first]
        expected = self._expected_tokens(asked, scale.neutral_tokens)
        cost, work = demand_of(asked.request, expected, obey_limits=self.settings.obey_limits)
        if not asked.is_ordered:
            cost = scale.neutral_tokens  # the same for all: first come, first served
        self.metrics.cost_tokens.observe(cost)
        if self._slowdown is None:
            return policy.key(
                cost, arrival_s, long_tokens=scale.long_tokens, offset_s=wish.offset_s
            )
        asked.place = self._slowdown.place(cost, work, is_ordered=asked.is_ordered)
        since_s = self._slowdown.key_s(asked.place, cost, arrival_s - EPOCH_S)
        self.metrics.place(
            is_express=asked.place.is_express, bucket_ratio=self._slowdown.bucket_ratio
        )
        return policy.key_at(since_s + min(max(wish.offset_s, -MAX_OFFSET_S), MAX_OFFSET_S))

    def _scale(self) -> "Calibration | OnlineRanker":
        """Who says what is a middle and a long answer."""
        if self.learner is not None and self.learner.is_ready:
            return self.learner.ranker
        return self.ranker.calibration

    def _decided(
        self, asked: _Asked, path: str, key: int, arrival_s: float, began_s: float
    ) -> Decided:
        """What is known of the request by now, without its texts unless they are to be kept."""
        first = asked.expectations[0] if asked.expectations else None
        texts, writer = asked.texts, self._writer
        text = head_and_tail(texts[0], self.settings.max_prompt_chars) if texts and writer else None
        ranker, score, expected = (first.ranker, first.score, first.tokens) if first else NOBODY
        guess = asked.guess
        if guess is not None and self.learner is not None and self.learner.is_ready:
            ranker, score, expected = ONLINE, guess.log_tokens, guess.tokens
        outcome = Outcome(
            arrival_s=arrival_s,
            path=path[-MAX_NAME_CHARS:],
            decision=asked.decision,
            model=asked.model,
            ranker=ranker,
            score=score,
            expected_tokens=expected,
            max_tokens=asked.request.max_tokens,
            num_answers=asked.request.num_answers,
            num_prompts=len(asked.request.prompts),
            key=key,
            prompt_key=writer.key_of(text) if writer and text else None,
            prompt=text if self.settings.outcome_prompts else None,
        )
        return Decided(
            outcome=outcome,
            began_s=began_s,
            request_id=asked.request_id,
            when_begun=self._when_begun(asked.place),
            when_done=partial(self._ended, asked.place, guess),
        )

    def _when_begun(self, place: Place | None) -> Callable[[], None] | None:
        if self._slowdown is None or place is None:
            return None
        return partial(self._slowdown.began, place)

    def _ended(self, place: Place | None, guess: Guess | None, outcome: Outcome) -> None:
        """An answer is known: the bucket hears what it truly took, the learner how long it was."""
        tokens = outcome.answer_tokens
        if self._slowdown is not None and place is not None and tokens is not None:
            prompt_work = PROMPT_TOKEN_WORK * (outcome.prompt_tokens or 0)
            self._slowdown.correct(place, tokens + prompt_work)
        if self.learner is not None and guess is not None:
            self.learner.learn(guess, outcome)

    async def _read(self, scope: Scope, reader: Reader, body: HeldBody, asked: _Asked) -> None:
        asked.decision = body.outcome or "undecodable"
        asked.request = unread_request(body.num_bytes)
        if body.outcome is not None:
            return
        fields = await _aside(body.num_bytes, read_fields, body.content())
        if fields is None:
            return
        asked.decision = "error"
        asked.request = reader(fields)
        asked.model, asked.request_id = _name(fields, "model"), _name(fields, "request_id")
        if self.learner is not None:
            key = next(iter(keys_in(scope["headers"])), b"").decode("latin-1")
            asked.signals = signals_of(scope["path"], fields, asked.request, key)
        asked.decision = "scored" if asked.texts else "no_text"

    async def _expectations(self, texts: list[str]) -> list[Expectation]:
        """
        What is expected of the first `max_prompts` texts, within the bounds on time and work.

        A ranker is shown whole texts, as in training: it reads a bounded part of one by itself.
        """
        return await self._scored(self._batcher.submit(texts[: self.settings.max_prompts]))

    def _expected_tokens(self, asked: _Asked, neutral: float) -> list[float]:
        """
        Expected answer tokens of each prompt.

        Texts beyond those that were scored get the mean of those; the others a middle answer. Who
        asks, and how, is known without a text, so the ranker that learns says the same of each.
        """
        if asked.guess is not None and self.learner is not None and self.learner.is_ready:
            return [asked.guess.tokens] * len(asked.request.prompts)
        tokens = [it.tokens for it in asked.expectations or ()]
        rest = sum(tokens) / len(tokens) if tokens else neutral
        scored = iter(tokens)
        return [next(scored, rest) if it.text else neutral for it in asked.request.prompts]

    async def _scored(self, scores: asyncio.Future[list[Expectation]]) -> list[Expectation]:
        """
        The scores, waited for while the scorer gets on: not beyond a budget without a batch done.

        A burst that takes the scorer longer than the budget is when the order matters most, and
        the engine's queue is long then; so a scorer that works is waited for, up to max_wait_ms.
        """
        budget_s = self.settings.budget_ms / 1000
        left_s = max(budget_s, self.settings.max_wait_ms / 1000)
        num_batches = -1
        try:
            while left_s > 0 and self.ranker.num_batches != num_batches:
                num_batches = self.ranker.num_batches
                await asyncio.wait((scores,), timeout=min(budget_s, left_s))
                if scores.done():
                    return scores.result()
                left_s -= budget_s
            raise TimeoutError
        finally:
            scores.cancel()  # drops what is still queued; nothing if they are there

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

    def _first_load(self) -> None:
        try:
            self.ranker.refresh()
            self._show_ranker()
        except Exception as error:  # serving goes on; keep_fresh picks the ranker up when it comes
            log.error("no request is scored until the ranker loads: %s", error)
            self.metrics.reloads.labels("failed").inc()

    def _follow_requests(self, metrics: OutcomeMetrics) -> None:
        observers: list[Callable[[Outcome], None]] = [self.order.observe]
        if self.settings.outcomes:
            self._writer = OutcomeWriter(
                Path(self.settings.outcomes), self.settings.outcome_limits(), metrics
            )
            observers.append(self._writer.put)
        if self.settings.drift and self._has_ranker:
            shown = DriftMetrics(self.metrics.registry)
            self._judge = RankerJudge(self.ranker, self.settings.drift_settings(), shown)
            observers.append(self._judge.observe)
        self._recorder = Recorder(observers, metrics, clock=self._clock)

    def _start(self, scope: Scope) -> None:
        self._batcher.start()
        upkeep = []
        if self._has_ranker:
            upkeep.append(keep_fresh(self.ranker, self.settings.reload_s, self._on_load))
        if self.learner is not None:
            upkeep.append(self.learner.keep_learning())
        if self._writer is not None:
            self._writer.start()
        if self._judge is not None:
            upkeep.append(self._judge.keep_judging())
        policy = scheduling_policy(scope.get("app"))
        if policy is None:  # it is seen from who begins when
            upkeep.append(self.order.keep_judging())
        self._upkeep = [asyncio.create_task(work) for work in upkeep]
        if policy is None:
            return
        self.metrics.priority_scheduling.set(policy == "priority")
        if policy == "priority":
            log.info("vLLM schedules by priority; it is set by %s", self.known.engine.name)
        else:
            log.error(
                "vLLM runs with --scheduling-policy %s and IGNORES every priority: requests are"
                " scored for nothing. Restart it with --scheduling-policy priority.",
                policy,
            )

    def _on_load(self, result: str) -> None:
        self.metrics.reloads.labels(result).inc()
        if result == "loaded":
            self._show_ranker()
            if self._judge is not None:
                self._judge.start_afresh()

    def _show_ranker(self) -> None:
        if self.ranker.is_loaded:
            self.metrics.serve(self.ranker.model_name, self.ranker.fingerprint)

    async def _stop(self) -> None:
        for task in self._upkeep:
            task.cancel()
        self._upkeep = []
        with suppress(TimeoutError):
            await asyncio.wait_for(self._batcher.close(), self.max_closing_s)
        if self._recorder is not None:
            self._recorder.close()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close, self.max_closing_s)
        if self.learner is not None:
            await asyncio.to_thread(self.learner.close)

    def _warn(self, error: Exception) -> None:
        now_s = time.monotonic()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + SECONDS_BETWEEN_WARNINGS
            told = one_line(error)
            log.warning("requests go on unscored: %s: %s", type(error).__name__, told)


async def _aside(num_bytes: int, do: Callable[..., _T], *arguments: Any) -> _T:
    """`do` beside the event loop if that takes milliseconds, so that nobody else waits for it."""
    if num_bytes <= SMALL_BYTES:
        return do(*arguments)
    return await asyncio.to_thread(do, *arguments)


def _name(body: dict[str, Any], field: str) -> str | None:
    value = body.get(field)
    return value[:MAX_NAME_CHARS] if isinstance(value, str) else None
