"""
Labels from where the model runs: asks an endpoint for answers and keeps how long each became.

    config = CollectConfig(endpoint="http://localhost:8000", model="m", prompts=..., output=...)
    report = collect(config, key=os.environ.get("OPENAI_API_KEY"))
    print(report.render()); sys.exit(report.exit_code)

`concurrency` workers take (prompt, sample) from one list. A worker asks for its next answer only
when the line of the one before is written, so a kill -9 loses at most `concurrency` answers.
"""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pars.learn.collect.client import Asker, base_url_of
from pars.learn.collect.config import CollectConfig
from pars.learn.collect.file import AnswerFile
from pars.learn.collect.prompts import Prompt, read_prompts
from pars.learn.collect.reply import Failure, Reply, delay_s
from pars.learn.collect.report import CollectReport

LONGEST_WAIT_S = 600.0  # a server that asks for more is asked again by a later run
LEAST_FAILURES = 20  # in a row, or twice the concurrency: then the rest is not tried
Task = tuple[Prompt, int]
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
    base_url = base_url_of(config.endpoint)
    prompts = read_prompts(config.prompts, config.api, config.prompt_field)
    with AnswerFile.open(config.output, config.settings(base_url)) as answers:
        there = answers.asked_already(prompts)
        # Sample by sample, so that a run that is stopped early has one answer to each prompt.
        tasks = [
            (prompt, sample)
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
            asyncio.run(_Run(config, answers, report, pause).all(tasks, base_url, key))
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
        self._next_s = 0.0  # when the next request may go, by rate and Retry-After
        self._in_a_row = 0
        self._num_asking = 0
        self._bar: Any = None

    async def all(self, tasks: list[Task], base_url: str, key: str | None) -> None:
        asker = Asker(
            base_url,
            self._config.api,
            key,
            timeout_s=self._config.timeout_s,
            num_connections=self._config.concurrency,
        )
        queue = iter(tasks)
        began_s = time.monotonic()
        workers = [
            asyncio.create_task(self._work(queue, asker))
            for _ in range(min(self._config.concurrency, len(tasks)))
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
            await asker.close()
            self._report.seconds = time.monotonic() - began_s

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

    async def _work(self, queue: Iterator[Task], asker: Asker) -> None:
        for prompt, sample in queue:
            await self._answer(prompt, sample, asker)
            if self._stopping.is_set():
                return

    async def _answer(self, prompt: Prompt, sample: int, asker: Asker) -> None:
        """Ask until there is an answer or no hope of one."""
        body = self._config.body(prompt, sample)
        for attempt in range(self._config.max_retries + 1):
            await self._turn()
            if self._stopping.is_set():
                return
            self._num_asking += 1
            try:
                reply = await asker(body)
            except Failure as failure:
                if not await self._may_retry(failure, attempt):
                    self._give_up(prompt, sample, failure)
                    return
            else:
                self._keep(prompt, sample, reply)
                return
            finally:
                self._num_asking -= 1

    async def _may_retry(self, failure: Failure, attempt: int) -> bool:
        self._report.failures[failure.kind] += 1
        self._bar.set_postfix_str(self._report.speed(), refresh=False)
        if failure.is_hopeless:
            self._stop(f"{failure}")
            return False
        asked_s = failure.retry_after_s or 0.0
        if asked_s > LONGEST_WAIT_S:
            self._stop(f"{failure.kind}: the server asks to wait {asked_s:,.0f} s")
            return False
        # Who is told to wait speaks for all: they share the limit.
        self._next_s = max(self._next_s, time.monotonic() + asked_s)
        if failure.is_final or attempt == self._config.max_retries:
            return False
        self._report.num_retries += 1
        await self._wait(delay_s(failure, attempt, random.random()))
        return True

    async def _turn(self) -> None:
        """Until the rate allows another request."""
        now_s = time.monotonic()
        at_s = max(now_s, self._next_s)
        if self._config.rate:
            self._next_s = at_s + 1 / self._config.rate
        if at_s > now_s:
            await self._wait(at_s - now_s)

    async def _wait(self, seconds: float) -> None:
        """That long, or until the run is stopping."""
        waits = [asyncio.ensure_future(self._pause(seconds))]
        waits.append(asyncio.ensure_future(self._stopping.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    def _keep(self, prompt: Prompt, sample: int, reply: Reply) -> None:
        self._answers.add(_record(prompt, sample, reply, keep_text=self._config.keep_text))
        self._report.count(reply)
        self._bar.update(1)
        self._bar.set_postfix_str(self._report.speed(), refresh=False)
        self._note(reply.problem, "answers without a length")

    def _give_up(self, prompt: Prompt, sample: int, failure: Failure) -> None:
        if self._stopping.is_set() and not failure.is_final:
            return  # it will be asked by the next run, like all that is left
        self._report.give_up(prompt.index + 1, sample, failure)
        self._note(failure.kind, "requests failed")

    def _note(self, problem: str | None, told: str) -> None:
        """Stop a run that gets nothing of use any more."""
        self._in_a_row = self._in_a_row + 1 if problem else 0
        if self._in_a_row >= max(LEAST_FAILURES, 2 * self._config.concurrency):
            self._stop(f"{self._in_a_row} {told} in a row, the last: {problem}")


def _record(prompt: Prompt, sample: int, reply: Reply, *, keep_text: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "index": prompt.index,
        "sample": sample,
        "prompt": prompt.text,
        "prompt_sha256": prompt.checksum,
        "answer_tokens": reply.answer_tokens,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "seconds": reply.seconds,
    }
    if reply.thinking_tokens is not None:
        record["thinking_tokens"] = reply.thinking_tokens
    if reply.problem:
        record["usage_problem"] = reply.problem
    if keep_text:
        record["answer"] = reply.text
        if reply.thinking:
            record["thinking"] = reply.thinking
    return record


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
