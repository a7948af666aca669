"""
Calls that arrive together are scored together: an asyncio front, one worker thread behind it.

    submit() ──► waiting calls ──► one batch ──► worker thread: scorer.score ──► futures
                 (event loop)      (≤ 32 prompts)  (releases the GIL)

A lone call goes at once. While the thread scores, later calls wait and leave together in the next
batch, so batches grow with the load and there is no timer to tune. Each batch takes a few prompts
from every waiting call in turn, so that one prompt behind a call of 10,000 waits for one or two
batches, not for all of them. Everything but `scorer.score` runs on the event loop: no locks.

The hand-off is one `SimpleQueue` there and `call_soon_threadsafe` back: 22 us for a round trip
under uvloop, where `loop.run_in_executor` took 48 us (it builds and chains two futures a call).
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

from pars.errors import ParsError, RankerError
from pars.ranking.ranker import Scorer
from pars.ranking.scorers import scored

T = TypeVar("T")  # what scoring gives for a prompt

NUM_REMEMBERED = 4  # batches, about, in the time that a prompt is taken to need


class QueueFull(ParsError):
    """More prompts wait than the bound allows: come back later."""


class BatcherClosed(ParsError):
    """The batcher closed before the call was scored."""


@dataclass(slots=True, eq=False)
class _Call(Generic[T]):
    """One caller's prompts, of which the first `num_taken` have left the queue."""

    prompts: Sequence[str]
    future: asyncio.Future[list[T]]
    num_taken: int = 0
    scores: list[T] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Batch(Generic[T]):
    """Prompts scored in one go, and how many of them, in order, belong to which call."""

    prompts: list[str] = field(default_factory=list)
    shares: list[tuple[_Call[T], int]] = field(default_factory=list)


def finite_scores(scorer: Scorer) -> Callable[[Sequence[str]], list[float]]:
    """
    A scorer for a `Batcher`: one finite score a prompt.

    Raises:
        RankerError: raised by what is returned, when the scorer gave anything else.
    """
    name = str(getattr(scorer, "folder", None) or type(scorer).__name__)

    def score(prompts: Sequence[str]) -> list[float]:
        scores: list[float] = scored(scorer, prompts, name, only_scores=True).tolist()
        return scores

    return score


