"""
The two pages that orchestrators ask: does the process answer, and may it be sent requests.

    /pars/live     200 while the process answers
    /pars/ready    200 once the engine has answered, 503 and the reason until then

Both tell no more than that, so they want no API key; neither is passed on to the engine, nor held.
A process that answers has loaded what was learned: that is done before it listens.

Once ready it stays so: the engine has a probe of its own, and a gateway tells clients better than a
closed port that its engine is gone. What is the matter now is on /pars/health.
"""

from collections.abc import Awaitable, Callable

from pars.request.body import ASGIApp, Message, Scope, Send
from pars.serving.replies import send_json

LIVE_PATH, READY_PATH = "/pars/live", "/pars/ready"
PROBE_PATHS = frozenset((LIVE_PATH, READY_PATH))
NOT_STORED = [(b"cache-control", b"no-store")]


class Probes:
    """
    One server's.

    Args:
        problem: Why the engine has not answered, asked until it has; empty: it did. Gets the scope
            of the request for the page.
    """

    def __init__(self, problem: Callable[[Scope], Awaitable[str]]) -> None:
        self._problem = problem
        self._is_ready = False

    async def answer(self, scope: Scope, send: Send) -> None:
        """Answer one of PROBE_PATHS."""
        if scope["path"] == LIVE_PATH:
            await send_json(send, 200, {"status": "live"}, more=NOT_STORED)
            return
        reason = "" if self._is_ready else await self._problem(scope)
        self._is_ready = not reason
        told = {"status": "not ready", "reason": reason} if reason else {"status": "ready"}
        await send_json(send, 503 if reason else 200, told, more=NOT_STORED)


async def problem_of_host(app: ASGIApp, scope: Scope) -> str:
    """Why the server in whose process we are is not well, by its own /health; empty: it is."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def see(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asked = {"method": "GET", "path": "/health", "raw_path": b"/health", "query_string": b""}
    try:
        await app({**scope, **asked, "headers": []}, receive, see)
    except Exception as error:  # vLLM's, whose engine has died
        return f"/health of this server fails: {type(error).__name__}"
    if statuses and statuses[0] < 500:
        return ""
    return f"/health of this server answers HTTP {statuses[0] if statuses else 'nothing'}"
