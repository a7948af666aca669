"""
A workload through a simulated engine, in virtual time.

    run = simulate(
        zip(workload.requests, keys), FastEngine(preset.limits), preset.step_time,
        policy="oracle@30", on_finished=times.append,
    )

Requests come from an iterator and leave through `on_finished`, so memory holds what is in flight.
A request that arrives during a step is seen by the next one, as in vLLM. Between steps passes no
time: what the server does beside the model must be in the step's own time.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from operator import add
from typing import NamedTuple

from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.step_time import StepTime
from pars.prove.engine.stepping import Step, SteppedEngine
from pars.prove.live.pauses import Pauses
from pars.prove.report.times import QueueSample, RequestTimes, Run
from pars.prove.workload.workload import WorkloadRequest

MOST_SAMPLES = 2000  # of the queue in one run; then every second is dropped
FIRST_SAMPLING_S = 0.01


class Load(NamedTuple):
    """What the engine computed up to some moment, in the units of `StepTime`'s coefficients."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_seqs: int = 0
    num_kv_tokens: int = 0


class Loads(NamedTuple):
    """The load up to when the engine first saw a request, to its first token and to its last."""

    at_arrival: Load
    at_first_token: Load
    at_end: Load
    seen_s: float


def simulate(
    requests: Iterable[tuple[WorkloadRequest, int]],
    engine: SteppedEngine,
    step_time: StepTime,
    *,
    policy: str,
    rate: float | None = None,
    on_finished: Callable[[RequestTimes], None],
    on_loads: Callable[[str, Loads], None] | None = None,
    on_first_token: Callable[[str, float], None] | None = None,
) -> Run:
    """
    Run every request to its end.

    Args:
        requests: With their priorities, in order of arrival.
        policy, rate: What the results are named by.
        on_finished: Gets each request's times as it ends.
        on_loads: Gets, by request_id, what was computed meanwhile.
        on_first_token: Gets the request_id and the time of each first token.

    Raises:
        ParsError: a request does not fit into the engine.
    """
    clock = _Clock(policy, rate, on_finished, on_loads, on_first_token)
    skipping = engine if isinstance(engine, FastEngine) else None
    upcoming = chain(requests, [None])
    pending = next(upcoming)
    while pending is not None or engine.has_work:
        if pending is not None and not engine.has_work:
            clock.idle_until(pending[0].arrival_s)
        while pending is not None and pending[0].arrival_s <= clock.now_s:
            request, priority = pending
            engine.add(
                request.request_id,
                request.prompt_tokens,
                request.output_tokens,
                priority,
                request.arrival_s,
            )
            clock.arrive(request)
            pending = next(upcoming)
        quiet = skipping.num_quiet_steps() if skipping is not None else 0
        if skipping is not None and quiet:
            num_seqs, num_kv_tokens = skipping.decode_load
            left_s = math.inf if pending is None else pending[0].arrival_s - clock.now_s
            num_steps = min(quiet, step_time.decode_steps_until(left_s, num_seqs, num_kv_tokens))
            skipping.skip(int(num_steps))
            clock.pass_quiet(step_time, int(num_steps), num_seqs, num_kv_tokens)
        else:
            step = engine.step()
            clock.pass_step(step, step_time.of(step))
    return clock.run()


@dataclass(slots=True)
class _Flight:
    """A request that has not ended."""

    request: WorkloadRequest
    seen_s: float
    seen_at: Load
    first_token_at: Load
    scheduled_s: float | None = None
    first_token_s: float | None = None
    since_step: int = 0  # it has had a token in each step from here on
    lost_s: float = 0.0  # when it was preempted: the time of its last token
    longest_itl_s: float = 0.0  # before `since_step`
    num_preemptions: int = 0


