"""
A client's own priority, on the paths where pars sets none: it is taken out of the body.

Engines read one on more paths than those that generate: of embeddings, of scores. On those
(`paths.UNGENERATING`), and at a known engine on any other path that gets JSON, the body passes
without it, and every other byte as it came.
"""

from pars.request.body import TOO_MUCH, ASGIApp, HeldBody, Receive, Scope, Send
from pars.request.paths import METHODS, reads_parameters
from pars.scheduling.body_priority import may_append
from pars.scheduling.engines import Engine
from pars.scheduling.stamping import reads_priority, unstamped
from pars.serving.asked import beside_loop
from pars.serving.replies import send_error

NO_JSON = (b"multipart/", b"application/octet-stream", b"image/", b"audio/", b"video/")
NOT_UTF8 = "a large body must be UTF-8 (RFC 8259, section 8.1): this one has another encoding"
CODED = "a compressed body cannot be read here: send it as it is"
NOT_HELD = "too large to be read here, which this path needs: PARS_MAX_BODY_BYTES is the bound"


def may_have_own(scope: Scope, engine: Engine) -> bool:
    """Whether a request that generates nothing may have a priority that the engine reads."""
    kinds = [value.lower() for name, value in scope["headers"] if name.lower() == b"content-type"]
    kind = next(iter(kinds), b"")
    if scope["method"] not in METHODS or kind.startswith(NO_JSON):
        return False
    is_known = engine.takes_priority and engine.dialect is None
    return reads_priority(scope["path"]) or (is_known and b"json" in kind)


async def pass_without_own(
    app: ASGIApp, engine: Engine, body: HeldBody, scope: Scope, receive: Receive, send: Send
) -> None:
    """Hand a request on without any priority of its own; `body` is not taken yet."""
    await body.take(receive)
    if await is_refused(engine, body, scope, send):
        return
    scope, receive = await beside_loop(body.num_bytes, unstamped, scope, body, receive)
    await app(scope, receive, send)


async def is_refused(engine: Engine, body: HeldBody, scope: Scope, send: Send) -> bool:
    """Whether the body cannot be read, so that a client's own priority would pass."""
    takes_body = engine.takes_priority and not engine.wants_header(scope["path"])
    if takes_body and any(_is_coding(*field) for field in scope["headers"]):
        await send_error(send, 415, "unsupported_encoding", CODED)
        return True
    if body.outcome not in TOO_MUCH or engine.wants_header(scope["path"]):
        return False
    if not may_append(body.content()):
        await send_error(send, 415, "unsupported_encoding", NOT_UTF8)
        return True
    if engine.takes_priority and reads_parameters(scope["path"]):
        await send_error(send, 413, "body_too_large", NOT_HELD)
        return True
    return False


def _is_coding(name: bytes, value: bytes) -> bool:
    """Whether a field says that the body is compressed; SGLang has one of its own for that."""
    name = name.lower().replace(b"_", b"-")
    if name == b"content-encoding":
        return value.strip().lower() not in (b"", b"identity")
    return name == b"x-body-compressed"
