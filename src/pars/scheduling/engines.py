"""
How each engine takes a priority, and whether the vLLM that hosts us obeys it.

    vllm              header X-Vllm-Priority (0.28 and later), smaller first
    vllm-body         top-level `priority` in the body (earlier versions), smaller first
    sglang            `priority` in the body, larger first (SGLang's default)
    sglang-low-first  `priority` in the body, smaller first (--schedule-low-priority-values-first)
    none              takes no priority: requests pass through unscored
"""

import re
import sys
from dataclasses import dataclass
from typing import Any

PRIORITY_HEADER = b"x-vllm-priority"

# vLLM reads the header on these paths only; on its other generating paths the body counts.
HEADER_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
)
FIRST_VERSION_WITH_HEADER = (0, 28)


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine looks for a request's priority, and which way round."""

    name: str
    takes_header: bool = False
    larger_first: bool = False
    takes_priority: bool = True

    def wants_header(self, path: str) -> bool:
        """Whether the priority goes into the header rather than the body on this path."""
        return self.takes_header and path.endswith(HEADER_PATHS)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("vllm", takes_header=True),
        Engine("vllm-body"),
        Engine("sglang", larger_first=True),
        Engine("sglang-low-first"),
        Engine("none", takes_priority=False),
    )
}


def vllm_engine(version: str | None) -> Engine:
    """
    The kind of vLLM by its version; one that cannot be read (a source build) counts as new.

    vLLM's development builds call themselves 0.1.dev… or 0.0.…; no release that old has V1.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    is_old = (0, 2) <= release < FIRST_VERSION_WITH_HEADER
    return ENGINES["vllm-body" if is_old else "vllm"]


def engine_of_host() -> Engine:
    """The engine of the vLLM in whose process this runs."""
    return vllm_engine(getattr(sys.modules.get("vllm"), "__version__", None))


def scheduling_policy(app: Any) -> str | None:
    """
    vLLM's scheduling policy ("fcfs", "priority"), read off its FastAPI app; None if unknown.

    A server started without `--scheduling-policy priority` takes every priority with a 200 and
    ignores it, and no endpoint tells.
    """
    state = getattr(app, "state", None)
    config = getattr(getattr(state, "vllm_config", None), "scheduler_config", None)
    policy = getattr(config, "policy", None)
    if policy is None:
        policy = getattr(getattr(state, "args", None), "scheduling_policy", None)
    return None if policy is None else str(getattr(policy, "value", policy))
