"""Several endpoints before one list of what is to be asked: whoever has room takes the next."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pars.learn.collect.client import Asker
from pars.learn.collect.prompts import Prompt


@dataclass(slots=True, eq=False)
class Endpoint:
    """
    One that is asked.

    Attributes:
        next_s: When it may be asked again, by the rate and its Retry-After.
        num_failed: In a row, without an answer of use.
        left_out: Why it is asked no more.
    """

    url: str
    ask: Asker
    next_s: float = 0.0
    num_failed: int = 0
    left_out: str | None = None


class Asked(NamedTuple):
    """
    One answer that is wanted.

    Attributes:
        attempt: How often it was asked for in vain.
        failed_at: The endpoints where.
    """

    prompt: Prompt
    sample: int
    attempt: int = 0
    failed_at: frozenset[Endpoint] = frozenset()


class Tasks:
    """
    What is to be asked: each taken by one worker, and given back where its endpoint fails.

    Attributes:
        done: Nothing is left, and nothing is out that could come back.
    """

    def __init__(self, wanted: Iterable[Asked], endpoints: Collection[Endpoint]) -> None:
        self.done = asyncio.Event()
        self._rest = iter(wanted)
        self._back: list[Asked] = []
        self._endpoints = endpoints
        self._num_out = 0
        self._changed = asyncio.Event()

    async def take(self, at: Endpoint) -> Asked | None:
        """The next for this endpoint, perhaps after a wait; None: nothing is left."""
        while True:
            asked = next((it for it in self._back if self._suits(it, at)), None)
            if asked is not None:
                self._back.remove(asked)
            else:
                asked = next(self._rest, None)
            if asked is not None:
                self._num_out += 1
                return asked
            if not self._num_out and not self._back:
                self.done.set()
                return None
            self._changed.clear()
            await self._changed.wait()

    def settle(self) -> None:
        """One that was taken is done with."""
        self._num_out -= 1
        self._changed.set()

    def give_back(self, asked: Asked) -> None:
        """One that was taken is for another endpoint."""
        self._back.append(asked)
        self.settle()

    def _suits(self, asked: Asked, at: Endpoint) -> bool:
        """Not where it failed, as long as there is an endpoint where it did not."""
        others = (it for it in self._endpoints if it not in asked.failed_at and not it.left_out)
        return at not in asked.failed_at or not any(others)
