"""Requests that begin alike are known by hashes of their beginnings."""

from pars.serving.held.prefixes import MOST_BLOCKS, Prefixes
from pars.serving.held.replica import Replica
from pars.serving.held.slots import Slots


def replica(name: str) -> Replica:
    return Replica(Slots(4, lambda: 0.0), name)


def test_the_next_turn_of_a_conversation_is_known() -> None:
    """It repeats what came before; another conversation with the same instructions does not."""
    prefixes, here, there = Prefixes(), replica("here"), replica("there")
    instructions = b"You are kind. " * 60  # 840 bytes
    first, other = instructions + b"a" * 500, instructions + b"b" * 500
    prefixes.note(prefixes.marks(first), here)
    prefixes.note(prefixes.marks(other), there)

    assert prefixes.find(prefixes.marks(first + b"and then?" * 300)) is here
    assert prefixes.find(prefixes.marks(other + b"and then?" * 300)) is there
    assert prefixes.find(prefixes.marks(b"c" * 2000)) is None


def test_a_short_request_has_no_mark() -> None:
    """Nothing is gained by a beginning of a few words."""
    prefixes = Prefixes()

    assert prefixes.marks(b"x" * 511) == ()
    assert len(prefixes.marks(b"x" * 512)) == 1


def test_what_is_looked_at_and_kept_is_bounded() -> None:
    """A megabyte has no more marks than its first 64 KiB, and old marks go."""
    prefixes, here = Prefixes(most=10), replica("here")
    assert len(prefixes.marks(b"x" * (1 << 20))) == MOST_BLOCKS + 1

    old = prefixes.marks(b"old" * 400)
    prefixes.note(old, here)
    prefixes.note(prefixes.marks(b"new" * 5000), here)
    assert prefixes.find(old) is None


def test_two_gateways_hash_differently() -> None:
    """What a hash stands for cannot be told from outside."""
    assert Prefixes().marks(b"x" * 600) != Prefixes().marks(b"x" * 600)
