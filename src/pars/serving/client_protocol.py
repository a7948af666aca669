"""
uvicorn's HTTP/1.1 protocol, strict and bounded, for a port that faces clients.

uvicorn and its parser leave open what a relay must not: how a body is framed when a request says it
twice, an offer to upgrade (which stops the parser for good), trailers (which become fields of the
head), and how much and how long a client may send without getting anywhere. Here a request that
leaves a doubt gets a 400 and ends its connection, as RFC 9112 asks for.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pars.serving.request_heads import doubt_of, without_upgrade
from pars.serving.until_close import UntilClose

MAX_OVERHEAD_BYTES = 64 * 1024  # that are not body, without a byte of body between
MOST_PIPELINED = 64  # requests that came before the answers to those before them
MAX_DROPPED_BYTES = 1 << 20  # that still come after a refusal
PIECE_BYTES = 16 * 1024  # what the parser gets at once, so that it cannot pass the bound by much
HEAD_TIMEOUT_S = 20.0  # from the first byte of a head, or of its connection, to its end
BODY_TIMEOUT_S = 60.0  # without a byte of a body that the client announced
READ_TIMEOUT_S = 300.0  # without the client taking a byte of an answer that waits for it
LINGER_S = 2.0  # for a client to read the last answer before its connection is closed

REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class ClientProtocol(HttpToolsProtocol):
    """
    One connection of a client's.

    Attributes:
        head_timeout_s, body_timeout_s, read_timeout_s, linger_s: As the constants above.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    body_timeout_s = BODY_TIMEOUT_S
    read_timeout_s = READ_TIMEOUT_S
    linger_s = LINGER_S

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._num_overhead_bytes = 0
        self._num_owed = 0  # answers
        self._is_in_head = self._is_in_body = False
        self._is_deaf = False
        self._refusal: bytes | None = None  # that waits for the answers owed before it
        self._timer: asyncio.TimerHandle | None = None  # of what the client is to send
        self._reader_timer: asyncio.TimerHandle | None = None  # of what it is to take

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        self._stop_timer()
        self._stop_reader_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._num_overhead_bytes += len(data)
            if self._num_overhead_bytes > MAX_DROPPED_BYTES:
                self.transport.close()
            return
        for start in range(0, len(data), PIECE_BYTES):
            self._take(data[start : start + PIECE_BYTES])
            if self._is_deaf or self.transport.is_closing():
                return
            if self._num_overhead_bytes > MAX_OVERHEAD_BYTES:
                self._refuse(431, "a request's head, trailers or chunk extensions without end")
                return
        self._await_the_rest()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self.loop.call_later(self.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def _take(self, piece: bytes) -> None:
        """Parse a piece; an offer to upgrade is taken out of its request, which then goes on."""
        self._num_overhead_bytes += len(piece)
        self._unset_keepalive_if_required()
        while piece and not self._is_deaf:
            try:
                self.parser.feed_data(piece)
                return
            except httptools.HttpParserUpgrade as upgrade:
                piece = self._head_without_upgrade() + piece[upgrade.args[0] :]
                self._new_parser()
            except httptools.HttpParserError as error:
                if not self._is_deaf:  # else it is our own refusal that ended the parser
                    self._refuse(400, f"no valid HTTP: {error}")

    def _head_without_upgrade(self) -> bytes:
        """The head just read, less its offer to go on in another protocol."""
        head = [b"%s %s HTTP/%s\r\n" % (self._method, self.url, self._version.encode())]
        head += [b"%s: %s\r\n" % field for field in without_upgrade(self.headers)]
        return b"".join(head) + b"\r\n"

    def _new_parser(self) -> None:
        """As uvicorn makes it: what comes after a last request is ignored, and it is answered."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # What the parser found

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        self._method = self.parser.get_method()
        self._version = self.parser.get_http_version()
        problem = doubt_of(self._method, self.url, self._version, self.headers)
        if not problem and len(self.pipeline) >= MOST_PIPELINED:
            problem = "too many requests that were sent before their turn"
        if problem:
            self._refuse(400, problem)
            raise ValueError(problem)  # ends the parser
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self.headers = []  # where trailers go, which never become fields of the head
        self._is_in_head, self._is_in_body = False, True
        self._num_owed += 1
        self._stop_timer()
        if self._version == "1.0":
            cycle = self.cycle
            cycle.send = UntilClose(cycle).send  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        self._num_overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_in_body:  # an offer to upgrade: the request is still to be parsed
            return
        self._num_overhead_bytes = 0
        self._is_in_body = False
        self._stop_timer()
        super().on_message_complete()
        if self.cycle.response_complete and not self._num_owed:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        self._num_owed -= 1
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._refusal is not None and not self._num_owed:
            self._write_last(self._refusal)
        elif self._is_in_body and not self._num_owed:
            # The answer came before the end of the body: a moment for what is under way, no more.
            self._stop_timer()
            self._unset_keepalive_if_required()
            self._timer = self.loop.call_later(self.linger_s, self.transport.close)

    # Refusing, and leaving

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is being parsed with an error, after what is owed before; then close."""
        self._is_deaf = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        text = message.encode()
        refusal = (
            b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s"
        ) % (status, REASONS[status], len(text), text)
        if self._is_in_body and self.cycle.response_complete:
            self.transport.close()
            return
        if self._is_in_body and self.cycle.response_started:
            self.transport.abort()
            return
        if self._is_in_body:
            self._give_up(self.cycle)
        if self._num_owed:
            self._refusal = refusal
        else:
            self._write_last(refusal)

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        """Owe no answer to a request whose body is at fault."""
        self._num_owed -= 1
        for entry in [entry for entry in self.pipeline if entry[0] is cycle]:
            self.pipeline.remove(entry)
        cycle.disconnected = True  # for the app the client has left
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()

    def _write_last(self, refusal: bytes) -> None:
        """Write it and close, with a moment for the client to read it (RFC 9112, section 9.6)."""
        self._is_deaf = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()  # what still comes is dropped: left unread, it would reset
        self.transport.write(refusal)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(self.linger_s, self.transport.close)

    # Time

    def _await_the_rest(self) -> None:
        """Have a timer for what is still to come, if anything is; most requests come at once."""
        if self._is_in_body:
            self._last_byte_s = self.loop.time()
            if self._timer is None:
                self._timer = self.loop.call_later(self.body_timeout_s, self._look_at_body)
        elif self._timer is None and (self._is_in_head or not self._num_owed):
            self._await_head()  # not owed: an empty line, which may begin a request

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._give_up_head)

    def _give_up_head(self) -> None:
        if self._num_owed:  # of requests that came before it on this connection
            self._refuse(408, f"no whole head within {self.head_timeout_s:g} seconds")
        else:
            self.transport.close()

    def _look_at_body(self) -> None:
        """End a body that stopped coming, unless it is we who do not read it."""
        now_s = self.loop.time()
        if self.flow.read_paused:
            self._last_byte_s = now_s
        left_s = self._last_byte_s + self.body_timeout_s - now_s
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look_at_body)
        else:
            self._refuse(408, f"no byte of the body for {self.body_timeout_s:g} seconds")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