class _Clock:
    """The time, and what there is to say about each request and the run."""

    def __init__(
        self,
        policy: str,
        rate: float | None,
        on_finished: Callable[[RequestTimes], None],
        on_loads: Callable[[str, Loads], None] | None,
        on_first_token: Callable[[str, float], None] | None,
    ) -> None:
        self.now_s = 0.0
        self._policy, self._rate = policy, rate
        self._on_finished, self._on_loads = on_finished, on_loads
        self._on_first_token = on_first_token
        self._load = Load()
        self._flights: dict[str, _Flight] = {}
        self._num_steps = 0
        self._num_running = self._num_preemptions = 0
        self._samples: list[QueueSample] = []
        self._sampling_s = FIRST_SAMPLING_S
        self._pauses = Pauses()

    def arrive(self, request: WorkloadRequest) -> None:
        self._flights[request.request_id] = _Flight(request, self.now_s, self._load, self._load)

    def idle_until(self, at_s: float) -> None:
        if at_s > self.now_s:
            self._pass(at_s - self.now_s)
            self.now_s = at_s  # the sum may be less by a rounding, and then nothing would be due

    def pass_quiet(
        self, step_time: StepTime, num_steps: int, num_seqs: int, num_kv_tokens: int
    ) -> None:
        """Steps in which the same requests decode; each takes a little longer than the last."""
        first_s = step_time.decode_seconds(1, num_seqs, num_kv_tokens)
        growth_s = step_time.kv_token_s * num_seqs
        self._num_steps += num_steps
        self._pauses.note_many(self._num_steps, first_s, growth_s, num_steps, num_seqs)
        grown = num_seqs * num_steps * (num_steps + 1) // 2
        self._add_load(num_steps, 0, num_steps * num_seqs, num_steps * num_kv_tokens + grown)
        self._pass(step_time.decode_seconds(num_steps, num_seqs, num_kv_tokens))

    def pass_step(self, step: Step, seconds: float) -> None:
        """One step, with what happened in it."""
        for request_id in step.preempted:
            self._lose(self._flights[request_id])
        for request_id in step.admitted:
            flight = self._flights[request_id]
            if flight.scheduled_s is None:
                flight.scheduled_s = self.now_s
        self._num_steps += 1
        self._pauses.note(self._num_steps, seconds, step.num_decode_seqs)
        if step.num_prefill_tokens or step.num_decode_seqs:
            self._add_load(1, step.num_prefill_tokens, step.num_decode_seqs, step.num_kv_tokens)
        self._num_running = step.num_running
        self._num_preemptions += len(step.preempted)
        self._pass(seconds)
        for request_id in step.first_token:
            flight = self._flights[request_id]
            flight.first_token_s, flight.since_step = self.now_s, self._num_steps + 1
            flight.first_token_at = self._load
            if self._on_first_token is not None:
                self._on_first_token(request_id, self.now_s)
        for request_id in step.resumed:
            flight = self._flights[request_id]
            pause_s, flight.since_step = self.now_s - flight.lost_s, self._num_steps + 1
            flight.longest_itl_s = max(flight.longest_itl_s, pause_s)
            self._pauses.count(pause_s)
        for request_id in step.finished:
            self._finish(self._flights.pop(request_id))

    def run(self) -> Run:
        """The facts of the whole run."""
        return Run(
            policy=self._policy,
            rate=self._rate,
            duration_s=self.now_s,
            queue=tuple(self._samples),
            itl_counts=dict(self._pauses.counts),
            num_preemptions=self._num_preemptions,
            facts={"num_steps": self._num_steps},
        )

    def _pass(self, seconds: float) -> None:
        """Go on, and look at the queue at regular times: requests that arrived meanwhile not."""
        end_s = self.now_s + seconds
        num_waiting = max(0, len(self._flights) - self._num_running)
        while (at_s := len(self._samples) * self._sampling_s) <= end_s:
            sample = QueueSample(at_s, self._num_running, num_waiting, self._num_preemptions)
            self._samples.append(sample)
            if len(self._samples) >= MOST_SAMPLES:
                self._samples = self._samples[::2]
                self._sampling_s *= 2
        self.now_s = end_s

    def _add_load(self, *amounts: int) -> None:
        self._load = Load(*map(add, self._load, amounts))

    def _lose(self, flight: _Flight) -> None:
        flight.num_preemptions += 1
        if flight.first_token_s is not None:
            flight.longest_itl_s = max(
                flight.longest_itl_s, self._pauses.longest_since(flight.since_step)
            )
            flight.lost_s = self.now_s
            flight.since_step = self._num_steps + 2  # none of its own until it resumes

    def _finish(self, flight: _Flight) -> None:
        request = flight.request
        if self._on_loads is not None:
            loads = Loads(flight.seen_at, flight.first_token_at, self._load, flight.seen_s)
            self._on_loads(request.request_id, loads)
        longest_s = max(flight.longest_itl_s, self._pauses.longest_since(flight.since_step))
        self._on_finished(
            RequestTimes(
                request_id=request.request_id,
                policy=self._policy,
                rate=self._rate,
                arrival_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                asked_tokens=request.output_tokens,
                scheduled_s=flight.scheduled_s,
                first_token_s=flight.first_token_s,
                finished_s=self.now_s,
                longest_itl_s=longest_s if request.output_tokens > 1 else None,
                num_preemptions=flight.num_preemptions,
            )
        )
