"""A client's request, which can be handed on more than once, and the sign that the client left."""

import asyncio
from collections.abc import Iterator

from pars.request.body import Message, Receive


class Client:
    """
    One request as it comes.

    Attributes:
        is_whole: Its body is held here, so that it can be sent again.
        gone: Done once the client left; None: it is not listened to.
    """

    def __init__(self, receive: Receive) -> None:
        self.is_whole = False
        self.gone: asyncio.Future[Message] | None = None
        self._receive = receive
        self._messages: list[Message] = []

    async def read(self) -> None:
        """Take a body that the middleware holds as a whole, and listen for the client's leaving."""
        while not self.is_whole:
            await self.read_first()
        self.gone = asyncio.ensure_future(self._receive())

    async def read_first(self) -> None:
        """Take the next message only: a body may be larger than what can be held."""
        message = await self._receive()
        self._messages.append(message)
        self.is_whole = not message.get("more_body", False)

    @property
    def num_bytes(self) -> int:
        """Of the body, as far as it is held here."""
        return sum(len(message.get("body", b"")) for message in self._messages)

    @property
    def body(self) -> bytes:
        """What is held of the body."""
        return b"".join(message.get("body", b"") for message in self._messages)

    def receiver(self) -> Receive:
        """The request from its start, then what the client does."""
        held: Iterator[Message] = iter(self._messages)

        async def replayed() -> Message:
            message = next(held, None)
            if message is not None:
                return message
            if self.gone is not None:
                return await asyncio.shield(self.gone)
            return await self._receive()

        return replayed

    def end(self) -> None:
        """Nothing more is asked of the client."""
        if self.gone is not None and not self.gone.done():
            self.gone.cancel()
