"""
The external processor: what Envoy sends of each request, and what it is told.

    service = ExtProcService(settings)
    async with service.listening("127.0.0.1:9002"): ...

Three kinds of streams come, each one request's (docs/envoy.md):

- *body only*: one message with the body, answered with the priority;
- *observed*: the answer, as it passes; nothing is answered;
- *duplex* (FULL_DUPLEX_STREAMED, of the Gateway API inference extension): the body and the answer,
  of which Envoy passes on only what it is given back.

Fails open: where something goes wrong here, Envoy is told to change nothing, and its own
first-come key stays.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from pars.errors import ParsError
from pars.outcomes.metrics import ServeMetrics
from pars.ranking.live_ranker import LiveRanker
from pars.scheduling.dialects import DIRECT
from pars.scheduling.engines import engine_of_host
from pars.scheduling.stamping import reads_priority
from pars.serving.ext_proc import messages_pb2 as pb
from pars.serving.ext_proc.exchange import Exchange, Stamp, engine_side
from pars.serving.ext_proc.lifespan import live
from pars.serving.ext_proc.told import (
    DUPLEX,
    NAME_HEADER,
    change_of,
    headers_of,
    request_of,
    streamed,
)
from pars.serving.known_engine import KnownEngine
from pars.serving.middleware import PriorityMiddleware
from pars.serving.settings import Settings

log = logging.getLogger("pars")

METHOD = "envoy.service.ext_proc.v3.ExternalProcessor"
MAX_MESSAGE_BYTES = 64 << 20
UNSEEN_S = 10.0  # after which nobody looks at an answer: the observing filter is asked at once
GRACE_S = 5.0  # for streams in flight at shutdown; Envoy goes on without us


class ExtProcService:
    """
    One process of it; on one event loop.

    Args:
        ranker: Instead of the one that `settings` name.
        unseen_s: How long an answer is waited for that nobody begins to tell of.

    Attributes:
        middleware: Who decides, records and learns.
        waiting: Requests whose answers nobody tells of yet, by name.

    Raises:
        ParsError: keys of 32 bits, which have no room for Envoy's own first-come key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ranker: LiveRanker | None = None,
        metrics: ServeMetrics | None = None,
        unseen_s: float = UNSEEN_S,
    ) -> None:
        if settings.priority_bits != 64:
            raise ParsError("priority_bits: must be 64: Envoy's own key counts microseconds")
        self.settings = settings
        metrics = metrics or ServeMetrics()
        # An engine is not seen from here, so one that nobody named is a vLLM.
        known = KnownEngine(settings.named_engine or engine_of_host(), metrics)
        self.middleware = PriorityMiddleware(
            engine_side, settings, ranker=ranker, metrics=metrics, known=known
        )
        self.waiting: dict[str, Exchange] = {}
        self._unseen_s = unseen_s
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, address: str) -> AsyncIterator[int]:
        """Serve at `address`, host:port or unix:PATH; gives the port (1: a Unix socket)."""
        stages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        started = asyncio.Event()
        stages.put_nowait({"type": "lifespan.startup"})
        async with asyncio.TaskGroup() as group:
            group.create_task(live(self.middleware, engine_side, stages, started))
            await started.wait()
            server = grpc.aio.server(
                options=[
                    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                    ("grpc.so_reuseport", 0),
                ]
            )
            handler = grpc.stream_stream_rpc_method_handler(
                self.process,
                request_deserializer=pb.ProcessingRequest.FromString,
                response_serializer=pb.ProcessingResponse.SerializeToString,
            )
            generic = grpc.method_handlers_generic_handler(METHOD, {"Process": handler})
            server.add_generic_rpc_handlers([generic])
            try:
                try:
                    port = server.add_insecure_port(address)
                except RuntimeError:
                    raise ParsError(f"cannot listen on {address}: is it in use?") from None
                await server.start()
                yield port
            finally:
                await server.stop(GRACE_S)
                for exchange in list(self.waiting.values()):
                    exchange.end()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                stages.put_nowait({"type": "lifespan.shutdown"})

    def begin(self, told: Any, body: bytes, *, num_bytes: int) -> Exchange:
        """A request came: let the middleware decide about it."""
        exchange = Exchange(told.path, told.headers, told.peer, body, num_bytes=num_bytes)
        self.waiting[exchange.name] = exchange
        task = asyncio.create_task(self._run(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return exchange

    async def _run(self, exchange: Exchange) -> None:
        asyncio.get_running_loop().call_later(self._unseen_s, self._give_up, exchange.name)
        try:
            await exchange.run(self.middleware)
        except Exception as error:  # a fault of ours, and none of the request's
            log.warning("a request goes on as it came: %s: %s", type(error).__name__, error)
        finally:
            self.waiting.pop(exchange.name, None)

    def _give_up(self, name: str) -> None:
        exchange = self.waiting.pop(name, None)
        if exchange is not None:
            exchange.end()

    async def process(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One stream of Envoy's: one request."""
        conversation = Conversation(self)
        try:
            async for message in requests:
                async for answer in conversation.hear(message):
                    yield answer
        finally:
            conversation.close()


class Conversation:
    """What Envoy tells on one stream."""

    def __init__(self, service: ExtProcService) -> None:
        self._service = service
        self._exchange: Exchange | None = None
        self._told: Any = None
        self._body = bytearray()
        self._is_duplex = self._is_duplex_back = False
        self._has_answered = self._sees_answer = False

    async def hear(self, message: Any) -> AsyncIterator[Any]:
        """The answers to a message; none in observability mode."""
        if message.HasField("protocol_config"):
            modes = message.protocol_config
            self._is_duplex = modes.request_body_mode == DUPLEX
            self._is_duplex_back = modes.response_body_mode == DUPLEX
        kind = message.WhichOneof("request")
        if kind is None:
            return
        if message.observability_mode:
            self._watch(kind, message)
        elif kind == "request_headers":
            async for answer in self._request_head(message):
                yield answer
        elif kind == "request_body":
            async for answer in self._request_body(message):
                yield answer
        elif kind == "response_body" and self._is_duplex_back:
            self._watch(kind, message)
            for answer in streamed("response_body", message.response_body):
                yield answer
        else:
            if kind == "request_trailers" and self._is_duplex and not self._has_answered:
                async for answer in self._give_back(is_end=False):
                    yield answer
            self._watch(kind, message)
            answer = pb.ProcessingResponse()
            getattr(answer, kind).SetInParent()
            yield answer

    def close(self) -> None:
        """The stream is over."""
        if self._exchange is not None and self._sees_answer:
            self._exchange.end()

    async def _request_head(self, message: Any) -> AsyncIterator[Any]:
        self._told = request_of(message)
        if self._is_duplex and not message.request_headers.end_of_stream:
            return  # answered with the body read
        answer = pb.ProcessingResponse()
        answer.request_headers.SetInParent()
        self._has_answered = True
        yield answer

    async def _request_body(self, message: Any) -> AsyncIterator[Any]:
        it = message.request_body
        if self._told is None:
            self._told = request_of(message)
        if not self._is_duplex:
            stamp = await self._stamp(it.body, is_whole=it.end_of_stream)
            answer = pb.ProcessingResponse()
            answer.request_body.response.CopyFrom(self._change(stamp))
            yield answer
        elif self._has_answered:  # of a body beyond what is held
            for answer in streamed("request_body", it):
                yield answer
        else:
            self._body += it.body
            is_too_large = len(self._body) > self._service.settings.max_body_bytes
            if it.end_of_stream or is_too_large:
                async for answer in self._give_back(is_end=it.end_of_stream):
                    yield answer

    async def _give_back(self, *, is_end: bool) -> AsyncIterator[Any]:
        """The answer to the head, now that the body is read; then the body, as it is to be."""
        self._has_answered = True
        body = bytes(self._body)
        self._body.clear()
        stamp = await self._stamp(body, is_whole=is_end)
        self._sees_answer = True
        answer = pb.ProcessingResponse()
        change = self._change(stamp)
        if stamp.body is not None:
            change.ClearField("body_mutation")  # it comes in pieces
            # The body grows by a field; Envoy frames it anew.
            change.header_mutation.remove_headers.append("content-length")
        answer.request_headers.response.CopyFrom(change)
        yield answer
        whole = pb.HttpBody(body=stamp.body or body, end_of_stream=is_end)
        for answer in streamed("request_body", whole):
            yield answer

    def _change(self, stamp: Stamp) -> Any:
        name = None if self._exchange is None or self._is_duplex else self._exchange.name
        # A router goes by its dialect; an engine may read what we said in the body alone.
        is_alone = self._service.settings.dialect != DIRECT
        return change_of(stamp, name, is_alone=is_alone)

    async def _stamp(self, body: bytes, *, is_whole: bool) -> Stamp:
        """What is to be changed; nothing, where it is no generation or something goes wrong."""
        try:
            if not reads_priority(self._told.path.partition("?")[0]):
                return Stamp()
            most = self._service.settings.max_body_bytes
            num_bytes = len(body) if is_whole else max(len(body) + 1, most + 1)
            self._exchange = self._service.begin(self._told, body, num_bytes=num_bytes)
            if self._is_duplex:  # its answer comes on this stream
                self._service.waiting.pop(self._exchange.name, None)
            # The task is the request's and not this stream's: Envoy may have given up on us.
            return await asyncio.shield(self._exchange.stamp)
        except Exception as error:
            log.warning("a request goes on as it came: %s: %s", type(error).__name__, error)
            return Stamp()

    def _watch(self, kind: str, message: Any) -> None:
        """See the answer pass."""
        with suppress(Exception):  # recording is a favour
            if kind == "request_headers":
                named = dict(headers_of(message.request_headers)).get(NAME_HEADER, b"")
                name = named.decode("latin-1")
                self._exchange = self._service.waiting.pop(name, None)
                self._sees_answer = self._exchange is not None
            elif self._exchange is None or not self._sees_answer:
                return
            elif kind == "response_headers":
                headers = headers_of(message.response_headers)
                status = int(dict(headers).get(b":status", b"0"))
                self._exchange.begin(status, headers)
                if message.response_headers.end_of_stream:
                    self._exchange.piece(b"", is_last=True)
            elif kind == "response_body":
                it = message.response_body
                self._exchange.piece(it.body, is_last=it.end_of_stream)
            elif kind == "response_trailers":
                self._exchange.piece(b"", is_last=True)
