"""Requests wait by their keys until an engine has room, whose slots are told or seen."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pars.outcomes.records import Outcome
from pars.serving.held.client import Client, HeldRequest
from pars.serving.held.knee import Knee
from pars.serving.held.queue import HeldQueue, QueueIsFull, WaitedTooLong, Waiting
from pars.serving.held.replica import Replica
from pars.serving.held.slots import SPARE, Slots

from serving import DEADLINE_S


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A queue, and those that were sent on, by name."""

    def __init__(self, slots: int, **bounds: Any) -> None:
        self.clock = Clock()
        self.queue = HeldQueue(
            [Replica(Slots(slots, self.clock))],
            **{"max_held": 100, "max_held_s": 600.0} | bounds,
            clock=self.clock,
        )
        self.sent: dict[str, Any] = {}

    async def ask(self, name: str, key: int) -> None:
        self.sent[name] = await self.queue.enter(Waiting(key, tells_begin=True))

    def ask_soon(self, name: str, key: int) -> asyncio.Task[None]:
        return asyncio.create_task(self.ask(name, key))


async def turns() -> None:
    """Let every task get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def test_the_smallest_key_goes_first_and_equal_ones_as_they_came() -> None:
    """One slot and a spare place: each that leaves lets the next one go."""

    async def scenario() -> None:
        bench = Bench(1)
        await asyncio.gather(bench.ask("a", 5), bench.ask("b", 5))
        late = [bench.ask_soon(name, key) for name, key in (("c", 9), ("d", 2), ("e", 2))]
        await turns()
        assert list(bench.sent) == ["a", "b"]
        for name in ("a", "b", "d", "e"):
            bench.queue.leave(bench.sent[name])
            await turns()
        assert list(bench.sent) == ["a", "b", "d", "e", "c"]
        await asyncio.gather(*late)

    run(scenario)


def test_who_leaves_while_waiting_gives_its_place_to_nobody_s_loss() -> None:
    """The one behind it goes, and the number of those that wait is right."""

    async def scenario() -> None:
        bench = Bench(1)
        await asyncio.gather(bench.ask("a", 0), bench.ask("b", 0))
        gone, kept = bench.ask_soon("gone", 1), bench.ask_soon("kept", 2)
        await turns()
        assert bench.queue.num_waiting == 2
        gone.cancel()
        await turns()
        assert bench.queue.num_waiting == 1
        bench.queue.leave(bench.sent["a"])
        await kept
        assert bench.queue.num_sent == 2

    run(scenario)


def test_who_leaves_just_as_there_is_room_gives_it_back() -> None:
    """The place came in the same turn of the event loop as the cancellation."""

    async def scenario() -> None:
        bench = Bench(1)
        await asyncio.gather(bench.ask("a", 0), bench.ask("b", 0))
        gone, kept = bench.ask_soon("gone", 1), bench.ask_soon("kept", 2)
        await turns()
        bench.queue.leave(bench.sent["a"])
        gone.cancel()
        await kept
        assert list(bench.sent) == ["a", "b", "kept"]
        assert bench.queue.num_sent == 2

    run(scenario)


def test_a_full_queue_refuses() -> None:
    """Two at the engine, one waits, and no more may."""

    async def scenario() -> None:
        bench = Bench(1, max_held=1)
        await asyncio.gather(bench.ask("a", 0), bench.ask("b", 0))
        waits = bench.ask_soon("c", 0)
        await turns()
        with pytest.raises(QueueIsFull):
            await bench.ask("d", 0)
        bench.queue.leave(bench.sent["a"])
        await waits

    run(scenario)


def test_nobody_waits_beyond_the_bound() -> None:
    """It is told so, and leaves nothing behind."""

    async def scenario() -> None:
        bench = Bench(1, max_held_s=0.01)
        await asyncio.gather(bench.ask("a", 0), bench.ask("b", 0))
        with pytest.raises(WaitedTooLong):
            await bench.ask("c", 0)
        assert bench.queue.num_waiting == 0

    run(scenario)


@pytest.mark.parametrize("rest_s", [0.0, 1e6])
def test_all_turns_of_a_request_wait_within_one_bound(rest_s: float) -> None:
    """Sent back after a minute of waiting, it does not have another: nor a rest before it."""

    async def scenario() -> None:
        bench = Bench(slots=1, max_held_s=60.0)
        while bench.queue.replicas[0].slots.has_room:
            await bench.ask("before", 1)
        outcome = Outcome(arrival_s=0.0, path="/", decision="scored", key=1)
        decision = SimpleNamespace(outcome=outcome, is_stream=False)
        client = Client(asyncio.Queue().get)
        client.listen()
        held = HeldRequest(bench.queue, decision, client, frozenset(), ())  # type: ignore[arg-type]
        held.wait_s, held.rest_s = 60.0, rest_s
        with pytest.raises(WaitedTooLong):
            await asyncio.wait_for(held.enter(), DEADLINE_S)
        held.end()

    run(scenario)


def test_a_body_in_single_bytes_costs_what_its_bytes_are() -> None:
    """And comes out as it came in, as often as it is asked for."""

    async def scenario() -> None:
        num_bytes = 50_000
        left = num_bytes

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": b"x", "more_body": left > 0}

        client = Client(receive)
        tracemalloc.start()
        while not client.is_whole:
            await client.read_next()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held_bytes < 4 * num_bytes
        for _ in range(2):
            message = await client.receiver()()
            assert (len(message["body"]), message["more_body"]) == (num_bytes, False)

    run(scenario)


def test_what_the_engine_sends_back_waits_for_the_pause() -> None:
    """Busy with one at it: it has one slot; nothing is sent before the pause is over."""

    async def scenario() -> None:
        bench = Bench(0)
        await asyncio.gather(bench.ask("a", 0), bench.ask("b", 0))
        bench.queue.send_back(bench.sent["b"], 5.0)
        again = bench.ask_soon("again", 0)
        await turns()
        assert (bench.queue.replicas[0].slots.num, "again" in bench.sent) == (1, False)
        bench.clock.now_s += 5
        bench.queue.look()
        await again

    run(scenario)


class Engine:
    """Streams at an engine with so many slots, first come, first served, in virtual time."""

    def __init__(self, num_slots: int) -> None:
        self.clock = Clock()
        self.slots = Slots(0, self.clock)
        self.num_slots = num_slots
        self.waiting: list[Any] = []
        self.running: list[tuple[float, Any]] = []

    def send_all(self, most: int) -> None:
        while self.slots.has_room and self.slots.num_sent < most:
            self.waiting.append(self.slots.send(tells_begin=True))

    def step(self, answer_s: float) -> None:
        """A tenth of a second; each answer takes `answer_s`."""
        self.clock.now_s += 0.1
        for end_s, sent in list(self.running):
            if end_s <= self.clock.now_s:
                self.running.remove((end_s, sent))
                self.slots.end(sent, 100)
        while self.waiting and len(self.running) < self.num_slots:
            sent = self.waiting.pop(0)
            self.slots.begin(sent)
            self.running.append((self.clock.now_s + answer_s, sent))
        self.slots.look()

    def run(self, seconds: float, *, most: int = 40) -> list[int | None]:
        """The slots as they are known, step by step."""
        known = []
        for _ in range(round(10 * seconds)):
            self.send_all(most)
            self.step(3.0)
            known.append(self.slots.num)
        return known


def test_an_engine_that_is_never_full_gets_everything() -> None:
    """Ten streams at once on sixteen slots: nothing is known, so nothing is held."""
    engine = Engine(16)

    assert set(engine.run(60, most=10)) == {None}
    assert engine.slots.has_room


def test_the_slots_of_a_full_engine_are_seen() -> None:
    """Of forty streams four begin: it has four, and keeps a few more waiting."""
    engine = Engine(4)

    known = engine.run(30)

    assert known[-1] == 4
    assert engine.slots.num_sent <= 4 + SPARE


@pytest.mark.parametrize(("first", "then"), [(4, 9), (9, 4), (2, 1)])
def test_a_server_that_changes_its_slots_is_followed(first: int, then: int) -> None:
    """Within ten minutes what is known is what it has, or one that is being tried."""
    engine = Engine(first)
    engine.run(60)

    engine.num_slots = then
    known = engine.run(600)

    assert set(known[-100:]) <= {then, then + 1}
    assert then in known[-700:]


def test_what_is_told_goes_before_what_was_seen() -> None:
    """And what the operator says before both."""
    slots = Slots(0, Clock(), lambda: 5)
    slots.seen = 3
    assert (slots.num, slots.source) == (5, "the engine")
    slots.given = 7
    assert (slots.num, slots.source) == (7, "the operator")


def test_what_an_engine_may_answer_at_most_holds_until_less_is_seen() -> None:
    """vLLM tells 5; where its memory is full at 3, it has 3, and never 6."""
    slots = Slots(0, Clock(), told_most=lambda: 5)
    assert (slots.num, slots.source) == (5, "the engine")
    slots.seen = 3
    assert (slots.num, slots.source) == (3, "what was seen")
    slots.seen = 6
    assert (slots.num, slots.source) == (5, "the engine")


def knee_of(numbers: tuple[int, ...], num_slots: int) -> int | None:
    """What is seen of an engine that makes 100 bytes a second for each of its slots."""
    knee, now_s = Knee(), 0.0
    for num in numbers:
        for _ in range(40):
            at = knee.change(num, now_s)
            sent_s, now_s = now_s, now_s + 1.0
            knee.answer(100 * min(num, num_slots), sent_s, at, now_s)
    return knee.num


def test_the_knee_is_where_more_at_once_gets_no_more_done() -> None:
    """Four at once are answered; with eight and twelve no more is done in all."""
    assert knee_of((1, 2, 4, 8, 12), 4) in (4, 5)  # what is told apart grows by half


def test_no_knee_is_seen_where_traffic_ended() -> None:
    """Never more than four at once: the engine might do more."""
    assert knee_of((1, 2, 4), 4) is None


def test_slots_are_seen_of_answers_that_come_whole() -> None:
    """Three at once are answered, of two that are sent, then of four, then of nine."""
    clock = Clock()
    slots = Slots(0, clock)
    running: list[tuple[float, Any]] = []
    waiting: list[Any] = []
    for most in (2, 4, 9):
        for _ in range(600):
            while slots.has_room and slots.num_sent < most:
                waiting.append(slots.send(tells_begin=False))
            clock.now_s += 0.1
            for end_s, sent in list(running):
                if end_s <= clock.now_s:
                    running.remove((end_s, sent))
                    slots.end(sent, 1000)
            while waiting and len(running) < 3:
                running.append((clock.now_s + 2.0, waiting.pop(0)))
            slots.look()

    assert slots.num in (3, 4, 5)
