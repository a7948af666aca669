"""
What a gateway reads again without a restart, when it is told to (SIGHUP).

    reload = Reload({"the ranker": ranker.again, "the file of key offsets": decider.read_again})
    await reload.carry_out()

Each is read by itself: what cannot be read stays as it was, and the log says which is which.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from pars.errors import one_line

log = logging.getLogger("pars")


class Reload:
    """
    One gateway's. On its event loop.

    Args:
        parts: By name, as it stands in the log: reads one thing again, and says what it is now;
            raises where it cannot.
    """

    def __init__(self, parts: Mapping[str, Callable[[], Awaitable[str]]]) -> None:
        self._parts = parts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_wanted = asyncio.Event()

    def soon(self) -> None:
        """Have all read again; for a signal's handler or another thread. No loop yet: nothing."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._is_wanted.set)

    async def keep_waiting(self) -> None:
        """Carry out what is wanted, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            await self.carry_out()

    async def carry_out(self) -> None:
        """Read all again, one after the other."""
        if not self._parts:
            log.info("there is nothing to read again")
        for name, again in self._parts.items():
            try:
                log.info("read again: %s: %s", name, await again())
            except Exception as error:  # what serves goes on serving
                log.error("%s stays as it was: %s", name, one_line(error))
