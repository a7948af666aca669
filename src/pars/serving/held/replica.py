"""One server behind the held queue: how much of it is taken, and whether it is well."""

import math
from dataclasses import dataclass, field

from pars.serving.held.slots import Caller, Sent, Slots

MOST_REFUSED = 16  # that are remembered
UNKNOWN_SLOTS = 8  # of a server that was never seen full, where it is weighed against another


@dataclass(slots=True, eq=False)
class Replica:
    """
    Attributes:
        name: Its URL, for people.
        problem: Why it gets nothing as long as another is well; empty: it is well.
        num_heard: Pieces of answers that came from it.
        paused_until_s: It asked for that, or was busy.
        refused: Requests that it sent back since it last took one, each with its caller.
    """

    slots: Slots
    name: str = ""
    problem: str = ""
    num_heard: int = 0
    paused_until_s: float = -math.inf
    refused: list[tuple[object, Caller]] = field(default_factory=list)

    @property
    def load(self) -> float:
        """What is taken of its slots: servers are weighed by these."""
        return self.slots.num_sent / (self.slots.num or UNKNOWN_SLOTS)

    def has_room(self, now_s: float) -> bool:
        """Whether another request may be sent."""
        return self.slots.has_room and now_s >= self.paused_until_s

    def refuses_all(self, sent: Sent, request: object) -> bool:
        """
        Whether it has no room, as far as can be told, once it sent back `request`.

        It may be that only its caller has asked for too much, or that only this one cannot be
        served. Then others are answered meanwhile. So it takes another's request, of whom no key is
        the same, and nobody answered in between.
        """
        others = (keys for known, keys in self.refused if known is not request)
        refuses = any(keys.isdisjoint(sent.caller) for keys in others)
        self.refused = [*self.refused[-MOST_REFUSED:], (request, sent.caller)]
        return refuses


@dataclass(slots=True, eq=False)
class Turn:
    """A request's turn: where it goes, and as what it is counted there."""

    replica: Replica
    sent: Sent


def well(replicas: list[Replica]) -> list[Replica]:
    """Those that are well; where none is, all of them: their own errors tell most."""
    return [it for it in replicas if not it.problem] or replicas
