"""
Work spread over the processes of one machine: each result as it is done; Ctrl-C ends them all.

    for done in spread(work, tasks, num_processes=None):

And what a process that serves does before it begins: `leave_to_serve`.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from contextlib import ExitStack
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

TASKS_A_PROCESS = 2  # handed out: one that runs, and one that waits for its turn

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    work: Callable[[Task], Result], tasks: Iterable[Task], num_processes: int | None
) -> Iterator[Result]:
    """
    `work` of each task, in the order in which they end. Tasks are taken as there is room for them.

    Args:
        num_processes: None: one a core. 1: in this process.

    Raises:
        BrokenProcessPool: a process ended by itself, or was killed.
    """
    count = num_processes or num_cores()
    if count <= 1:
        yield from map(work, tasks)
        return
    rest = iter(tasks)
    with ExitStack() as stack:
        executor = stack.enter_context(
            ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_leave_ctrl_c)
        )
        stack.callback(_kill, executor)
        running = {executor.submit(work, it) for it in islice(rest, TASKS_A_PROCESS * count)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
            running |= {executor.submit(work, it) for it in islice(rest, len(ended))}


def leave_to_serve() -> None:
    """
    Before the event loop runs: see that little holds it up (benchmarks/hostile_bodies.py).

    What was loaded is kept out of the garbage collector's way: nothing of it ends before the
    process, and going through all modules and models takes 20 ms each time. And a thread that reads
    a large body gives way after a millisecond, not after five.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(1e-3)


def num_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_ctrl_c() -> None:
    """The terminal sends Ctrl-C to every process; only the first one acts on it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _kill(executor: Executor) -> None:
    """What still runs is not wanted any more (Ctrl-C, or a task that failed)."""
    executor.shutdown(wait=False, cancel_futures=True)
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        process.terminate()
