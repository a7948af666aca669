"""
Puts a request's priority where the engine looks for it, in a header or in the body; or takes the
client's own away, for an engine that is to get none.
"""

from collections.abc import Mapping
from contextlib import suppress

from pars.request.body import TOO_MUCH, HeldBody, Message, Receive, Scope
from pars.request.paths import UNGENERATING, plain, reads_parameters
from pars.request.prompts import reader_of
from pars.scheduling.body_fields import with_field, without_inner
from pars.scheduling.body_priority import PriorityAppender, with_priority, without_priority
from pars.scheduling.dialects import DIALECT_HEADERS, TOP, Number, Path, Standing
from pars.scheduling.engines import PRIORITY_HEADER, Engine

IN_PARAMETERS: Path = ("parameters", "priority")


def stamped(
    engine: Engine, scope: Scope, body: HeldBody, at: Standing, receive: Receive
) -> tuple[Scope, Receive]:
    """The request with its priority where the engine, or the router before it, looks for it."""
    if engine.dialect is not None:
        headers = [*scope["headers"], *engine.dialect.headers(at).items()]
        return _in_body(engine.dialect.fields(at), {**scope, "headers": headers}, body, receive)
    if engine.wants_header(scope["path"]):
        if body.outcome is None:
            # Its own field would not count, but a bad one is an error that speaks of priorities.
            scope, receive = unstamped(scope, body, receive)
        else:
            receive = body.replay(receive)
        headers = [*scope["headers"], (PRIORITY_HEADER, b"%d" % at.priority)]
        return {**scope, "headers": headers}, receive
    place = IN_PARAMETERS if reads_parameters(scope["path"]) else TOP
    return _in_body({place: at.priority}, scope, body, receive)


def _in_body(
    fields: Mapping[Path, Number], scope: Scope, body: HeldBody, receive: Receive
) -> tuple[Scope, Receive]:
    """The request with these fields, and without a priority of the client's own."""
    if body.outcome is None:
        with suppress(ValueError, RecursionError):  # no JSON object: the engine will say so
            content = body.content()
            if TOP not in fields:
                content = without_priority(content)
            # SGLang's door for Vertex AI has whatever path AIP_PREDICT_ROUTE says.
            may_be_inside = reads_parameters(scope["path"]) or not reads_priority(scope["path"])
            if may_be_inside and IN_PARAMETERS not in fields:
                content = without_inner(content, IN_PARAMETERS[0])
            for path, value in fields.items():
                content = (
                    with_priority(content, value)
                    if path == TOP
                    else with_field(content, path, value)
                )
            return _lengthened(scope, body.replace(content)), body.replay(receive)
    if body.outcome in TOO_MUCH:
        appender = PriorityAppender(fields.get(TOP, 0), only_over_own=TOP not in fields)
        receive = _appending(appender, body.replay(receive))
        return _lengthened(scope, appender.num_added_bytes), receive
    return scope, body.replay(receive)


def reads_priority(path: str) -> bool:
    """Whether engines read a priority in the body there, whatever the path does."""
    return reader_of(path) is not None or plain(path).endswith(UNGENERATING)


def unstamped(scope: Scope, body: HeldBody, receive: Receive) -> tuple[Scope, Receive]:
    """The request without any priority, the client's own included."""
    return _in_body({}, scope, body, receive)


def repeated(scope: Scope, content: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """A request that was stamped, once more: with its own `content`, but without any priority."""
    with suppress(ValueError, RecursionError):
        content = without_priority(content)
        if reads_parameters(scope["path"]):
            content = without_inner(content, IN_PARAMETERS[0])
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def replayed() -> Message:
        message = next(messages, None)
        return await receive() if message is None else message

    headers = [
        (name, b"%d" % len(content) if name == b"content-length" else value)
        for name, value in without(scope, DIALECT_HEADERS)["headers"]
    ]
    return {**scope, "headers": headers}, replayed


def _appending(appender: PriorityAppender, receive: Receive) -> Receive:
    async def appended() -> Message:
        message = await receive()
        if message["type"] != "http.request":
            return message
        more = message.get("more_body", False)
        try:
            piece = appender.feed(message.get("body", b""), is_last=not more)
        except ValueError:  # for the app the client has left: half a body is no request
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": more}

    return appended


def without(scope: Scope, names: frozenset[bytes]) -> Scope:
    """The scope without the headers called `names`."""
    headers = [header for header in scope["headers"] if header[0].lower() not in names]
    return scope if len(headers) == len(scope["headers"]) else {**scope, "headers": headers}


def _lengthened(scope: Scope, num_added_bytes: int) -> Scope:
    """The scope of a body that grew, where the client stated its length."""
    headers = [
        (name, b"%d" % (int(value) + num_added_bytes) if name == b"content-length" else value)
        for name, value in scope["headers"]
    ]
    return {**scope, "headers": headers}
