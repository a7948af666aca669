"""The policy that a bound spells: "1.5x" is a ratio of the first-come wait, "30" are seconds."""

import math

from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import Policy
from pars.scheduling.policies.shortest_first import ShortestFirst


def policy_of(bound: str, *, shares_engine: bool = False, bits: int = 64) -> Policy:
    """
    The policy with that bound.

    Args:
        shares_engine, bits: As of the policies.

    Raises:
        ValueError: it is no number.
        ParsError: the number is out of the policy's range.
    """
    number = float(bound.removesuffix("x"))
    if math.isnan(number):
        raise ValueError("not a number")
    if bound.endswith("x"):
        return MaxSlowdown(number, shares_engine=shares_engine, bits=bits)
    return ShortestFirst(number, bits=bits)
