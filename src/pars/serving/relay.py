"""
Hands each request to the upstream and its response back, piece by piece as both come.

What is held of a body is bounded on both sides, and a side that does not read makes the other wait.
A client that leaves closes the upstream's connection at once (vLLM then aborts the generation). An
upstream that dies in mid-answer leaves the client a broken stream, never one that looks whole.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge

from pars.errors import one_line
from pars.request.body import Message, Receive, Scope, Send
from pars.request.prompts import reader_of
from pars.serving.answer import UpstreamError
from pars.serving.header_fields import Headers
from pars.serving.replies import send_error
from pars.serving.upstream import Upstream

log = logging.getLogger("pars")

# A task that waits for the client to leave costs a tenth of a request. What is answered sooner than
# this needs none.
WATCH_AFTER_S = 0.01
MAX_WHOLE_BYTES = 1 << 20  # a larger body is sent in pieces though it is here


class ClientGone(Exception):
    """The client left, so nobody waits for the answer."""


class RelayMetrics:
    """What all relays of a gateway count together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.num_in_flight = 0
        in_flight = Gauge(
            "pars_requests_in_flight", "Requests now at the upstream.", registry=registry
        )
        in_flight.set_function(lambda: self.num_in_flight)
        self.failures = Counter(
            "pars_upstream_failures_total",
            "Requests to which the upstream gave no whole answer.",
            ["code"],
            registry=registry,
        )
        self.clients_gone = Counter(
            "pars_clients_gone_total",
            "Requests whose client left before the end of the answer.",
            registry=registry,
        )


class Relay:
    """
    An ASGI app that hands each request to the upstream and its response back.

    Args:
        on_failure: Called when the upstream gave no whole answer.
    """

    def __init__(
        self,
        upstream: Upstream,
        metrics: RelayMetrics,
        on_failure: Callable[[UpstreamError], None] = lambda error: None,
    ) -> None:
        self.upstream = upstream
        self._metrics = metrics
        self._on_failure = on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        try:
            await self.carry(scope, receive, send)
        except UpstreamError as error:
            await send_error(send, error.status, error.code, str(error))

    async def carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Hand a request on as an ASGI app does.

        Raises:
            UpstreamError: there is no answer, and why; nothing was sent to the client, so that
                another server may be asked. An answer that breaks off is left unfinished, which
                makes the server cut the client's connection.
        """
        first = await receive()
        if first["type"] == "http.disconnect":
            return
        self._metrics.num_in_flight += 1
        answer = _Answer(send)
        try:
            with _Client(first, receive) as client:
                await self._exchange(scope, client, answer)
        except ClientGone:
            self._metrics.clients_gone.inc()
        except UpstreamError as error:
            self._metrics.failures.labels(error.code).inc()
            self._on_failure(error)
            log.warning("%s %s: %s", scope["method"], one_line(scope["path"]), error)
            if not answer.has_started:
                raise
        finally:
            self._metrics.num_in_flight -= 1

    async def _exchange(self, scope: Scope, client: "_Client", answer: "_Answer") -> None:
        query = scope["query_string"]
        response = await self.upstream.ask(
            scope["method"],
            scope["raw_path"] + (b"?" + query if query else b""),
            scope["headers"],
            client.body(),
            # A generation too: twice made it costs tokens, and the first was never answered.
            may_repeat=lambda: reader_of(scope["path"]) is not None,
        )
        with response:
            await answer.start(response.status, response.headers)
            is_whole = False
            while not is_whole:
                piece = b"" if response.is_finished else await response.read()
                is_whole = response.is_finished
                await answer.send(
                    {"type": "http.response.body", "body": piece, "more_body": not is_whole}
                )


class _Answer:
    """The response on its way to the client."""

    def __init__(self, send: Send) -> None:
        self.has_started = False
        self.send = send

    async def start(self, status: int, headers: Headers) -> None:
        if status in (204, 304):  # they have no body, whatever length they tell
            headers = [header for header in headers if header[0].lower() != b"content-length"]
        self.has_started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


class _Client:
    """
    The request on its way from the client, and the watch over a client that leaves.

    A client that leaves cancels the block at once, whatever it waits for, and it raises ClientGone.
    """

    def __init__(self, first: Message, receive: Receive) -> None:
        self._first = first
        self._receive = receive
        self._is_gone = False
        self._is_over = False
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._is_gone:
            if self._task is not None:
                self._task.uncancel()
            raise ClientGone from None

    def body(self) -> bytes | AsyncIterator[bytes] | None:
        """The request's body: in one piece if all of it is here."""
        body: bytes = self._first.get("body", b"")
        if self._first.get("more_body", False) or len(body) > MAX_WHOLE_BYTES:
            return self._pieces()
        self._begin_watch()
        return body or None

    async def _pieces(self) -> AsyncIterator[bytes]:
        message = self._first
        while message["type"] == "http.request":
            if message.get("body", b""):
                yield message["body"]
            if not message.get("more_body", False):
                self._begin_watch()
                return
            message = await self._receive()
        self._leave()
        raise ClientGone

    def _begin_watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(WATCH_AFTER_S, self._look)

    def _look(self) -> None:
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if self._task is not None and not self._is_over:
            self._is_gone = True
            self._task.cancel()


async def _live(receive: Receive, send: Send) -> None:
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})
