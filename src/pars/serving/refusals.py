"""
Notices that an engine refuses a request for its priority, and repeats the request without.

    app = Passage(engine_app, known, budget, content)     # an ASGI app for one request

Engines without priority scheduling refuse in their own ways: vLLM before it had one scheduler for
all (0.6 to 0.9) with a 400, with 200 and an error as a stream's first event, or with a 500; SGLang
under --abort-on-priority-when-disabled with a 503. What they say is believed only if the request
fares better without a priority. So a client's own fault stays its own, byte for byte.

That a request fails and then does not may be its own doing as well: a picture that its server gives
at the second time of asking. So one client's word is not enough to turn the ordering off for all.
It takes the engine's: an error that speaks of priorities to a request that cannot have put the word
there; or the same seen by two callers. An engine that answered a request with a priority refuses
none (`KnownEngine.refuse`): there nothing is turned off, and only a request to which the engine
says so is repeated, for itself.
"""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network

from pars.request.body import ASGIApp, ByteBudget, Message, Receive, Scope, Send
from pars.scheduling.stamping import repeated
from pars.scheduling.trust import keys_in
from pars.serving.known_engine import Caller, KnownEngine
from pars.serving.replies import send_error

REFUSED = (400, 422)
FAILED = 500  # of an engine that never took a priority yet
UNAVAILABLE = 503
OF_SGLANG = b"priority is disabled"
MAX_HELD_BYTES = 64 * 1024  # of an answer that may be a refusal
MAX_EVENT_BYTES = 8 * 1024  # of the first event of a stream
# What of a body may come back in an error as "priority": the word, also escaped or in UTF-16, and
# whatever the engine fetches from elsewhere, whose server may have any words.
MAY_BE_ECHOED = (b"priority", b"\\u", b"\0", b"://", b"\\/", b"data:")
IPV6_NETWORK_BITS = 64  # of which one client has every address


