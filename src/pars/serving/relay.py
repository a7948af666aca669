"""
Hands each request to the upstream and its response back, byte for byte, as both come.

What is held of a body is bounded on both sides, and a side that does not read makes the other wait.
A client that leaves closes the upstream's connection at once (vLLM then aborts the generation). An
upstream that dies in mid-answer leaves the client a broken stream, never one that looks whole.
"""

import asyncio
import logging

from prometheus_client import CollectorRegistry, Counter, Gauge

from pars.request.body import Message, Receive, Scope, Send
from pars.request.prompts import reader_of
from pars.serving.exchange import ClientGone, Exchange, Headers, UpstreamError, end_to_end
from pars.serving.replies import send_error
from pars.serving.upstream import Upstream

log = logging.getLogger("pars")

# Generations too: twice made they cost tokens and change nothing, and the first was never answered.
SAFE_TO_REPEAT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))


class Relay:
    """An ASGI app that hands each request to the upstream and its response back, byte for byte."""

    def __init__(self, upstream: Upstream, registry: CollectorRegistry) -> None:
        self.upstream = upstream
        self._num_in_flight = 0
        in_flight = Gauge(
            "pars_requests_in_flight", "Requests now at the upstream.", registry=registry
        )
        in_flight.set_function(lambda: self._num_in_flight)
        self._failures = Counter(
            "pars_upstream_failures_total",
            "Requests to which the upstream gave no whole answer.",
            ["code"],
            registry=registry,
        )
        self._clients_gone = Counter(
            "pars_clients_gone_total",
            "Requests whose client left before the end of the answer.",
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        first = await receive()
        if first["type"] == "http.disconnect":
            return
        self._num_in_flight += 1
        answer = _Answer(send)
        try:
            await self._exchange(scope, first, receive, answer)
        except ClientGone:
            self._clients_gone.inc()
        except BodyTimeout as error:
            if not answer.has_started:
                await send_error(send, 408, "request_timeout", str(error), close=True)
        except UpstreamError as error:
            self._failures.labels(error.code).inc()
            log.warning("%s %s: %s", scope["method"], scope["path"], error)
            if not answer.has_started:
                await send_error(send, error.status, error.code, str(error))
            # Else: returning with the answer unfinished makes the server cut the connection.
        finally:
            self._num_in_flight -= 1

    async def _exchange(
        self, scope: Scope, first: Message, receive: Receive, answer: "_Answer"
    ) -> None:
        """One try, and a second if the first met a connection that had died while idle."""
        can_repeat = not first.get("more_body", False) and (
            scope["method"] in SAFE_TO_REPEAT or reader_of(scope["path"]) is not None
        )
        try:
            await self._try(scope, first, receive, answer, fresh=False)
        except UpstreamError as error:
            if not (error.may_retry and can_repeat):
                raise
            await self._try(scope, first, receive, answer, fresh=True)

    async def _try(
        self, scope: Scope, first: Message, receive: Receive, answer: "_Answer", *, fresh: bool
    ) -> None:
        exchange = await self.upstream.exchange(scope["method"].encode(), fresh=fresh)
        sender = _Sender(exchange, receive)
        watch: asyncio.Task[None] | None = None
        try:
            sender.start(self.upstream, scope, first)
            watch = asyncio.create_task(sender.finish())
            status, headers = await exchange.head()
            await answer.start(status, headers)
            while not exchange.is_finished:
                data = await exchange.read()
                await answer.body(data, is_last=exchange.is_finished)
            await answer.end()
        finally:
            sender.stop()
            if watch is not None:
                watch.cancel()
            self.upstream.release(exchange)
            sender.raise_failure(watch)


class _Answer:
    """The response on its way to the client."""

    def __init__(self, send: Send) -> None:
        self.has_started = False
        self._has_ended = False
        self._send = send

    async def start(self, status: int, headers: Headers) -> None:
        if status in (204, 304):  # they have no body, whatever length they tell
            headers = [header for header in headers if header[0].lower() != b"content-length"]
        self.has_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data: bytes, *, is_last: bool) -> None:
        self._has_ended = is_last
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def end(self) -> None:
        if not self._has_ended:
            await self.body(b"", is_last=True)


class _Sender:
    """The request on its way to the upstream, and the watch over a client that leaves."""

    def __init__(self, exchange: Exchange, receive: Receive) -> None:
        self._exchange = exchange
        self._receive = receive
        self._is_chunked = False
        self._is_over = False

    def start(self, upstream: Upstream, scope: Scope, first: Message) -> None:
        """Send the head, and with it what there is of the body."""
        sent: Headers = scope["headers"]
        # Chunked wins over a length, as in RFC 9112: a length may have come as a trailer.
        self._is_chunked = any(name == b"transfer-encoding" for name, _ in sent)
        dropped = {b"host", b"expect"} | ({b"content-length"} if self._is_chunked else set())
        headers = [header for header in end_to_end(sent) if header[0] not in dropped]
        if self._is_chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        head = upstream.request_head(scope["method"].encode(), target, headers)
        self._exchange.write(head + self._framed(first))

    async def finish(self) -> None:
        """Send the rest of the body as it comes, then end the exchange when the client leaves."""
        try:
            await self._finish()
        finally:
            if not self._is_over:
                self._exchange.leave()

    def stop(self) -> None:
        """Never touch the exchange again: it may soon be another request's."""
        self._is_over = True

    async def _finish(self) -> None:
        while not self._exchange.is_request_sent:
            await self._exchange.drained()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            self._exchange.write(self._framed(message))
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def raise_failure(self, watch: "asyncio.Task[None] | None") -> None:
        """Raise what ended the watch, which the exchange saw only as a client that left."""
        if watch is not None and watch.done() and not watch.cancelled():
            error = watch.exception()
            if error is not None:
                raise error

    def _framed(self, message: Message) -> bytes:
        body: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        self._exchange.is_request_sent = is_last
        if not self._is_chunked:
            return body
        return (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (
            b"0\r\n\r\n" if is_last else b""
        )


async def _live(receive: Receive, send: Send) -> None:
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})


class BodyTimeout(Exception):
    """The client stopped in the middle of its body."""


class TimedBody:
    """A receive channel that gives up on a body which stops coming."""

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._timeout_s):
                taken = await self._receive()
        except TimeoutError:
            message = f"no byte of the announced body for {self._timeout_s:g} seconds"
            raise BodyTimeout(message) from None
        self._is_whole = not taken.get("more_body", False)
        return taken
