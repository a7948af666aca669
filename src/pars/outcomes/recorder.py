"""
Makes an `Outcome` of each generation request: what was decided about it, and what came of it.

    PriorityMiddleware ─► Watch (sees what passes) ─► app
                            │
              Desk (vLLM's exact lengths, by request id)
                            └─► Outcome ─► observers: the writer, the judge of drift

Inside vLLM the engine's own count is taken, then the usage in the answer, then the number of its
events. Nothing is changed in an answer and nothing waits: a message is looked at once it is sent.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pars.outcomes.answers import CUT_SHORT_FIRST, Answer, AnswerFacts
from pars.outcomes.decision import Decision
from pars.outcomes.engine_lengths import DESK, Desk, Finished
from pars.outcomes.lateness import Lateness
from pars.outcomes.metrics import OutcomeMetrics
from pars.outcomes.records import Outcome
from pars.request.body import ASGIApp, ByteBudget, Message, Receive, Scope, Send

MAX_HELD_BYTES = 16 << 20  # of all answers that are being read
GRACE_S = 2.0  # vLLM tells of a request just before or just after its last byte
MAX_PROMPTS = 16  # of a request whose answers are waited for one by one
CLOCK_JUMP_S = 1.0  # more than a clock is moved gently in any request's time
REQUEST_ID = b"x-request-id"

# The ids that vLLM gives to the prompts of a request, made of X-Request-Id; paths by their ends.
ENGINE_IDS = {
    "/v1/completions": "cmpl-{id}-{index}",
    "/v1/chat/completions": "chatcmpl-{id}",
    "/v1/messages": "chatcmpl-{id}",
}


class Recorder:
    """
    Follows requests to their ends. On one event loop.

    Args:
        observers: Each is called with each outcome, on the event loop; an exception in one is
            counted and costs nothing else.
        when_begun: Called once the engine begins to answer, as the answer's first byte tells.
        when_ended: Called with each outcome, after the observers.
        clock: Unix time, as the arrivals were taken by.
        desk: Where an engine in this process tells of finished requests.
        grace_s: How long that is waited for after an answer's last byte.
        limits_are_ends: Limits stand in for the model's own end, as in benchmarks: an answer that
            reaches its limit was not cut short.

    Attributes:
        lateness: Of this process; looked at while somebody keeps looking.
    """

    def __init__(
        self,
        observers: Sequence[Callable[[Outcome], None]],
        metrics: OutcomeMetrics,
        *,
        when_begun: Callable[[Decision], None] | None = None,
        when_ended: Callable[[Decision, Outcome], None] | None = None,
        clock: Callable[[], float] = time.time,
        desk: Desk = DESK,
        grace_s: float = GRACE_S,
        limits_are_ends: bool = False,
    ) -> None:
        self._observers = observers
        self._when_begun = when_begun
        self._when_ended = when_ended
        self._metrics = metrics
        self._clock = clock
        self._desk = desk
        self._grace_s = grace_s
        self._limits_are_ends = limits_are_ends
        self.lateness = Lateness()
        self._budget = ByteBudget(MAX_HELD_BYTES)
        self._late: dict[_Watch, asyncio.TimerHandle] = {}

    async def follow(
        self, app: ASGIApp, decision: Decision, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Hand the request to `app` and watch what passes; raises what `app` raises."""
        watch = _Watch(
            decision, Answer(self._budget), receive, send, self._when_begun, self.lateness
        )
        if self._desk.is_open:
            scope = self._await_engine(watch, scope, decision.request_id)
        try:
            await app(scope, watch.receive, watch.send)
        finally:
            self._passed(watch)

    def close(self) -> None:
        """Wait no longer for what the engine may yet tell."""
        for watch in list(self._late):
            self._finish(watch)

    def _await_engine(self, watch: "_Watch", scope: Scope, request_id: str | None) -> Scope:
        """Wait for what the engine tells of the request; give it an id if it has none."""
        pattern = next((ENGINE_IDS[end] for end in ENGINE_IDS if scope["path"].endswith(end)), None)
        outcome = watch.decision.outcome
        if pattern is None or outcome.num_prompts > MAX_PROMPTS:
            return scope
        sent = next((value for name, value in scope["headers"] if name == REQUEST_ID), None)
        if sent is not None:
            request_id = sent.decode("latin-1")
        elif request_id is None:
            request_id = secrets.token_hex(8)  # as vLLM would
            named = (REQUEST_ID, request_id.encode())
            scope = {**scope, "headers": [*scope["headers"], named]}
        watch.num_answers = outcome.num_prompts * outcome.num_answers
        watch.hear = lambda finished: self._hear(watch, finished)
        watch.engine_ids = list(
            dict.fromkeys(
                pattern.format(id=request_id, index=index) for index in range(outcome.num_prompts)
            )
        )
        for engine_id in watch.engine_ids:
            self._desk.wait(engine_id, watch.hear)
        return scope

    def _hear(self, watch: "_Watch", finished: Finished) -> None:
        watch.finished.append(finished)
        if watch in self._late and len(watch.finished) == watch.num_answers:
            self._finish(watch)

    def _passed(self, watch: "_Watch") -> None:
        """The app is done with the request."""
        watch.end_s = time.perf_counter()
        is_late = watch.answer.is_whole and watch.answer.status == 200
        if is_late and len(watch.finished) < watch.num_answers:
            loop = asyncio.get_running_loop()
            self._late[watch] = loop.call_later(self._grace_s, self._finish, watch)
        else:
            self._finish(watch)

    def _finish(self, watch: "_Watch") -> None:
        timer = self._late.pop(watch, None)
        if timer is not None:
            timer.cancel()
        for engine_id in watch.engine_ids:
            self._desk.leave(engine_id, watch.hear)
        try:
            outcome, known = watch.outcome()
            if self._limits_are_ends:
                outcome = replace(outcome, limits_are_ends=True)
            self._metrics.answered(known)
            if abs(self._clock() - outcome.arrival_s - watch.since_s()) > CLOCK_JUMP_S:
                self._metrics.clock_jumps.inc()
        except Exception:  # a fault of ours, and none of the request's
            self._metrics.dropped("error")
            return
        for observe in self._observers:
            self._tell(observe, outcome)
        if self._when_ended is not None:
            self._tell(self._when_ended, watch.decision, outcome)

    def _tell(self, observe: Callable[..., None], *what: object) -> None:
        try:
            observe(*what)
        except Exception:
            self._metrics.dropped("error")


