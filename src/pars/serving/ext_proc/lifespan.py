"""The middleware's upkeep where no server runs it: an ASGI lifespan by hand."""

import asyncio
from typing import Any

from pars.request.body import ASGIApp, Receive, Scope, Send
from pars.serving.middleware import PriorityMiddleware


async def live(
    middleware: PriorityMiddleware,
    app: ASGIApp,
    stages: "asyncio.Queue[dict[str, Any]]",
    started: asyncio.Event,
) -> None:
    """
    Run the middleware before `app`, from the first of `stages` (startup) to the second (shutdown).

    It starts its upkeep before the app hears of it, and ends it after.
    """

    async def by_kind(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        started.set()
        await receive()

    middleware.app = by_kind
    await middleware({"type": "lifespan"}, stages.get, _ignore)


async def _ignore(message: Any) -> None:
    """What the lifespan answers."""
