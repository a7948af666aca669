"""
Policies take turns on a live engine, over one workload, in open loop; all times are kept.

    run_bench(BenchOptions(url="http://localhost:8000", workload=Path("load.jsonl"),
                           policies=("fcfs", "ranker@30", "oracle"), output_dir=Path("bench")))

Open loop: each request is sent when it is due, whatever became of those before it. The policies run
one after the other, each on an idle engine, in an order that moves on by one each repeat; so what
the machine does meanwhile meets all of them. `live` sends, `watch` looks at the engine and at this
client's own standstills, `latency` and `report` make figures of what is left in the folder.
"""

import asyncio
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pars import __version__
from pars.prove.live.bench_plan import BenchOptions, Turn, scores_for, turns
from pars.prove.live.bench_target import Target, prepared, request_of, with_priority
from pars.prove.live.live import Answer, Client, Headers
from pars.prove.live.watch import EngineWatch, stalls_s
from pars.prove.report.progress import Progress
from pars.prove.report.times import RequestTimes, ResultWriter, Run
from pars.prove.workload.scores import Scores
from pars.prove.workload.workload import Workload, WorkloadRequest, read_workload


def run_bench(options: BenchOptions, *, command: str = "") -> bool:
    """
    Run it all; the result lies in `options.output_dir`. Returns whether it came to its end.

    Raises:
        ParsError: the workload, the ranker or the engine is not what it must be, or no request of
            the warm-up was answered. Later failures are counted, not raised.
    """
    workload = read_workload(options.workload)
    scores = scores_for(options, workload)
    planned = turns(options, workload, scores)
    client = Client(options.url, api_key=options.api_key, timeout_s=options.timeout_s)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            target = runner.run(prepared(options, workload, client))
            header = _header(options, workload, target, scores, command)
            with ResultWriter(options.output_dir, header) as writer:
                bench = _Bench(options, target, writer, len(planned))
                try:
                    runner.run(bench.run(planned))
                finally:
                    writer.end(interrupted=bench.num_runs < len(planned))
        except (KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C, SIGTERM
            return False
        finally:
            runner.run(client.close())
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


class _Bench:
    """The runs; `num_runs` of them are whole."""

    def __init__(
        self, options: BenchOptions, target: Target, writer: ResultWriter, num_turns: int
    ) -> None:
        self.num_runs = 0
        self._options = options
        self._target = target
        self._writer = writer
        self._progress = Progress(num_turns)
        self._excerpts: dict[str, str] = {}
        self._itl_counts: dict[int, int] = {}

    async def run(self, planned: Sequence[Turn]) -> None:
        """All turns, one after the other; a cancellation ends the one that runs."""
        main = asyncio.current_task()
        assert main is not None
        if sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
        for turn in planned:
            await self._turn(turn)
            self.num_runs += 1

    async def _turn(self, turn: Turn) -> None:
        requests = [
            request_of(self._options, self._target, turn, row) for row in range(len(turn.requests))
        ]
        self._excerpts, self._itl_counts = {}, {}
        start_s = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - start_s

        stalls, watch = [0.0], EngineWatch(self._target.client, clock)
        tasks: list[asyncio.Task[None]] = []
        is_whole = False
        self._progress.begin(f"{turn.policy}, repeat {turn.repeat + 1}", len(requests))
        try:
            async with watch, stalls_s() as stalls:
                start_s = time.perf_counter()
                for row, request in enumerate(turn.requests):
                    early_s = request.arrival_s - clock()
                    if early_s > 0:
                        await asyncio.sleep(early_s)
                    tasks.append(asyncio.create_task(self._one(turn, row, requests[row], clock)))
                await asyncio.gather(*tasks)
                is_whole = True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._writer.add_run(self._run(turn, clock(), watch, max(stalls), is_whole))
            self._progress.end(is_whole)

    async def _one(
        self,
        turn: Turn,
        row: int,
        sent: tuple[str, bytes, Headers],
        clock: Callable[[], float],
    ) -> None:
        request, line = turn.requests[row], turn.line
        asked = None if self._options.own_eos else request.output_tokens
        answer = Answer(error="interrupted")
        on_first_token = None
        if line is not None and (key := turn.key(row)) is not None:
            sent = with_priority(self._options, self._target, sent, key)
            on_first_token = partial(line.began, request.request_id)
        try:
            answer = await self._target.client.stream(*sent, clock, on_first_token)
            answer = answer.judged(asked)
        finally:
            if line is not None:
                line.ended(
                    request.request_id,
                    clock(),
                    answer_tokens=answer.num_tokens if answer.error is None else None,
                    prompt_tokens=answer.num_prompt_tokens or request.prompt_tokens,
                )
            self._note(turn, request, asked, answer)

    def _note(
        self, turn: Turn, request: WorkloadRequest, asked: int | None, answer: Answer
    ) -> None:
        if answer.error is not None:
            self._excerpts.setdefault(answer.error, answer.excerpt)
        else:
            for bucket, count in answer.itl_counts.items():
                self._itl_counts[bucket] = self._itl_counts.get(bucket, 0) + count
        self._progress.step(failed=answer.error is not None)
        self._writer.add(
            RequestTimes(
                request_id=request.request_id,
                policy=turn.policy,
                repeat=turn.repeat,
                rate=turn.rate,
                arrival_s=request.arrival_s,
                prompt_tokens=answer.num_prompt_tokens or request.prompt_tokens,
                output_tokens=answer.num_tokens,
                asked_tokens=asked,
                sent_s=answer.sent_s,
                first_token_s=answer.first_token_s,
                finished_s=answer.end_s,
                longest_itl_s=answer.longest_itl_s,
                error=answer.error,
            )
        )

    def _run(
        self, turn: Turn, duration_s: float, watch: EngineWatch, stall_s: float, is_whole: bool
    ) -> Run:
        excerpts = {"error_excerpts": self._excerpts} if self._excerpts else {}
        return Run(
            policy=turn.policy,
            rate=turn.rate,
            repeat=turn.repeat,
            duration_s=round(duration_s, 6),
            queue=tuple(watch.samples),
            itl_counts=self._itl_counts,
            scoring_s=turn.scoring_s,
            num_preemptions=watch.samples[-1].num_preemptions if watch.samples else None,
            largest_stall_s=round(stall_s, 6),
            interrupted=not is_whole,
            facts={"requests_due": len(turn.requests), **excerpts},
        )


def _header(
    options: BenchOptions,
    workload: Workload,
    target: Target,
    scores: Mapping[str, Scores],
    command: str,
) -> dict[str, Any]:
    """What the result says of itself; neither keys nor secrets are in it."""
    caching = "on, salted by run" if target.prefix_caching else "off, or not told"
    return {
        "kind": "bench",
        "command": command,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "pars": __version__,
        "client": f"{platform.node()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "url": target.client.url,
        "engine": target.told,
        "model": target.model,
        "endpoint": options.endpoint,
        "answers": "the model's own end" if options.own_eos else "replayed lengths (ignore_eos)",
        "prefix_caching": caching,
        "policies": list(options.policies),
        "repeats": options.repeats,
        "rates": list(options.rates),
        "rankers": {known: dict(it.facts) for known, it in scores.items()},
        "extra_body": dict(options.extra_body),
        "num_requests": len(workload.requests),
        "workload": dict(workload.header),
    }
