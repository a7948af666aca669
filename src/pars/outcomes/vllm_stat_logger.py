"""
vLLM's plugin that tells exact lengths; only vLLM imports it (entry point vllm.stat_logger_plugins).

vLLM loads it wherever pars is installed, whether or not the middleware is used. So it does nothing
until somebody waits, and never raises: an exception here would end vLLM's output loop.
"""

import logging
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from pars.outcomes.engine_lengths import DESK, Finished

log = logging.getLogger("vllm.pars")


class StatLogger(StatLoggerBase):  # type: ignore[misc]  # vllm is not typed for us
    """Tells `outcomes.engine_lengths.DESK` of every request that vLLM finishes in this process."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        DESK.is_open = True
        self._has_failed = False

    def record(
        self, scheduler_stats: Any = None, iteration_stats: Any = None, *_: Any, **__: Any
    ) -> None:
        """Called by vLLM after each step, with what finished in it."""
        if iteration_stats is None:
            return
        try:
            for finished in iteration_stats.finished_requests:
                DESK.tell(
                    Finished(
                        request_id=finished.request_id,
                        num_prompt_tokens=finished.num_prompt_tokens,
                        num_answer_tokens=finished.num_generation_tokens,
                        queued_s=finished.queued_time,
                        finish_reason=str(finished.finish_reason),
                    )
                )
        except Exception as error:  # the interface is not stable; usage and events still tell
            if not self._has_failed:
                self._has_failed = True
                log.warning(
                    "vLLM's lengths are not understood: %s: %s", type(error).__name__, error
                )

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
