"""pars.ranking.batching: who is scored with whom, and what reaches which caller."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pars.errors import RankerError
from pars.ranking.batching import Batcher, BatcherClosed, QueueFull, finite_scores

from serving import GatedScorer, LengthScorer


async def held_up(batcher: Batcher[float], scorer: GatedScorer) -> "asyncio.Future[list[float]]":
    """Put one call on the worker thread, where it stays until the gate opens."""
    first = batcher.submit(["first"])
    await asyncio.to_thread(scorer.entered.wait)
    return first


def test_scores_come_back_in_the_order_of_the_prompts():
    """A call of more prompts than a batch holds gets one score a prompt, in its own order."""
    prompts = ["x" * n for n in range(100, 0, -1)]

    async def scores() -> list[float]:
        async with Batcher(finite_scores(LengthScorer()), max_batch_prompts=7) as batcher:
            return await batcher.score(prompts)

    assert list(range(100, 0, -1)) == asyncio.run(scores())


def test_no_prompts_need_no_scorer():
    """An empty call gets an empty answer, and the scorer never hears of it."""
    scorer = LengthScorer()

    async def scores() -> list[float]:
        async with Batcher(finite_scores(scorer)) as batcher:
            return await batcher.score([])

    assert asyncio.run(scores()) == []
    assert scorer.batches == []


def test_lone_call_does_not_wait_for_company():
    """A call that finds the thread idle is a batch of its own."""
    scorer = LengthScorer()

    async def three_in_a_row() -> None:
        async with Batcher(finite_scores(scorer)) as batcher:
            for prompt in ("a", "b", "c"):
                await batcher.score([prompt])

    asyncio.run(three_in_a_row())
    assert scorer.batches == [["a"], ["b"], ["c"]]


def test_batches_of_a_slow_scorer_stay_within_their_time():
    """At 5 ms or more a prompt at most two fit into 10 ms, once one batch has shown it."""

    class SlowScorer(LengthScorer):
        def score(self, prompts: Sequence[str]) -> np.ndarray:
            time.sleep(0.005 * len(prompts))  # it is what a slow ranker does
            return super().score(prompts)

    scorer = SlowScorer()

    async def scores() -> list[float]:
        async with Batcher(finite_scores(scorer), max_batch_s=0.010) as batcher:
            await batcher.score(["first"])
            return await batcher.score(["x"] * 9)

    assert asyncio.run(scores()) == [1.0] * 9
    assert max(map(len, scorer.batches)) <= 2


def test_calls_of_one_moment_go_together():
    """Calls made in the same turn of the event loop make one batch."""
    scorer = LengthScorer()

    async def at_once() -> None:
        async with Batcher(finite_scores(scorer)) as batcher:
            await asyncio.gather(*[batcher.score([letter]) for letter in "abcde"])

    asyncio.run(at_once())
    assert scorer.batches == [["a", "b", "c", "d", "e"]]


def test_calls_that_arrive_while_the_thread_works_go_together():
    """Whatever comes during a batch is the next batch."""
    scorer = GatedScorer()

    async def while_busy() -> list[list[float]]:
        async with Batcher(finite_scores(scorer)) as batcher:
            first = await held_up(batcher, scorer)
            later = []
            for prompts in (["a"], ["bb", "ccc"], ["dddd"]):
                later.append(batcher.submit(prompts))
                await asyncio.sleep(0)
            scorer.gate.set()
            return await asyncio.gather(first, *later)

    assert asyncio.run(while_busy()) == [[5], [1], [2, 3], [4]]
    assert scorer.batches == [["first"], ["a", "bb", "ccc", "dddd"]]


def test_one_prompt_overtakes_a_call_of_ten_thousand():
    """A single prompt behind a large call is scored in the next batch but one at the latest."""
    scorer = GatedScorer()

    async def behind_a_large_call() -> None:
        async with Batcher(finite_scores(scorer)) as batcher:
            first = await held_up(batcher, scorer)
            large = batcher.submit(["large"] * 10_000)
            single = batcher.submit(["single"])
            scorer.gate.set()
            await asyncio.gather(first, large, single)

    asyncio.run(behind_a_large_call())
    [position] = [n for n, batch in enumerate(scorer.batches) if "single" in batch]
    assert position <= 2


def test_cancelled_call_is_never_scored():
    """Cancelling a caller drops what it queued, and makes room in the queue."""
    scorer = GatedScorer()

    async def leave_early() -> int:
        async with Batcher(finite_scores(scorer)) as batcher:
            first = await held_up(batcher, scorer)
            leaver = asyncio.create_task(batcher.score(["unwanted"] * 50))
            stayer = asyncio.create_task(batcher.score(["wanted"]))
            await asyncio.sleep(0)
            leaver.cancel()
            await asyncio.wait([leaver])
            num_queued = batcher.num_queued
            scorer.gate.set()
            await asyncio.gather(first, stayer)
            return num_queued

    assert asyncio.run(leave_early()) == 1
    assert scorer.batches == [["first"], ["wanted"]]


def test_cancelled_large_call_stops_half_way():
    """What a batch already holds is scored; the rest of the cancelled call is not."""
    scorer = GatedScorer()

    async def leave_in_the_middle() -> int:
        async with Batcher(finite_scores(scorer), max_batch_prompts=4) as batcher:
            large = batcher.submit(["x"] * 100)
            await asyncio.to_thread(scorer.entered.wait)
            large.cancel()
            scorer.gate.set()
            await batcher.score(["after"])
            return batcher.num_queued

    assert asyncio.run(leave_in_the_middle()) == 0
    assert scorer.batches == [["x"] * 4, ["after"]]


def test_full_queue_refuses_and_recovers():
    """A call beyond the bound is refused as a whole; the others, and later ones, are scored."""
    scorer = GatedScorer()

    async def too_many() -> list[list[float]]:
        async with Batcher(finite_scores(scorer), max_queued_prompts=3) as batcher:
            first = await held_up(batcher, scorer)
            fits = batcher.submit(["a", "bb"])
            with pytest.raises(QueueFull, match="and 2 more would pass the bound of 3"):
                batcher.submit(["c", "d"])
            also_fits = batcher.submit(["ccc"])
            scorer.gate.set()
            earlier = await asyncio.gather(first, fits, also_fits)
            return [*earlier, await batcher.score(["a", "b", "c"])]

    assert asyncio.run(too_many()) == [[5], [1, 2], [3], [1, 1, 1]]


class Picky(LengthScorer):
    """Fails when a prompt says so."""

    def score(self, prompts: Sequence[str]) -> np.ndarray:
        if "exit" in prompts:
            raise SystemExit
        if "nan" in prompts:
            return np.full(len(prompts), np.nan, dtype=np.float32)
        if "short" in prompts:
            return np.zeros(len(prompts) - 1, dtype=np.float32)
        if "fail" in prompts:
            raise ValueError("fail: secret prompt text")
        return super().score(prompts)


@pytest.mark.parametrize("bad", ["fail", "exit", "nan", "short"])
def test_failure_reaches_the_callers_of_its_batch_only(bad: str):
    """Both callers of the failed batch hear of it, each with an exception of its own; then on."""

    async def fail_once() -> tuple[list[BaseException], list[float]]:
        async with Batcher(finite_scores(Picky())) as batcher:
            together = [batcher.score([bad]), batcher.score(["beside"])]
            failures = await asyncio.gather(*together, return_exceptions=True)
            return failures, await batcher.score(["fine"])

    failures, later = asyncio.run(fail_once())
    assert [RankerError, RankerError] == [type(failure) for failure in failures]
    assert failures[0] is not failures[1]
    assert "secret" not in str(failures[0])
    assert later == [4]


def test_start_and_close_twice_change_nothing():
    """A batcher built outside a loop starts by itself, and may be closed and started again."""
    batcher = Batcher(finite_scores(LengthScorer()))

    async def twice() -> list[float]:
        scores = await batcher.score(["a"])
        batcher.start()
        batcher.start()
        await batcher.close()
        await batcher.close()
        with pytest.raises(BatcherClosed):
            await batcher.score(["b"])
        batcher.start()
        scores += await batcher.score(["cc"])
        await batcher.close()
        return scores

    assert asyncio.run(twice()) == [1, 2]


def test_next_loop_takes_over_from_one_that_ended():
    """Without close(), a loop that ended leaves nothing behind for the next."""
    batcher = Batcher(finite_scores(LengthScorer()))

    assert asyncio.run(batcher.score(["a"])) == [1]
    assert asyncio.run(batcher.score(["bb"])) == [2]


def test_two_open_loops_are_refused():
    """A second loop is told so while the first is open."""
    batcher = Batcher(finite_scores(LengthScorer()))

    async def in_another_loop() -> None:
        await batcher.score(["a"])
        with pytest.raises(RuntimeError, match="one event loop"):
            await asyncio.to_thread(asyncio.run, batcher.score(["b"]))

    asyncio.run(in_another_loop())


def test_close_fails_what_waits_and_finishes_what_runs():
    """The batch on the thread gets its scores; calls behind it hear that the service closes."""
    scorer = GatedScorer()

    async def close_while_busy() -> tuple[list[float], BaseException | None]:
        batcher = Batcher(finite_scores(scorer))
        first = await held_up(batcher, scorer)
        waiting = batcher.submit(["late"])
        closing = asyncio.create_task(batcher.close())
        await asyncio.wait([waiting])
        scorer.gate.set()
        await closing
        return await first, waiting.exception()

    scores, error = asyncio.run(close_while_busy())
    assert scores == [5]
    assert isinstance(error, BatcherClosed)
    assert scorer.batches == [["first"]]


def test_each_batch_is_reported():
    """on_batch hears the size of each batch and its seconds."""
    reports: list[tuple[int, float]] = []

    async def two_batches() -> None:
        batcher = Batcher(
            finite_scores(LengthScorer()),
            max_batch_prompts=4,
            on_batch=lambda n, s: reports.append((n, s)),
        )
        async with batcher:
            await batcher.score(["a"] * 6)

    asyncio.run(two_batches())
    assert [num_prompts for num_prompts, _ in reports] == [4, 2]
    assert all(scoring_s >= 0 for _, scoring_s in reports)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    max_batch_prompts=st.integers(1, 9),
)
def test_every_caller_gets_its_own_scores(sizes: list[int], max_batch_prompts: int):
    """Whatever the mix of calls, each gets its scores, no batch is too large, nothing stays."""
    scorer = LengthScorer()
    calls = [["x" * (7 * call + n) for n in range(size)] for call, size in enumerate(sizes)]

    async def all_at_once() -> tuple[list[list[float]], int]:
        async with Batcher(finite_scores(scorer), max_batch_prompts=max_batch_prompts) as batcher:
            scores = await asyncio.gather(*map(batcher.score, calls))
            return scores, batcher.num_queued

    scores, num_queued = asyncio.run(all_at_once())
    assert [[len(prompt) for prompt in call] for call in calls] == scores
    assert num_queued == 0
    assert all(len(batch) <= max_batch_prompts for batch in scorer.batches)
