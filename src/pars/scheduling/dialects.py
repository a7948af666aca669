"""
How a router between us and the engine takes a request's place: in which field, and in whose queue.

    dialect        what carries the place                          the queue is
    vllm-router    header X-Vllm-Priority and `priority`           the engine's
    smg            the same; it drops the header                   the engine's
    ray            the same                                        the engine's
    litellm        `extra_body.priority`                           the engine's
    llm-d          header x-llm-d-slo-ttft-ms                      the router's (flow control)
    dynamo         header x-dynamo-request-priority                the router's, then the engine's
    tensorrt-llm   `priority` from 0 to 1, larger first            the engine's

Where the router holds the queue, the engine's own stays short, and what is said to it does nothing.
Such routers order by arrival, moved by what they are told: our place as a head start in seconds.
Source of each: its `read_in`; docs/deploy.md says which of them were run.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pars.scheduling.engines import PRIORITY_HEADER, Engine
from pars.scheduling.keys import EPOCH_S

# What passes all that came in this time before it, and no more: longer than a queue should be.
WINDOW_S = 600.0
MOST_MS = 2_000_000_000
SLO_HEADER = b"x-llm-d-slo-ttft-ms"
DYNAMO_HEADER = b"x-dynamo-request-priority"
DYNAMO_STRICT_HEADER = b"x-dynamo-request-strict-priority"

Path = tuple[str, ...]
Number = int | float
TOP: Path = ("priority",)
DIRECT = "direct"  # nothing stands between


class Standing(NamedTuple):
    """
    A request's place, in every form that somebody may want.

    Attributes:
        priority: The key as the engine takes it.
        head_start_s: 0 to 2 * WINDOW_S; WINDOW_S of one that goes by its arrival alone.
        since_epoch_s: Its place on the time line of all keys.
        is_before_all: Its place is no time: it goes before all that go by theirs.
        cost: By which those are in order, in tokens.
        expected_tokens: Of its answer.
    """

    priority: int
    head_start_s: float = WINDOW_S
    since_epoch_s: float = 0.0
    is_before_all: bool = False
    cost: float = 0.0
    expected_tokens: float = 0.0


def standing(
    priority: int,
    since_epoch_s: float,
    arrival_s: float,
    cost: float,
    expected_tokens: float = 0.0,
) -> Standing:
    """
    What a place comes to as a head start. One that lies further back than the window is no time:
    it goes before all that came in the window, and a thousand tokens of cost count as a second.

    Args:
        since_epoch_s: The place, in seconds of the keys' time line.
        arrival_s: Unix time.
    """
    behind_s = since_epoch_s - (arrival_s - EPOCH_S)
    is_before_all = behind_s < -WINDOW_S
    behind_s = min(cost / 1000, WINDOW_S) - WINDOW_S if is_before_all else behind_s
    head_start_s = min(max(WINDOW_S - behind_s, 0.0), 2 * WINDOW_S)
    return Standing(priority, head_start_s, since_epoch_s, is_before_all, cost, expected_tokens)


def _as_priority(at: Standing) -> dict[bytes, bytes]:
    return {PRIORITY_HEADER: b"%d" % at.priority}


def _as_slo(at: Standing) -> dict[bytes, bytes]:
    """A deadline from arrival, in whole milliseconds: the router admits the earliest first."""
    slo_ms = math.ceil(1000 * (2 * WINDOW_S - at.head_start_s))
    return {SLO_HEADER: b"%d" % min(slo_ms, MOST_MS), **_as_priority(at)}


def _as_dynamo(at: Standing) -> dict[bytes, bytes]:
    """Whole seconds by which it counts as come earlier. The strict tier is nobody's to choose."""
    return {DYNAMO_HEADER: b"%d" % int(at.head_start_s), DYNAMO_STRICT_HEADER: b"0"}


# The positive float32 from 2**-126 to 1 are as many as this, in the order of their bits.
_LEAST_BITS, _ONE_BITS = 0x00800000, 0x3F800000
_TICKS_PER_S = 10  # so that they last until 2029
_NUM_BEFORE_ALL = 1 << 20  # the topmost, a token each


