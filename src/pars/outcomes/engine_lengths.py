"""
Where vLLM's statistics of a finished request meet the middleware that waits for them.

vLLM builds the middleware and the stat logger of `outcomes.vllm_stat_logger` in one process and
introduces neither to the other; so there is one `Desk` a process, `DESK`, where both come. All of
it happens on the event loop of vLLM's API server.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """
    One answer, as the engine counted it.

    Attributes:
        request_id: The engine's, made of X-Request-Id: the same for all answers to a prompt.
        queued_s: In the engine's queue.
        finish_reason: "stop", "length", "abort", "error".
    """

    request_id: str
    num_prompt_tokens: int
    num_answer_tokens: int
    queued_s: float
    finish_reason: str


Hear = Callable[[Finished], None]


class Desk:
    """
    Hands what an engine tells of a request to whoever waits for that request.

    Attributes:
        is_open: Whether there is an engine that tells.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._waiting: dict[str, list[Hear]] = {}

    def wait(self, request_id: str, hear: Hear) -> None:
        """Have `hear` called with each answer to this request, until `leave`."""
        self._waiting.setdefault(request_id, []).append(hear)

    def leave(self, request_id: str, hear: Hear) -> None:
        """Wait no longer."""
        waiting = self._waiting.get(request_id, [])
        if hear in waiting:
            waiting.remove(hear)
        if not waiting:
            self._waiting.pop(request_id, None)

    def tell(self, finished: Finished) -> None:
        """
        An answer is finished.

        Of two requests to which a client gave the same id neither hears: whose it is, is not known.
        """
        waiting = self._waiting.get(finished.request_id, [])
        if len(waiting) == 1:
            waiting[0](finished)


DESK = Desk()
