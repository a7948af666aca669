"""Whether this process is late: what its event loop sees happened earlier than it seems."""

import asyncio
import math
import time

EVERY_S = 0.02
MOST_LATE_S = 0.05  # of a moment that is to be known well


class Lateness:
    """Of one event loop; where nobody keeps looking it is never late."""

    def __init__(self) -> None:
        self._due_s = math.inf
        self._last_s = 0.0

    @property
    def is_late(self) -> bool:
        """Whether what happens at this moment is seen too late to say when it happened."""
        return max(self._last_s, time.perf_counter() - self._due_s) > MOST_LATE_S

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        while True:
            self._due_s = time.perf_counter() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._last_s = time.perf_counter() - self._due_s
