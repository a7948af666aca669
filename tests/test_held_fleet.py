"""One queue before several servers: who goes where, in an order worked out by hand."""

import asyncio

from pars.serving.held.queue import HeldQueue, Waiting
from pars.serving.held.replica import Replica, Turn
from pars.serving.held.slots import Slots

NOW_S = 100.0


def fleet(**slots: int) -> dict[str, Replica]:
    return {name: Replica(Slots(num, lambda: NOW_S), name) for name, num in slots.items()}


def queue_of(replicas: dict[str, Replica]) -> HeldQueue:
    return HeldQueue(list(replicas.values()), max_held=100, max_held_s=600, clock=lambda: NOW_S)


async def send(queue: HeldQueue, num: int, **more: object) -> list[Turn]:
    """As many requests as there is room for."""
    waiting = Waiting(0, tells_begin=True, **more)  # type: ignore[arg-type]
    return [await asyncio.wait_for(queue.enter(waiting), 5) for _ in range(num)]


def names(turns: list[Turn]) -> str:
    return "".join(turn.replica.name for turn in turns)


def test_servers_are_weighed_by_their_slots() -> None:
    """One with four slots gets twice what one with two gets, and each a few to spare."""

    async def scenario() -> None:
        replicas = fleet(a=4, b=2)
        queue = queue_of(replicas)
        turns = await send(queue, 6)
        assert names(turns).count("a") == 4
        assert names(turns).count("b") == 2
        assert names(await send(queue, 4)).count("b") == 2  # the spare places

    asyncio.run(scenario())


def test_who_waits_goes_where_a_place_is_free_first() -> None:
    """Nobody is bound to a server before it has room; the smallest key goes first."""

    async def scenario() -> None:
        replicas = fleet(a=1, b=1)
        queue = queue_of(replicas)
        first = await send(queue, 4)
        late = [
            asyncio.create_task(queue.enter(Waiting(key, tells_begin=True))) for key in (7, 3, 5)
        ]
        await asyncio.sleep(0)
        at_b = [turn for turn in first if turn.replica.name == "b"]
        queue.leave(at_b[0])
        queue.leave(at_b[1])
        await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        assert [task.done() for task in late] == [False, True, True]
        assert names([late[1].result(), late[2].result()]) == "bb"
        queue.leave(late[1].result())
        assert (await late[0]).replica.name == "b"

    asyncio.run(scenario())


def test_a_server_that_is_out_gets_nothing_while_another_is_well() -> None:
    """Where none is well, they are asked all the same: their own errors tell most."""

    async def scenario() -> None:
        replicas = fleet(a=2, b=2)
        queue = queue_of(replicas)
        replicas["a"].problem = "gone"
        assert names(await send(queue, 4)) == "bbbb"
        assert queue.for_unheld() is replicas["b"]
        replicas["b"].problem = "gone"
        assert names(await send(queue, 1)) == "a"

    asyncio.run(scenario())


def test_a_conversation_stays_where_its_beginning_is() -> None:
    """Unless that server is clearly fuller, or full."""

    async def scenario() -> None:
        replicas = fleet(a=8, b=8)
        queue = queue_of(replicas)
        assert queue.prefixes is not None
        marks = queue.prefixes.marks(b"conversation " * 100)
        [home] = await send(queue, 1, marks=marks)
        assert home.replica.name == "a"
        assert names(await send(queue, 1)) == "b"
        assert names(await send(queue, 4, marks=marks)) == "aaab"  # 4 of 8 against 1 of 8
        assert names(await send(queue, 1, marks=marks)) == "b"  # which had it last

    asyncio.run(scenario())


def test_a_server_that_failed_a_request_is_avoided_by_it() -> None:
    """Not by others; and it goes there where no other has room."""

    async def scenario() -> None:
        replicas = fleet(a=1, b=1)
        queue = queue_of(replicas)
        avoided = frozenset({replicas["a"]})
        assert names(await send(queue, 3, avoided=avoided)) == "bba"
        assert names(await send(queue, 1)) == "a"

    asyncio.run(scenario())
