"""
One request as Envoy tells of it, shown to `PriorityMiddleware` as if it passed through here.

The middleware sees an ASGI request with its body, and behind it an app that answers. The app is
`engine_side`: what reaches it has its priority, which goes back to Envoy; what Envoy then tells of
the answer it sends back through the middleware, which learns from that. No byte goes on from here.
"""

import asyncio
import secrets
from dataclasses import dataclass, field

from pars.request.body import ASGIApp, Message, Receive, Scope, Send
from pars.scheduling.dialects import DIALECT_HEADERS
from pars.scheduling.trust import Headers

EXCHANGE = "pars.exchange"


@dataclass(frozen=True, slots=True)
class Stamp:
    """
    What is to be changed in a request.

    Attributes:
        headers: That say its place.
        body: In place of its own; None: that stays.
    """

    headers: Headers = field(default_factory=list)
    body: bytes | None = None


class Exchange:
    """
    One request, until its answer is known. On one event loop.

    Args:
        body: As far as Envoy shows it.
        num_bytes: Of the body; more than `body` has where Envoy shows a part.

    Attributes:
        name: By which the one who sees the answer finds this; nobody can guess it.
        stamp: What is to be changed in the request.
        is_over: The end of its answer has come, or nobody will tell of it.
    """

    def __init__(
        self, path: str, headers: Headers, peer: str | None, body: bytes, *, num_bytes: int
    ) -> None:
        self.name = secrets.token_hex(8)
        self.stamp: asyncio.Future[Stamp] = asyncio.get_running_loop().create_future()
        self.is_over = False
        self._path, self._headers, self._peer = path, headers, peer
        self._body: bytes | None = body
        self._is_whole = num_bytes == len(body)
        # A part is nothing to read; of a body that is too large to be held only the size counts.
        self._filler = b"" if self._is_whole else bytes(num_bytes - len(body))
        self._told: asyncio.Queue[Message | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self._sent = b""
        self._status = 0

    async def run(self, middleware: ASGIApp) -> None:
        """Show the request to `middleware`, until its answer is over."""
        path, _, query = self._path.partition("?")
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": query.encode("latin-1", "replace"),
            "headers": self._headers,
            "client": (self._peer, 0) if self._peer else None,
            EXCHANGE: self,
        }
        try:
            await middleware(scope, self._receive, _nowhere)
        finally:
            if not self.stamp.done():
                self.stamp.set_result(Stamp())

    def begin(self, status: int, headers: Headers) -> None:
        """The head of the answer."""
        self._status = status
        start = {"type": "http.response.start", "status": status, "headers": headers}
        self._told.put_nowait(start)

    def piece(self, data: bytes, *, is_last: bool) -> None:
        """Some of the answer's body."""
        if self._status and not self.is_over:
            self.is_over = is_last
            more = not is_last
            self._told.put_nowait({"type": "http.response.body", "body": data, "more_body": more})

    def end(self) -> None:
        """Nobody tells more: the answer is over, or broke off, or nobody looks at it."""
        if not self.is_over:
            self.is_over = True
            self._left.set()
            self._told.put_nowait(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body + self._filler, None
            self._filler, self._sent = b"", body
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the request with its priority, and give the answer as it is told."""
        if self.stamp.done():  # repeated without its priority, which Envoy has passed on already
            await send({"type": "http.response.start", "status": self._status, "headers": []})
            await send({"type": "http.response.body"})
            return
        content = (await receive()).get("body", b"")
        placed = [it for it in scope["headers"] if it[0] in DIALECT_HEADERS]
        is_changed = self._is_whole and content != self._sent
        self.stamp.set_result(Stamp(placed, content if is_changed else None))
        del content
        self._sent = b""
        while (message := await self._told.get()) is not None:
            await send(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                return
        if self._status:
            await receive()  # so that who watches hears that the client left


async def engine_side(scope: Scope, receive: Receive, send: Send) -> None:
    """The app behind the middleware: the exchange that brought the request."""
    await scope[EXCHANGE].carry(scope, receive, send)


async def _nowhere(message: Message) -> None:
    """Answers go from the engine to the client through Envoy, not through here."""
