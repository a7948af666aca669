"""What bodies may hold together, and who gives way when the room runs out."""

import asyncio

from pars.request.body import ByteBudget, HeldBody, Message, Receive

ROOM = 100


def part(num_bytes: int, *, more: bool) -> Message:
    return {"type": "http.request", "body": b"a" * num_bytes, "more_body": more}


class Upload:
    """A client that sends some bytes and then waits until it is told to go on."""

    def __init__(self, budget: ByteBudget, num_bytes: int) -> None:
        self.body = HeldBody(budget, ROOM)
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.messages.put_nowait(part(num_bytes, more=True))
        self.taken = asyncio.ensure_future(self.body.take(self.messages.get))

    async def passed_on(self) -> bytes:
        """All bytes, as the engine gets them."""
        replayed: Receive = self.body.replay(self.messages.get)
        content, more = b"", True
        while more:
            message = await replayed()
            content, more = content + message["body"], message["more_body"]
        return content


async def settled() -> None:
    """Everything that can run has run."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_oldest_upload_on_its_way_gives_way_to_a_whole_body() -> None:
    """Of two that hold 50 bytes each, the first is passed on unread; the second is held on."""

    async def run() -> None:
        budget = ByteBudget(ROOM)
        first, second = Upload(budget, 50), Upload(budget, 50)
        await settled()
        with HeldBody(budget, ROOM) as whole:
            assert whole.outcome is None
            await whole.take(lambda: _one(part(40, more=False)))
            await settled()

            assert whole.outcome is None
            assert (first.body.outcome, second.body.outcome) == ("buffers_full", None)
            assert budget.num_bytes == 90
        first.messages.put_nowait(part(7, more=False))
        assert await first.passed_on() == b"a" * 57
        second.messages.put_nowait(part(3, more=False))
        await second.taken
        assert second.body.content() == b"a" * 53
        with first.body, second.body:
            pass
        assert (budget.num_bytes, budget.num_leaving_bytes) == (0, 0)

    asyncio.run(run())


def test_whole_bodies_give_way_to_nobody() -> None:
    """They are being scored, which takes milliseconds; whoever comes then is not held."""

    async def run() -> None:
        budget = ByteBudget(ROOM)
        with HeldBody(budget, ROOM) as held, HeldBody(budget, ROOM) as late:
            await held.take(lambda: _one(part(80, more=False)))
            await late.take(lambda: _one(part(30, more=False)))

            assert (held.outcome, late.outcome) == (None, "buffers_full")
        assert budget.num_bytes == 0

    asyncio.run(run())


def test_what_gave_way_is_bounded_too() -> None:
    """Uploads that nobody takes over cannot be held without end: 100 bytes wait, 100 leave."""

    async def run() -> None:
        budget = ByteBudget(ROOM)
        uploads = [Upload(budget, 50) for _ in range(10)]
        await settled()

        assert budget.num_leaving_bytes <= ROOM
        for upload in uploads:
            upload.taken.cancel()
            with upload.body:
                pass
        assert (budget.num_bytes, budget.num_leaving_bytes) == (0, 0)

    asyncio.run(run())


def test_a_client_that_leaves_after_giving_way_is_seen() -> None:
    """The message that came too late to be held is not lost: here it is the disconnect."""

    async def run() -> None:
        budget = ByteBudget(ROOM)
        first, _ = Upload(budget, 60), Upload(budget, 60)
        await settled()
        assert first.body.outcome == "buffers_full"
        first.messages.put_nowait({"type": "http.disconnect"})
        replayed = first.body.replay(first.messages.get)

        assert (await replayed())["body"] == b"a" * 60
        assert (await replayed())["type"] == "http.disconnect"

    asyncio.run(run())


async def _one(message: Message) -> Message:
    return message