class Passage:
    """
    The way of one request, which has a priority, to an engine that may refuse it for that.

    Args:
        budget: Of bodies that are kept until their engines begin to answer.
        content: The body as the client sent it; None: it is not held.
        checks_keys: Clients' keys are checked here, and so tell them apart.
    """

    def __init__(
        self,
        app: ASGIApp,
        known: KnownEngine,
        budget: ByteBudget,
        content: bytes | None,
        *,
        checks_keys: bool = False,
    ) -> None:
        self._app = app
        self._known = known
        self._checks_keys = checks_keys
        self._budget = budget
        self._content = content
        self._num_bytes = len(content or b"")
        if not budget.take(self._num_bytes):
            self._drop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and once more without its priority if it is refused for that."""
        first = _FirstAnswer(self._known, send, when_passing=self._drop)
        try:
            await self._app(dict(scope), receive, first.send)
            if not first.is_withheld:
                await first.let_go()
            elif self._content is not None:
                says_so = first.names_priority and not _may_be_echo(scope, self._content)
                if self._known.has_answered and not says_so:
                    # Without one it may go before everybody: nobody gets that by a flaky request.
                    await first.let_go()
                    return
                second = _SecondAnswer(send)
                await self._app(*repeated(scope, self._content, receive), second.send)
                if second.is_answer:
                    caller = _caller_of(scope, checks_keys=self._checks_keys)
                    self._known.refuse(first.status, caller, says_so=says_so)
                else:
                    self._known.fail_alike()
            elif first.names_priority and not self._known.engine.takes_header:
                self._known.suspect()
                why = "the engine refused the priority that was set for this request; repeat it"
                await send_error(send, UNAVAILABLE, "priority_refused", why)
            else:
                await first.let_go()
        finally:
            self._drop()

    def _drop(self) -> None:
        """Keep the body no longer."""
        self._budget.give_back(self._num_bytes)
        self._num_bytes, self._content = 0, None


class _FirstAnswer:
    """
    The answer to a request with a priority; one that may be a refusal is held back.

    Attributes:
        is_withheld: It is whole, may be a refusal, and nothing of it was sent on.
        names_priority: It is an error that speaks of priorities.
    """

    def __init__(self, known: KnownEngine, send: Send, *, when_passing: Callable[[], None]) -> None:
        self.status = 0
        self.is_withheld = self.names_priority = False
        self._known = known
        self._send = send
        self._when_passing = when_passing
        self._held: list[Message] = []
        self._is_stream = self._is_unreadable = self._passes = False

    async def send(self, message: Message) -> None:
        """Pass the message on, or hold it."""
        if self._passes:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._held.append(message)
            if not self._may_refuse(message):
                self._known.accept(self.status)
                await self.let_go()
        elif not self.is_withheld:
            self._held.append(message)
            if self._is_stream:
                await self._look_at_event(message)
            else:
                await self._look_at_error(message)

    async def let_go(self) -> None:
        """Send on what is held, and from now on everything as it comes."""
        self._passes = True
        self._when_passing()
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    def _may_refuse(self, start: Message) -> bool:
        self.status = start["status"]
        fields = {name.lower(): value.lower() for name, value in start.get("headers", ())}
        self._is_unreadable = fields.get(b"content-encoding", b"identity") != b"identity"
        self._is_stream = fields.get(b"content-type", b"").startswith(b"text/event-stream")
        if self.status == 200 and self._is_stream:
            # A header is no reason for an error: such streams begin there as they do here.
            return not (self._is_unreadable or self._known.engine.takes_header)
        return self.status in (*REFUSED, FAILED, UNAVAILABLE)

    async def _look_at_event(self, message: Message) -> None:
        """The first event of a stream: an error, or the answer."""
        text = self._text()
        is_last = not message.get("more_body", False)
        if b"\n\n" not in text and len(text) < MAX_EVENT_BYTES and not is_last:
            return
        if _is_error_event(text):
            self.is_withheld = self.names_priority = True
        else:
            self._known.accept(self.status)
            await self.let_go()

    async def _look_at_error(self, message: Message) -> None:
        text = self._text().lower()
        if len(text) > MAX_HELD_BYTES:
            await self.let_go()
        elif not message.get("more_body", False):
            self.names_priority = _names_priority(self.status, text)
            is_new = not self._known.is_proven and self.status in (*REFUSED, FAILED)
            is_unreadable = self._is_unreadable and self.status in REFUSED
            self.is_withheld = self.names_priority or is_new or is_unreadable
            if not self.is_withheld:
                await self.let_go()

    def _text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._held[1:])


class _SecondAnswer:
    """The answer to the request without a priority, which passes on at once."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._text = b""

    async def send(self, message: Message) -> None:
        """Pass the message on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif len(self._text) < MAX_EVENT_BYTES:
            self._text += message.get("body", b"")
        await self._send(message)

    @property
    def is_answer(self) -> bool:
        """
        Whether the priority was what the first one was refused for: without it the request is
        answered. An error that only speaks of priorities may echo what the client wrote.
        """
        return 200 <= self._status < 400 and not _is_error_event(self._text)


def _caller_of(scope: Scope, *, checks_keys: bool) -> Caller:
    """
    Who sent a request: the keys it shows where keys are checked here, for a client can make up
    others; else its address.
    """
    if checks_keys:
        return frozenset(keys_in(scope["headers"]))
    host = scope["client"][0] if scope.get("client") else ""
    if ":" in host:
        with suppress(ValueError):
            address = host.partition("%")[0]
            host = str(ip_network(f"{address}/{IPV6_NETWORK_BITS}", strict=False))
    return frozenset((host.encode(),))


def _may_be_echo(scope: Scope, content: bytes) -> bool:
    """Whether an error to this request may speak of priorities because the request does."""
    query = scope["query_string"]
    path = scope["path"].encode("utf-8", "replace")
    said = b"\n".join((path, query, *(value for _, value in scope["headers"]))).lower()
    if b"priority" in said or b"%" in query:
        return True
    content = content.lower()
    return any(it in content for it in MAY_BE_ECHOED)


def _is_error_event(text: bytes) -> bool:
    """Whether a stream begins with an error that speaks of priorities."""
    event = text.split(b"\n\n", 1)[0].lower()
    return event.startswith(b"data:") and b'"error"' in event and b"priority" in event


def _names_priority(status: int, text: bytes) -> bool:
    """Whether an error of that `status` speaks of priorities; `text` in lower case."""
    if status in REFUSED:
        return b"priority" in text
    return status == UNAVAILABLE and OF_SGLANG in text
