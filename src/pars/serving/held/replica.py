"""One server behind the held queue: how much of it is taken, and whether it is well."""

import math
from dataclasses import dataclass, field

from pars.serving.held.slots import Sent, Slots

UNKNOWN_SLOTS = 8  # of a server that was never seen full, where it is weighed against another


@dataclass(slots=True, eq=False)
class Replica:
    """
    Attributes:
        name: Its URL, for people.
        problem: Why it gets nothing as long as another is well; empty: it is well.
        paused_until_s: It asked for that, or was busy.
        refused: Callers whose requests it sent back since it last took one.
    """

    slots: Slots
    name: str = ""
    problem: str = ""
    paused_until_s: float = -math.inf
    refused: set[bytes] = field(default_factory=set)

    @property
    def load(self) -> float:
        """What is taken of its slots: servers are weighed by these."""
        return self.slots.num_sent / (self.slots.num or UNKNOWN_SLOTS)

    def has_room(self, now_s: float) -> bool:
        """Whether another request may be sent."""
        return self.slots.has_room and now_s >= self.paused_until_s

    def refuses_all(self, caller: bytes) -> bool:
        """
        Whether it has no room, as far as can be told, once it sent back a request of `caller`.

        It may be that only this caller has asked for too much. Then others are answered meanwhile.
        """
        if len(self.refused) < 2:
            self.refused.add(caller)
        return len(self.refused) > 1 or self.slots.has_only(caller)


@dataclass(slots=True, eq=False)
class Turn:
    """A request's turn: where it goes, and as what it is counted there."""

    replica: Replica
    sent: Sent


def well(replicas: list[Replica]) -> list[Replica]:
    """Those that are well; where none is, all of them: their own errors tell most."""
    return [it for it in replicas if not it.problem] or replicas