def _as_fraction(at: Standing) -> Number:
    """
    From 0 to 1, larger first, and told apart as float32, which is what the engine keeps.

    The floats are taken by their number, as their bits count them: those near 1 alone would tell
    apart no less than minutes.
    """
    if at.is_before_all:
        number = _ONE_BITS - min(int(at.cost), _NUM_BEFORE_ALL)
    else:
        ticks = max(0, int(at.since_epoch_s * _TICKS_PER_S))
        number = _ONE_BITS - _NUM_BEFORE_ALL - 1 - ticks
    fraction: float = struct.unpack(">f", struct.pack(">I", max(number, _LEAST_BITS)))[0]
    return fraction


def _nowhere(_: Standing) -> dict[bytes, bytes]:
    return {}


def _in_no_body(_: Standing) -> Mapping[Path, Number]:
    return {}


@dataclass(frozen=True, slots=True)
class Dialect:
    """
    One router's, or server's.

    Attributes:
        queue: Where requests wait, for people.
        carrier: What carries the place, for people.
        headers: That carry it.
        fields: Of the body that carry it, by their paths.
        says_engine: The number is the engine's own, which is still to be known.
        read_in: Where that stands.
        was_run: Whether we ran it.
    """

    name: str
    queue: str
    carrier: str
    headers: Callable[[Standing], dict[bytes, bytes]] = _nowhere
    fields: Callable[[Standing], Mapping[Path, Number]] = _in_no_body
    says_engine: bool = False
    read_in: str = ""
    was_run: bool = False

    def engine(self, behind: Engine | None) -> Engine:
        """What it makes of the engine behind it; None: one that takes smaller ones first."""
        larger_first = self.says_engine and behind is not None and behind.larger_first
        return Engine(self.name, larger_first=larger_first, dialect=self)


def _both(name: str, read_in: str, *, was_run: bool) -> Dialect:
    return Dialect(
        name,
        "the engine's",
        "header `X-Vllm-Priority` and `priority` in the body",
        headers=_as_priority,
        fields=lambda at: {TOP: at.priority},
        says_engine=True,
        read_in=read_in,
        was_run=was_run,
    )


DIALECTS = {
    it.name: it
    for it in (
        _both("vllm-router", "vllm-router 0.1.17", was_run=True),
        _both("smg", "smg 1.13.0", was_run=True),
        _both("ray", "Ray 2.60's docs", was_run=False),
        Dialect(
            "litellm",
            "the engine's",
            "`extra_body.priority`",
            fields=lambda at: {("extra_body", "priority"): at.priority},
            says_engine=True,
            read_in="litellm 1.108",
            was_run=True,
        ),
        Dialect(
            "llm-d",
            "the router's, with flow control and the slo-deadline ordering; else vLLM's",
            "header `x-llm-d-slo-ttft-ms`, and `X-Vllm-Priority`",
            headers=_as_slo,
            read_in="llm-d-router, slo-deadline-ordering-policy",
        ),
        Dialect(
            "dynamo",
            "the router's, with --router-queue-threshold; then the engine's",
            "header `x-dynamo-request-priority`; `nvext.agent_hints.osl`",
            headers=_as_dynamo,
            fields=lambda at: {("nvext", "agent_hints", "osl"): max(1, round(at.expected_tokens))},
            read_in="Dynamo 1.3, priority scheduling",
        ),
        Dialect(
            "tensorrt-llm",
            "the engine's, with waiting_queue_policy: priority",
            "`priority` in the body, 0 to 1, larger first",
            fields=lambda at: {TOP: _as_fraction(at)},
            read_in="TensorRT-LLM, pull requests 12362 and 15329",
        ),
    )
}

# What a client must not say itself, in any dialect.
DIALECT_HEADERS = frozenset(
    (SLO_HEADER, b"x-slo-ttft-ms", DYNAMO_HEADER, DYNAMO_STRICT_HEADER, PRIORITY_HEADER)
)
