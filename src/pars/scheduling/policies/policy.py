"""
A policy: from what a request is expected to take, and when it came, to its place in the queue.

    place = policy.place(demand, arrival_s)      # place.key is the integer that the engine gets
    policy.began(place)                          # its first token came
    policy.ended(place, now_s)                   # it is done, or gone
    policy.correct(place, true_work, answers)    # what it took in the end

The gateway, the middleware, `pars simulate` and `pars bench` all go by the same objects, one for
each queue. Keys are static, so that an engine's stock priority heap is enough.
"""

import math
import time
from dataclasses import dataclass
from typing import ClassVar, Self

from pars.errors import ParsError
from pars.request.prompts import Prompt, Request
from pars.scheduling.demand import Calibration, Demand, demand_of

LONG_TOKENS = Calibration().long_tokens  # where no ranker says what is long


@dataclass(slots=True, eq=False)
class Place:
    """
    Where a request stands, until it ends.

    Attributes:
        key: The integer that orders the queue, smaller first.
        is_express: Of a policy with classes: in the one that goes first. None: there are none.
        work: That it was expected to take, in answer tokens.
        charged: What its policy counted against its class.
        has_begun: Whether the engine has begun to answer it.
    """

    key: int = 0
    is_express: bool | None = None
    work: float = 0.0
    charged: float = 0.0
    has_begun: bool = False


class Policy:
    """
    One queue's order. A policy of your own derives from it and gives `place`.

    Attributes:
        max_slowdown: Of the bound as a ratio; infinite where there is none.
        hears_engine: Places depend on what the engine is seen to do, and not on the request alone.
        is_preempting: The engine stops a running request for one of a better key. Set by who knows.
    """

    hears_engine: ClassVar[bool] = False
    max_slowdown: float = math.inf
    is_preempting: bool = False

    def place(
        self,
        demand: Demand,
        arrival_s: float,
        *,
        long_tokens: float = LONG_TOKENS,
        offset_s: float = 0.0,
        is_ordered: bool = True,
    ) -> Place:
        """
        Give an arriving request its place. Never raises for finite numbers.

        Args:
            arrival_s: Unix time, by a clock that all gateways of the engine share.
            long_tokens: Cost from which a request counts as long.
            offset_s: Seconds to pretend the request came later (or, negative, earlier).
            is_ordered: False: nothing is known of it.
        """
        raise NotImplementedError

    def for_tenant(self, tenant: str | None) -> "Policy":
        """The policy of one tenant's requests; without tenants it is the same for all."""
        return self

    def key(
        self, answer_tokens: float, arrival_s: float | None = None, *, prompt_tokens: float = 0.0
    ) -> int:
        """
        The key alone of a request with one answer, for a queue of your own.

        Args:
            answer_tokens: Expected of the answer (`Ranker.expected_tokens`).
            arrival_s: Unix time; None: now.

        Raises:
            ParsError: a number is not finite, or tokens are below 0.
        """
        arrival_s = time.time() if arrival_s is None else arrival_s
        told = {"answer_tokens": answer_tokens, "prompt_tokens": prompt_tokens}
        for name, value in told.items():
            if not 0 <= value < math.inf:
                raise ParsError(f"{name} must be a number of tokens, 0 or more, not {value}")
        if not math.isfinite(arrival_s):
            raise ParsError(f"arrival_s must be seconds since 1970, not {arrival_s}")
        request = Request((Prompt(None, prompt_tokens),))
        demand = demand_of(request, [float(answer_tokens)])
        return self.place(demand, arrival_s).key

    def began(self, place: Place) -> None:
        """The engine answers it; it waits no longer."""

    def ended(self, place: Place, now_s: float) -> None:
        """It is done, or gone."""

    def correct(self, place: Place, true_work: float, answers: float | None = None) -> None:
        """
        What it truly took became known, after its end.

        Args:
            true_work: In answer tokens.
            answers: Tokens of its answers alone; None: not known apart from the prompt.
        """

    @property
    def bucket_ratio(self) -> float | None:
        """Where classes are bounded by a bucket: its level, of its capacity."""
        return None

    def fresh(self) -> Self:
        """The same policy for another queue, of which nothing is known yet."""
        return self

    @property
    def in_words(self) -> str:
        """What it promises, for people."""
        return repr(self)

    @property
    def suffix(self) -> str:
        """What stands behind a predictor's name where policies are spelled: `oracle@30`."""
        return f"@{type(self).__name__}"
