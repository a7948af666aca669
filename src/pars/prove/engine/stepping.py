"""
The one interface of the simulated engines: requests go in, and each step says what happened.

    engine = FastEngine(EngineLimits(max_num_seqs=256))
    engine.add("a", prompt_tokens=12, output_tokens=40, priority=0, arrival_s=0.0)
    while engine.has_work:
        step = engine.step()               # step.finished, step.preempted, ...

An engine decides and does not know the time: whoever drives it says how long a step takes, on a
virtual clock (simulate.py) or on the wall clock (the fake engine).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pars.errors import ParsError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """
    What an engine may hold at once, named as vLLM's options are.

    Attributes:
        max_num_seqs: Requests that run at once.
        max_num_batched_tokens: Tokens of one step, prompt tokens and decoded ones together.
        num_blocks: KV-cache blocks; as in vLLM one of them is never given out.
        block_size: Tokens of a block.
        scheduling_policy: "priority", smaller first, or "fcfs", which ignores priorities.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    num_blocks: int = 28_000
    block_size: int = 16
    scheduling_policy: str = "priority"

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ParsError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.num_blocks < 2:
            raise ParsError(f"num_blocks must be 2 or more, not {self.num_blocks}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ParsError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must not be less than"
                f" max_num_seqs ({self.max_num_seqs})"
            )
        if self.scheduling_policy not in ("priority", "fcfs"):
            raise ParsError(
                f"scheduling_policy must be priority or fcfs, not {self.scheduling_policy!r}"
            )

    @property
    def max_tokens_of_a_request(self) -> int:
        """Prompt and answer together; a longer request could never run."""
        return (self.num_blocks - 1) * self.block_size + 1  # the last token needs no block

    def check_request(
        self, request_id: str, num_prompt_tokens: int, num_output_tokens: int
    ) -> None:
        """
        Raises:
            ParsError: the request needs more KV cache than there is.
        """
        if num_prompt_tokens < 1 or num_output_tokens < 1:
            raise ParsError(f"request {request_id}: needs a prompt token and an output token")
        if num_prompt_tokens + num_output_tokens > self.max_tokens_of_a_request:
            raise ParsError(
                f"request {request_id}: {num_prompt_tokens} prompt and {num_output_tokens} output"
                f" tokens do not fit: the engine has room for {self.max_tokens_of_a_request}"
                f" ({self.num_blocks} blocks of {self.block_size})"
            )


class Step(NamedTuple):
    """
    One step: its load, which is what its duration depends on, and what happened in it.

    Attributes:
        num_prefill_tokens: Prompt tokens computed (a preempted request's again, answer included).
        num_decode_seqs: Requests that decoded one token.
        num_kv_tokens: Tokens in the KV cache of the requests in the step, its own included.
        admitted: Taken out of the queue, in this order; the preempted that come back too.
        first_token: Have their first token at the step's end.
        resumed: Have their first token since a preemption at the step's end.
        finished: Have their last token at the step's end.
        preempted: Lost their place and their KV cache and queue again.
        num_running, num_waiting: After the step.
    """

    num_prefill_tokens: int
    num_decode_seqs: int
    num_kv_tokens: int
    admitted: list[str]
    first_token: list[str]
    resumed: list[str]
    finished: list[str]
    preempted: list[str]
    num_running: int
    num_waiting: int


class SteppedEngine(Protocol):
    """What drives the exact and the fast engine alike."""

    @property
    def has_work(self) -> bool:
        """Whether a request runs or waits."""
        ...

    def add(
        self,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
        priority: int,
        arrival_s: float,
    ) -> None:
        """
        Queue a request. Of equal priorities the earlier arrival goes first, then the smaller id.

        Raises:
            ParsError: the id is in use, or the request could never fit.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is; an unknown id is ignored."""
        ...

    def num_output_tokens(self, request_id: str) -> int:
        """Tokens the request has so far; 0 for an unknown id and before the first."""
        ...

    def step(self) -> Step:
        """
        Run one step.

        Raises:
            ParsError: there is no work.
        """
        ...