class _Watch:
    """One request and its answer, as they pass."""

    def __init__(
        self,
        decision: Decision,
        answer: Answer,
        receive: Receive,
        send: Send,
        when_begun: Callable[[Decision], None] | None,
        lateness: Lateness,
    ) -> None:
        self.decision = decision
        self.answer = answer
        self.num_answers = 0  # that the engine will tell of
        self.engine_ids: list[str] = []
        self.finished: list[Finished] = []
        self.end_s = 0.0
        self.hear: Callable[[Finished], None] = self.finished.append
        self._receive = receive
        self._send = send
        self._when_begun = when_begun
        self._lateness = lateness
        self._handed_on_s: float | None = None
        self._saw_late = False
        self._first_byte_s: float | None = None
        self._client_left = False
        self._is_lost = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.answer.is_whole:
            self._client_left = True
        elif message["type"] == "http.request" and not message.get("more_body", False):
            self._handed_on_s = time.perf_counter()
            self._saw_late = self._lateness.is_late
        return message

    async def send(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # as servers tell that the client is gone
            self._client_left = True
            raise
        try:
            self._look_at(message)
        except Exception:  # recording is a favour: nothing here may cost a request
            self._is_lost = True

    def _look_at(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answer.head(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            if self._first_byte_s is None and message.get("body"):
                self._first_byte_s = time.perf_counter()
                self._saw_late = self._saw_late or self._lateness.is_late
                is_answer = self.answer.status is None or self.answer.status < 400
                if self._when_begun is not None and is_answer:
                    self._when_begun(self.decision)
            is_last = not message.get("more_body", False)
            self.answer.piece(bytes(message.get("body", b"")), is_last=is_last)

    def since_s(self) -> float:
        """Seconds since the request's body was in, by a clock that is never set."""
        return time.perf_counter() - self.decision.began_s

    def outcome(self) -> tuple[Outcome, str]:
        """What came of the request, and by what its length is known."""
        if self._is_lost:
            raise RuntimeError("a message could not be read")
        facts = self.answer.facts(client_left=self._client_left)
        wait_s = engine_wait_s = None
        if self._first_byte_s is not None:
            wait_s = self._first_byte_s - self.decision.began_s
            if self._handed_on_s is not None and not self._saw_late:
                engine_wait_s = self._first_byte_s - self._handed_on_s
        if self.finished:
            wait_s = engine_wait_s = max(finished.queued_s for finished in self.finished)
            if len(self.finished) == self.num_answers:
                facts = _told_by_engine(self.finished, facts)
        outcome = replace(
            self.decision.outcome,
            prompt_tokens=facts.prompt_tokens,
            answer_tokens=facts.answer_tokens,
            is_exact=facts.is_exact,
            finish_reason=facts.finish_reason,
            status=self.answer.status,
            wait_s=wait_s,
            engine_wait_s=engine_wait_s,
            total_s=self.end_s - self.decision.began_s,
        )
        return outcome, facts.known


def _told_by_engine(finished: list[Finished], facts: AnswerFacts) -> AnswerFacts:
    """What the engine counted; of the reasons the answer's own, which know of tool calls."""
    prompts = {it.request_id: it.num_prompt_tokens for it in finished}
    told = [it.finish_reason for it in finished]
    cut_short = [reason for reason in CUT_SHORT_FIRST if reason in told]
    own = facts.finish_reason if facts.known in ("usage", "events") else None
    return AnswerFacts(
        known="engine",
        prompt_tokens=sum(prompts.values()),
        answer_tokens=sum(it.num_answer_tokens for it in finished),
        is_exact=True,
        finish_reason=(cut_short or [own or told[0]])[0],
    )
