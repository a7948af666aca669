"""
Labels from where the model runs: asks an endpoint for answers and keeps how long each became.

    config = CollectConfig(endpoints=("http://localhost:8000",), model="m", prompts=..., output=...)
    report = collect(config, key=os.environ.get("OPENAI_API_KEY"))
    print(report.render()); sys.exit(report.exit_code)

`concurrency` workers an endpoint take (prompt, sample) from one list. A worker asks for its next
answer only when the line of the one before is written, so a kill -9 loses at most `concurrency`
answers an endpoint.
"""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pars.errors import ParsError
from pars.learn.collect.client import Asker, base_url_of
from pars.learn.collect.config import CollectConfig
from pars.learn.collect.endpoints import Asked, Endpoint, Tasks
from pars.learn.collect.file import AnswerFile, record_of
from pars.learn.collect.prompts import read_prompts
from pars.learn.collect.reply import Failure, Reply, delay_s
from pars.learn.collect.report import CollectReport

LONGEST_WAIT_S = 600.0  # a server that asks for more is asked again by a later run
LEAST_FAILURES = 20  # in a row, or twice the concurrency: then an endpoint is asked no more
BUSY = ("HTTP 429", "HTTP 503")
NOT_SENT = ("no connection", "no connection in time")  # which says nothing of the prompt
Pause = Callable[[float], Awaitable[object]]


def collect(
    config: CollectConfig, *, key: str | None = None, pause: Pause = asyncio.sleep
) -> CollectReport:
    """
    Ask for every answer that is not in the output yet. Ctrl-C lets the answers that are on their
    way come in; a second one does not.

    Args:
        pause: Waits so many seconds.

    Raises:
        ParsError: bad prompts, an output of other settings, or one that cannot be written.
    """
    urls = tuple(map(base_url_of, config.endpoints))
    if twice := next((it for it in urls if urls.count(it) > 1), None):
        raise ParsError(f"--endpoint: {twice} is given twice")
    prompts = read_prompts(config.prompts, config.api, config.prompt_field)
    with AnswerFile.open(config.output, config.settings(urls)) as answers:
        there = answers.asked_already(prompts)
        # Sample by sample, so that a run that is stopped early has one answer to each prompt.
        tasks = [
            Asked(prompt, sample)
            for sample in range(config.samples)
            for prompt in prompts
            if (prompt.index, sample) not in there
        ]
        report = CollectReport(config.output, num_wanted=len(prompts) * config.samples)
        report.num_bytes_cut = answers.num_bytes_cut
        for _, _, _, tokens in answers.records:
            report.num_before += 1
            report.num_before_without_length += tokens is None
        if tasks:
            asyncio.run(_Run(config, answers, report, pause).all(tasks, urls, key))
    return report


