"""
The servers behind the gateway, one or several that do the same: each with its relay, its slots, and
a watch over what it is and whether it is well.
"""

import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from pars.scheduling.engines import EngineTold
from pars.serving.engine_watch import EngineWatch
from pars.serving.held.replica import Replica
from pars.serving.held.slots import Slots
from pars.serving.held.watch import keep_well
from pars.serving.known_engine import KnownEngine
from pars.serving.relay import Relay, RelayMetrics
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream


class Fleet:
    """
    Args:
        known: What they are; of several that differ, what all of them take.
        pauses_s: Between two looks at what a server is: while something changes, and else.

    Attributes:
        relays: To each server.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        settings: Settings,
        known: KnownEngine,
        registry: CollectorRegistry,
        pauses_s: tuple[float, float],
    ) -> None:
        self._is_asked = settings.engine not in ("vllm", "none")
        is_held = settings.hold == "on" or len(upstreams) > 1
        self._known = known
        self._told: dict[Replica, EngineTold] = {}
        self._watches: list[EngineWatch] = []
        self._upstreams = upstreams
        self._pauses_s = pauses_s
        metrics = RelayMetrics(registry)
        soon_s, settled_s = pauses_s
        self.relays: dict[Replica, Relay] = {}
        for upstream in upstreams:
            replica = Replica(Slots(settings.slots, time.monotonic), upstream.url)
            replica.slots.told = partial(self._told_of, replica, "slots")
            replica.slots.told_most = partial(self._told_of, replica, "most_slots")
            watch = EngineWatch(
                upstream,
                known,
                soon_s=soon_s,
                settled_s=settled_s,
                asks_slots=is_held and not settings.slots,
                on_told=partial(self._told.__setitem__, replica),
                is_last=partial(self._is_last, replica),
            )
            self._watches.append(watch)
            self.relays[replica] = Relay(upstream, metrics, on_failure=watch.doubt)

    def watch(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run as long as the gateway does."""
        # The upstream's own word counts, or may contradict the operator's.
        asking = [watch.keep_asking() for watch in self._watches] if self._is_asked else []
        if len(self.relays) == 1:
            return asking
        looking = [
            keep_well(upstream, replica, self._pauses_s)
            for upstream, replica in zip(self._upstreams, self.relays, strict=True)
        ]
        return [*asking, *looking]

    def _told_of(self, replica: Replica, name: str) -> int | None:
        told = self._told.get(replica)
        return None if told is None else getattr(told, name)

    def _is_last(self, replica: Replica) -> bool:
        """Whether no other is left; the told of one that is gone is forgotten."""
        self._told.pop(replica, None)
        return not self._told
