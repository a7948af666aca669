"""
What is known of the engine at this moment, and so how the next request's priority is set.

    known = KnownEngine(named=None, metrics=metrics)      # None: it is to be asked
    known.hear(told)          # it, or one of several behind its address, told what it is
    known.refuse(400, caller, says_so=True)   # it refused a request for its priority
    known.engine              # ENGINES["none"] while it is not known, or refuses

Whoever does not know sets no priority: an engine is never sent what it refuses, and a client's own
never counts. `engine_watch` does the asking.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pars.outcomes.metrics import ServeMetrics
from pars.scheduling.engines import FOREIGN, NONE, Engine, EngineTold, common, contradictions

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

NOT_KNOWN, REFUSES_PRIORITIES = "not known yet", "refuses priorities"
LEAST_ANSWERS = 3  # before several servers behind one address are ruled out
# A server that told something else is taken to be gone after so many answers without it; one that
# came back after that is one of several, and seldom asked by chance.
MOST_MISSES, MOST_MISSES_OF_SEVERAL = 6, 200
MOST_FRUITLESS = 8  # repeats in a row
TRIED_AGAIN_S = 600.0  # an engine that refused may have been started anew unseen
MOST_CALLERS = 16  # that are remembered

Caller = frozenset[bytes]  # whatever a request may be known by again

REFUSES = (
    "the engine REFUSES priorities (HTTP %d): requests are repeated and passed on without, first"
    " come first served. vLLM needs --scheduling-policy priority, SGLang"
    " --enable-priority-scheduling"
)


@dataclass(slots=True)
class _Server:
    """One of the servers that answered at the engine's address."""

    told: EngineTold
    num_misses: int = 0
    is_one_of_several: bool = False