class _Run:
    """One run over what is missing."""

    def __init__(
        self, config: CollectConfig, answers: AnswerFile, report: CollectReport, pause: Pause
    ) -> None:
        self._config = config
        self._answers = answers
        self._report = report
        self._pause = pause
        self._stopping = asyncio.Event()
        self._num_asking = 0
        self._bar: Any = None
        self._endpoints: list[Endpoint] = []
        self._tasks = Tasks((), ())

    async def all(self, wanted: list[Asked], urls: Sequence[str], key: str | None) -> None:
        self._endpoints = [Endpoint(url, self._asker(url, key)) for url in urls]
        self._tasks = Tasks(wanted, self._endpoints)
        began_s = time.monotonic()
        workers = [
            asyncio.create_task(self._work(endpoint))
            for _ in range(min(self._config.concurrency, len(wanted)))
            for endpoint in self._endpoints
        ]
        try:
            with _bar(self._report) as self._bar, _interrupts(self._interrupted(workers)):
                await asyncio.gather(*workers)
        except asyncio.CancelledError:
            self._report.stopped = self._report.stopped or "interrupted"
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for endpoint in self._endpoints:
                await endpoint.ask.close()
            self._report.seconds = time.monotonic() - began_s

    def _asker(self, url: str, key: str | None) -> Asker:
        return Asker(
            url,
            self._config.api,
            key,
            timeout_s=self._config.timeout_s,
            num_connections=self._config.concurrency,
        )

    def _interrupted(self, workers: list[asyncio.Task[None]]) -> Callable[[], None]:
        def interrupted() -> None:
            if self._report.interrupted:
                for worker in workers:
                    worker.cancel()
                return
            self._report.interrupted = True
            self._stop("interrupted")
            if self._num_asking:
                told = f"{self._num_asking} answers are on their way; Ctrl-C again drops them"
                self._bar.write(f"Stopping: {told}", file=sys.stderr)

        return interrupted

    def _stop(self, why: str) -> None:
        self._report.stopped = self._report.stopped or why
        self._stopping.set()

    async def _work(self, at: Endpoint) -> None:
        while not at.left_out and (asked := await self._tasks.take(at)):
            await self._answer(asked, at)
            if self._stopping.is_set():
                return

    async def _answer(self, asked: Asked, at: Endpoint) -> None:
        """Ask until there is an answer, no hope of one, or another endpoint is to be asked."""
        body = self._config.body(asked.prompt, asked.sample)
        while True:
            await self._turn(at)
            if self._stopping.is_set():
                self._tasks.settle()
                return
            if at.left_out:
                self._tasks.give_back(asked)
                return
            self._num_asking += 1
            try:
                reply = await at.ask(body)
            except Failure as failure:
                again = await self._again(failure, asked, at)
                if again is None:
                    return
                asked = again
            else:
                self._keep(asked, reply, at)
                self._tasks.settle()
                return
            finally:
                self._num_asking -= 1

    async def _again(self, failure: Failure, asked: Asked, at: Endpoint) -> Asked | None:
        """What to ask the same endpoint for again; None: it is given back, or given up."""
        self._report.failures[failure.kind] += 1
        self._bar.set_postfix_str(self._report.speed(), refresh=False)
        asked_s = failure.retry_after_s or 0.0
        if failure.is_hopeless:
            self._leave_out(at, str(failure))
        elif asked_s > LONGEST_WAIT_S:
            self._leave_out(at, f"{failure.kind}: the server asks to wait {asked_s:,.0f} s")
        if at.left_out and self._others(at):
            self._tasks.give_back(asked)
            return None
        if failure.kind not in NOT_SENT or not self._others(at):
            asked = asked._replace(attempt=asked.attempt + 1)
        # Who is told to wait speaks for all that ask there: they share the limit.
        at.next_s = max(at.next_s, time.monotonic() + asked_s)
        if at.left_out or failure.is_final or asked.attempt > self._config.max_retries:
            self._give_up(asked, failure, at)
            self._tasks.settle()
            return None
        self._report.num_retries += 1
        if not self._others(at):
            await self._wait(delay_s(failure, asked.attempt - 1, random.random()))
            return asked
        self._tasks.give_back(asked._replace(failed_at=asked.failed_at | {at}))
        if failure.kind not in BUSY:
            self._note(at, failure.kind, "requests failed")
        if not at.left_out:
            attempt = at.num_failed // self._config.concurrency
            await self._wait(delay_s(failure, attempt, random.random()))
        return None

    def _others(self, at: Endpoint) -> bool:
        """Whether another endpoint may be asked."""
        return any(it is not at and not it.left_out for it in self._endpoints)

    def _leave_out(self, at: Endpoint, why: str) -> None:
        """Ask it no more; if it was the last, the run ends."""
        if at.left_out:
            return
        at.left_out = why
        if not self._others(at):
            self._stop(why)
            return
        self._report.left_out[at.url] = why
        self._bar.write(f"{at.url} is left out: {why}", file=sys.stderr)

    async def _turn(self, at: Endpoint) -> None:
        """Until its rate, and what it asked for, allow another request."""
        now_s = time.monotonic()
        at_s = max(now_s, at.next_s)
        if self._config.rate:
            at.next_s = at_s + 1 / self._config.rate
        if at_s > now_s:
            await self._wait(at_s - now_s)

    async def _wait(self, seconds: float) -> None:
        """That long, or until the run is stopping or nothing is left to do."""
        ends = (self._pause(seconds), self._stopping.wait(), self._tasks.done.wait())
        waits = [asyncio.ensure_future(one) for one in ends]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    def _keep(self, asked: Asked, reply: Reply, at: Endpoint) -> None:
        record = record_of(asked.prompt, asked.sample, reply, keep_text=self._config.keep_text)
        self._answers.add(record)
        self._report.count(reply)
        self._bar.update(1)
        self._bar.set_postfix_str(self._report.speed(), refresh=False)
        self._note(at, reply.problem, "answers without a length")

    def _give_up(self, asked: Asked, failure: Failure, at: Endpoint) -> None:
        if self._stopping.is_set() and not failure.is_final:
            return  # it will be asked by the next run, like all that is left
        self._report.give_up(asked.prompt.index + 1, asked.sample, failure)
        self._note(at, failure.kind, "requests failed")

    def _note(self, at: Endpoint, problem: str | None, told: str) -> None:
        """Leave an endpoint out from which nothing of use comes any more."""
        at.num_failed = at.num_failed + 1 if problem else 0
        if at.num_failed >= max(LEAST_FAILURES, 2 * self._config.concurrency):
            self._leave_out(at, f"{at.num_failed} {told} in a row, the last: {problem}")


@contextmanager
def _interrupts(interrupted: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `interrupted`, where signals can be taken (the main thread)."""
    loop = asyncio.get_running_loop()
    taken = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(signum, interrupted)
            taken.append(signum)
    try:
        yield
    finally:
        for signum in taken:
            loop.remove_signal_handler(signum)


def _bar(report: CollectReport) -> Any:
    from tqdm import tqdm

    # A terminal sees it move; a log file gets a line now and then.
    every_s = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=report.num_wanted,
        initial=report.num_before,
        unit=" answers",
        desc="collect",
        mininterval=every_s,
        miniters=1,
        smoothing=0.05,
    )
