"""
Asks the engine what it is until it answers, and again and again, since it may come back changed.

    watch = EngineWatch(upstream, known)
    asyncio.create_task(watch.keep_asking())
    watch.doubt(error)   # a request failed: ask now
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pars.scheduling.engines import (
    FOREIGN,
    EngineTold,
    told_by_props,
    told_by_server_info,
    told_by_version,
    vllm_slots,
)
from pars.serving.answer import UpstreamError
from pars.serving.header_fields import Headers
from pars.serving.known_engine import NOT_KNOWN, KnownEngine
from pars.serving.upstream import Upstream

log = logging.getLogger("pars")

SOON_S = 0.5
# Between two looks, in the end.
MOST_S: dict[str, float] = {"gone": 2.0, "no answer": 5.0, "foreign": 10.0}
NUM_FOREIGN, FOREIGN_S = 60, 60.0  # after so many looks it will hardly become an engine
SETTLED_S = 10.0
NOT_NOW = (408, 425, 429)  # and 5xx: a server that starts or is busy says no more
UNREACHABLE = ("upstream_unreachable", "upstream_closed")


class NotTold(Exception):
    """The engine did not tell what it is. `is_gone`: nobody listens there."""

    def __init__(self, reason: str, *, is_gone: bool = False) -> None:
        super().__init__(reason)
        self.is_gone = is_gone


async def ask_engine(
    upstream: Upstream, headers: Headers | None = None, *, asks_slots: bool = False
) -> EngineTold:
    """
    What the upstream is, by the pages that only vLLM, SGLang or llama.cpp has.

    Args:
        headers: To send along, such as a key.
        asks_slots: Of vLLM, too, how many requests it answers at once.

    Raises:
        NotTold: it does not say for now, and why.
    """
    told = told_by_version(await _page(upstream, b"/version", headers))
    if told is not None and asks_slots:
        most = vllm_slots(await _page(upstream, b"/server_info?config_format=json", headers))
        told = replace(told, most_slots=most)
    for path in (b"/server_info", b"/get_server_info"):
        if told is None:
            told = told_by_server_info(await _page(upstream, path, headers))
    if told is None:
        told = told_by_props(await _page(upstream, b"/props", headers))
    return told or FOREIGN


async def _page(upstream: Upstream, path: bytes, headers: Headers | None) -> dict[str, Any]:
    """A page that is a JSON object; empty where there is none."""
    try:
        status, body = await upstream.get(path, headers=headers)
    except UpstreamError as error:
        raise NotTold(str(error), is_gone=error.code in UNREACHABLE) from error
    name = path.decode()
    if status in (401, 403):
        raise NotTold(f"{name} asks for a key (HTTP {status}): --engine names it as well")
    if status in NOT_NOW or status >= 500:
        raise NotTold(f"{name} answers HTTP {status}")
    with suppress(ValueError, RecursionError):
        page = json.loads(body)
        if status == 200 and isinstance(page, dict):
            return page
    return {}


class EngineWatch:
    """
    Keeps a `KnownEngine` known.

    Args:
        soon_s: Between looks while something changes; without an answer the pause doubles from
            there, up to what `MOST_S` says.
        settled_s: Between looks while all is as it was.
        asks_slots: Whether somebody wants to know how many requests it answers at once.
        on_told: Called with each answer.
        is_last: Whether no other server is known that does the same: if this one is gone, what is
            known is.
    """

    def __init__(
        self,
        upstream: Upstream,
        known: KnownEngine,
        *,
        soon_s: float = SOON_S,
        settled_s: float = SETTLED_S,
        asks_slots: bool = False,
        on_told: Callable[[EngineTold], None] = lambda told: None,
        is_last: Callable[[], bool] = lambda: True,
    ) -> None:
        self._upstream = upstream.asked_afresh()
        self._known = known
        self._soon_s = soon_s
        self._settled_s = settled_s
        self._asks_slots = asks_slots
        self._on_told = on_told
        self._is_last = is_last
        self._doubt = asyncio.Event()
        self._seen = ""  # at the last look: "gone", "foreign" ...
        self._num_alike = 0  # looks in a row at which that was seen
        self._reason = ""

    def doubt(self, error: UpstreamError) -> None:
        """A request got no whole answer: what is known of the engine may be true no longer."""
        if error.code == UNREACHABLE[0]:
            self._lose()
        self._doubt.set()

    async def keep_asking(self) -> None:
        """Ask for ever."""
        async with self._upstream:
            while True:
                pause_s = self._pause_s(await self._look())
                await asyncio.sleep(min(pause_s, self._soon_s))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._doubt.wait(), pause_s - self._soon_s)
                self._doubt.clear()

    async def _look(self) -> str:
        """Ask once; what was seen, in a word."""
        try:
            told = await ask_engine(self._upstream, asks_slots=self._asks_slots)
            self._known.hear(told)
            self._on_told(told)
        except NotTold as error:
            if error.is_gone:
                self._lose()
            else:
                self._known.falter()
            self._say(str(error))
            return "gone" if error.is_gone else "no answer"
        except Exception as error:  # a fault of ours must not end the asking
            self._say(f"{type(error).__name__}: {error}")
            return "no answer"
        self._reason = ""
        if self._known.is_foreign:
            return "foreign"
        return "settled" if self._known.is_settled else "changing"

    def _lose(self) -> None:
        if self._is_last():
            self._known.lose()

    def _pause_s(self, seen: str) -> float:
        self._num_alike = self._num_alike + 1 if seen == self._seen else 0
        self._seen = seen
        if seen == "foreign" and self._num_alike > NUM_FOREIGN:
            return FOREIGN_S
        if seen in MOST_S:
            return min(self._soon_s * 2.0 ** min(self._num_alike, 16), MOST_S[seen])
        return self._settled_s if seen == "settled" else self._soon_s

    def _say(self, reason: str) -> None:
        """Once for each reason, and only where the answer is needed."""
        if self._known.named is None and reason != self._reason:
            self._reason = reason
            log.warning("what the upstream is, is %s: %s; asked again", NOT_KNOWN, reason)