class Batcher(Generic[T]):
    """
    Gives a blocking scorer to any number of asyncio callers, on one event loop at a time.

    May be built outside a loop. It starts with the first call, or with `start()`; `close()` ends
    it, and a closed batcher takes calls again after another `start()`.

    Args:
        score: Gives something for each prompt, in order (`finite_scores`); called from one thread
            only.
        max_batch_prompts: Prompts a batch holds at most. It bounds how long a new call can wait
            for the batch before it; the cost of a hand-off is spread thin well below 32.
        max_batch_s: If set, a batch holds no more prompts than should be scored in that time, going
            by the batches before it (one prompt at least): callers with a time limit of their own
            then see a slow scorer get on, where one long batch would look stuck.
        max_queued_prompts: Prompts that may wait at once; more are refused with `QueueFull`.
        on_batch: Called on the event loop after each batch with its number of prompts and the
            seconds that scoring took.
    """

    def __init__(
        self,
        score: Callable[[Sequence[str]], list[T]],
        *,
        max_batch_prompts: int = 32,
        max_batch_s: float = math.inf,
        max_queued_prompts: int = 32_768,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        if max_batch_prompts < 1 or max_queued_prompts < 1:
            raise ValueError("max_batch_prompts and max_queued_prompts must be at least 1")
        self.num_queued = 0
        self.max_queued_prompts = max_queued_prompts
        self._score = score
        self._max_batch_prompts = max_batch_prompts
        self._max_batch_s = max_batch_s
        self._prompt_s = 0.0  # the time a prompt took lately
        self._max_prompts_a_turn = max(1, max_batch_prompts // 4)
        self._on_batch = on_batch
        self._waiting: deque[_Call[T]] = deque()
        self._busy = False  # a batch is being scored, or about to be gathered
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: SimpleQueue[_Batch[T] | None] = SimpleQueue()
        self._stopped: asyncio.Future[None] | None = None

    def submit(self, prompts: Sequence[str]) -> asyncio.Future[list[T]]:
        """
        Queue a call; the future gives one score a prompt, in order.

        Cancelling the future drops those of its prompts that are not being scored yet.

        Raises:
            QueueFull: the prompts would not fit beside those that wait.
            BatcherClosed: `close()` was called; also set on the futures that wait then.
            RankerError: set on the future when the scorer fails; its cause is the failure.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._closed:
                raise BatcherClosed("the batcher is closed")
            self.start()
        call = _Call(list(prompts), loop.create_future())
        if not call.prompts:
            call.future.set_result([])
            return call.future
        if self.num_queued + len(call.prompts) > self.max_queued_prompts:
            raise QueueFull(
                f"{self.num_queued} prompts wait and {len(call.prompts)} more would pass"
                f" the bound of {self.max_queued_prompts}: try again later"
            )
        self.num_queued += len(call.prompts)
        call.future.add_done_callback(lambda _: self._forget(call))
        self._waiting.append(call)
        if not self._busy:
            # Not at once but in this turn of the loop's end, so that its other calls come along.
            self._busy = True
            loop.call_soon(self._send_next_batch)
        return call.future

    async def score(self, prompts: Sequence[str]) -> list[T]:
        """Queue a call and wait for its scores; raises as `submit` does. Cancelling drops it."""
        return await self.submit(prompts)

    def start(self) -> None:
        """Start the worker thread for the running event loop. Starting twice changes nothing."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("a Batcher serves one event loop at a time: close it there first")
        self._inbox.put(None)  # for the thread of a loop that ended without close()
        self._loop, self._inbox, self._stopped = loop, SimpleQueue(), loop.create_future()
        self._waiting.clear()
        self.num_queued, self._busy, self._closed = 0, False, False
        threading.Thread(
            target=self._work,
            args=(loop, self._inbox, self._stopped),
            name="pars-scorer",
            daemon=True,
        ).start()

    async def close(self) -> None:
        """Fail the calls that wait, finish the batch being scored. Closing twice is harmless."""
        self._closed = True
        if self._loop is not asyncio.get_running_loop() or self._stopped is None:
            return
        self._loop = None
        for call in self._waiting:
            if not call.future.done():
                call.future.set_exception(BatcherClosed("the score service is closing"))
        self._waiting.clear()
        self._inbox.put(None)
        await self._stopped

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # On the event loop

    def _forget(self, call: _Call[T]) -> None:
        self.num_queued -= len(call.prompts) - call.num_taken
        call.num_taken = len(call.prompts)

    def _send_next_batch(self) -> None:
        batch = self._take_batch()
        self._busy = bool(batch.prompts)
        if batch.prompts:
            self.num_queued -= len(batch.prompts)
            self._inbox.put(batch)

    def _take_batch(self) -> _Batch[T]:
        """A few prompts of each waiting call in turn, until the batch is full."""
        batch = _Batch[T]()
        most = self._max_batch_prompts
        if self._prompt_s > 0:
            most = max(1, int(min(most, self._max_batch_s / self._prompt_s)))
        while self._waiting and (room := most - len(batch.prompts)):
            call = self._waiting.popleft()
            if call.future.done():
                continue
            end = call.num_taken + min(room, self._max_prompts_a_turn)
            share = call.prompts[call.num_taken : end]
            batch.prompts += share
            batch.shares.append((call, len(share)))
            call.num_taken += len(share)
            if call.num_taken < len(call.prompts):
                self._waiting.append(call)
        return batch

    def _deliver(
        self, batch: _Batch[T], outcome: list[T] | BaseException, scoring_s: float
    ) -> None:
        prompt_s = scoring_s / len(batch.prompts)
        self._prompt_s += (prompt_s - self._prompt_s) / (NUM_REMEMBERED if self._prompt_s else 1)
        self._send_next_batch()  # first, so that the thread works while the answers go out
        if isinstance(outcome, BaseException):
            for call, _ in batch.shares:
                if not call.future.done():
                    call.future.set_exception(_failure(outcome))
            return
        position = 0
        for call, num_prompts in batch.shares:
            call.scores += outcome[position : position + num_prompts]
            position += num_prompts
            if len(call.scores) == len(call.prompts) and not call.future.done():
                call.future.set_result(call.scores)
        if self._on_batch:
            self._on_batch(len(batch.prompts), scoring_s)

    # On the worker thread

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        inbox: SimpleQueue[_Batch[T] | None],
        stopped: asyncio.Future[None],
    ) -> None:
        with suppress(RuntimeError):  # the loop ended without close(): nobody waits any more
            while batch := inbox.get():
                began_s = time.perf_counter()
                outcome = self._scored(batch.prompts)
                scoring_s = time.perf_counter() - began_s
                loop.call_soon_threadsafe(self._deliver, batch, outcome, scoring_s)
            loop.call_soon_threadsafe(stopped.set_result, None)

    def _scored(self, prompts: list[str]) -> list[T] | BaseException:
        try:
            return self._score(prompts)
        except BaseException as error:  # even SystemExit: the callers must hear of it
            return error


def _failure(error: BaseException) -> RankerError:
    """An exception of its own for each caller; a foreign one is named but not quoted."""
    if isinstance(error, ParsError):
        failure = RankerError(str(error))
    else:
        failure = RankerError(f"scoring failed with {type(error).__name__}")
    failure.__cause__ = error
    return failure