class KnownEngine:
    """
    The engine behind a door. On one event loop.

    Args:
        named: The operator's word for it, which always counts; None: it is to be asked.

    Attributes:
        told: What it told last, or what suits all of several servers.
        warnings: What is to be changed there, each with how.
        has_answered: It has answered a request that had a priority.
        is_proven: The same, or it has failed without a priority as well as with one: then an error
            that does not speak of priorities is not doubted.
        is_suspect: It may refuse priorities, as it said to one whose request cannot be repeated:
            until one is answered with a priority, such requests go without.
        when_new: Called when another engine may be there.
    """

    def __init__(
        self,
        named: Engine | None,
        metrics: ServeMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.named = named
        self.told: EngineTold | None = None
        self.warnings: tuple[str, ...] = ()
        self.is_proven = self.is_suspect = self.has_answered = False
        self.when_new: Callable[[], None] = lambda: None
        self._num_fruitless = 0
        self._metrics = metrics
        self._clock = clock
        self._servers: dict[str, _Server] = {}
        self._gone: set[str] = set()
        self._num_heard = 0
        self._refused_s: float | None = None
        self._refused: list[Caller] = []  # since it was new, each without the engine's word

    @property
    def is_known(self) -> bool:
        """Whether it has been named, or has told what it is."""
        return self.named is not None or self.told is not None

    @property
    def is_settled(self) -> bool:
        """Whether all recent answers were the same, or differ for good."""
        differ = len(self._servers) > 1
        return self._num_heard >= LEAST_ANSWERS and (
            not differ or all(it.is_one_of_several for it in self._servers.values())
        )

    @property
    def refuses(self) -> bool:
        """Whether it lately refused a request for its priority."""
        return self._refused_s is not None and self._clock() - self._refused_s < TRIED_AGAIN_S

    @property
    def is_foreign(self) -> bool:
        """Whether it tells nothing of itself."""
        return self.told is FOREIGN

    @property
    def engine(self) -> Engine:
        """How to set the next request's priority."""
        if self.refuses:
            return NONE
        told = self.told.engine if self.told else NONE
        if self.named is not None:
            return replace(self.named, is_preempting=True) if told.is_preempting else self.named
        return told

    def engine_for(self, *, is_held: bool) -> Engine:
        """How to set a request's, whose body is held or passes by."""
        return NONE if self.is_suspect and not is_held else self.engine

    @property
    def state(self) -> str:
        """In a word, for people: the engine's name, or why there is none."""
        if not self.is_known:
            return NOT_KNOWN
        return REFUSES_PRIORITIES if self.refuses else self.engine.name

    def hear(self, told: EngineTold) -> None:
        """One answer to what it is; several servers behind one address may answer in turn."""
        self._num_heard += 1
        if told.release not in self._servers:
            self.falter()  # an update, or a start
            self.when_new()
        for release, server in list(self._servers.items()):
            server.num_misses += 1
            most = MOST_MISSES_OF_SEVERAL if server.is_one_of_several else MOST_MISSES
            if server.num_misses >= most and release != told.release:
                del self._servers[release]
                self._gone.add(release)
        is_back = told.release in self._gone
        if is_back:
            for server in self._servers.values():
                server.is_one_of_several = True
        before = self._servers.pop(told.release, None)  # the latest stands last
        is_one_of_several = is_back or (before is not None and before.is_one_of_several)
        self._servers[told.release] = _Server(told, is_one_of_several=is_one_of_several)
        self._take(common([it.told for it in self._servers.values()]))

    def lose(self) -> None:
        """Nobody listens at its address: what comes back may be another."""
        self._servers.clear()
        self._gone.clear()
        self._num_heard = 0
        self.told = None
        self.falter()
        self.when_new()

    def falter(self) -> None:
        """It does not answer as it did; if it was started anew, then perhaps with other options."""
        self.is_proven = self.is_suspect = self.has_answered = False
        self._num_fruitless = 0
        self._refused = []
        self._take_back()

    def accept(self, status: int) -> None:
        """It answered `status` to a request that had a priority."""
        if 200 <= status < 300:
            self.is_proven = self.has_answered = True
            self.is_suspect = False
            self._take_back()

    def fail_alike(self) -> None:
        """A request that failed with a priority failed without it, too."""
        self._num_fruitless += 1
        self.is_proven |= self._num_fruitless >= MOST_FRUITLESS

    def suspect(self) -> None:
        """It spoke of priorities to a request that cannot be repeated: nobody knows why."""
        self.is_suspect = not self.has_answered

    def refuse(self, status: int, caller: Caller, *, says_so: bool) -> None:
        """
        It answered `status` to a request with a priority, and without one it answered that.

        No single client can have it taken for one that refuses: another must have met the same, or
        the engine says so. One that answered a request with a priority is not taken for such.

        Args:
            says_so: It spoke of priorities, and the client cannot have put the word there.
        """
        self._metrics.refusals.inc()
        is_alone = not any(it.isdisjoint(caller) for it in self._refused)
        self._refused = [*self._refused[1 - MOST_CALLERS :], caller]
        if self.has_answered or (is_alone and not says_so):
            return
        if not self.refuses:
            log.error(REFUSES, status)
        self._refused_s = self._clock()
        self._metrics.priority_scheduling.set(0)

    def _take_back(self) -> None:
        """It is taken for one that refuses no longer."""
        if self._refused_s is not None:
            self._refused_s = None
            self._metrics.priority_scheduling.set(-1)

    def _take(self, told: EngineTold) -> None:
        before, self.told = self.told, told
        if self.named is None:
            warnings = told.warnings
            if before is None or before.line != told.line:
                is_well = told.engine.takes_priority or told.slots is not None
                level = logging.INFO if is_well else logging.WARNING
                log.log(level, "the upstream is %s%s", told.line, _waits_here(told))
        else:
            warnings = (*contradictions(self.named, told), *told.warnings)
        for warning in warnings:
            if warning not in self.warnings:
                log.warning("%s", warning)
        self.warnings = tuple(warnings)


def _waits_here(told: EngineTold) -> str:
    """That it is well that an engine takes none, where it tells how many it answers at once."""
    if told.engine.takes_priority or told.slots is None:
        return ""
    return ": the gateway holds the queue for it, unless --hold off"
