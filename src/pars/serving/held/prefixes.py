"""
Which replica last had a request that begins as this one does: it may have that beginning cached.

    prefixes = Prefixes()
    marks = prefixes.marks(body)       # short keyed hashes of its beginnings; no text is kept
    prefixes.note(marks, replica)
    prefixes.find(marks)               # that replica; the longest common beginning counts

A conversation's next turn repeats the body of the turn before up to its last message.
"""

import secrets
from collections import OrderedDict
from hashlib import blake2b

from pars.serving.held.replica import Replica

SHORTEST_BYTES = 512  # of a beginning that is worth a place: some 100 tokens
BLOCK_BYTES = 1024
MOST_BLOCKS = 64  # of a body that are looked at
MOST_BYTES = MOST_BLOCKS * BLOCK_BYTES
MOST_MARKS = 65_536  # that are remembered, a few MB

Marks = tuple[bytes, ...]


class Prefixes:
    """What is remembered of all replicas; the longest unused is forgotten first."""

    def __init__(self, most: int = MOST_MARKS) -> None:
        self._key = secrets.token_bytes(16)
        self._most = most
        self._replicas: OrderedDict[bytes, Replica] = OrderedDict()

    def marks(self, body: bytes) -> Marks:
        """Of its beginnings, the shortest first; none where the body is short."""
        hashed, marks, at = blake2b(key=self._key, digest_size=8), [], 0
        ends = [SHORTEST_BYTES, *(BLOCK_BYTES * (index + 1) for index in range(MOST_BLOCKS))]
        for end in ends:
            if end > len(body):
                break
            hashed.update(body[at:end])
            marks.append(hashed.digest())
            at = end
        return tuple(marks)

    def note(self, marks: Marks, replica: Replica) -> None:
        """A request with these marks goes to `replica`."""
        for mark in marks:
            self._replicas[mark] = replica
            self._replicas.move_to_end(mark)
        while len(self._replicas) > self._most:
            self._replicas.popitem(last=False)

    def find(self, marks: Marks) -> Replica | None:
        """Where the longest of these beginnings was last; None: nowhere."""
        known = (self._replicas[mark] for mark in reversed(marks) if mark in self._replicas)
        return next(known, None)
