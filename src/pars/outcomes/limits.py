"""What may be kept of finished requests, and the hook that every text passes before it is."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from pars.errors import ParsError

MOST_SEGMENT_BYTES = 16 << 20
SEGMENTS_IN_ALL = 8  # at least, so that making room drops no more than an eighth
LEAST_BYTES = SEGMENTS_IN_ALL * 4096

Redact = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeLimits:
    """
    What may be kept.

    Attributes:
        max_bytes: Of all files together; beyond it the oldest outcomes go.
        keeps_prompts: Whether scored texts are written at all.
        retention_s: After which a text is dropped.
        redact: Called with each text before it is written, in the writer's thread; what it
            returns is written, None leaves the text out.
    """

    max_bytes: int = 256 << 20
    keeps_prompts: bool = False
    retention_s: float = 7 * 86_400.0
    redact: Redact | None = None

    def __post_init__(self) -> None:
        if self.max_bytes < LEAST_BYTES:
            raise ParsError(f"outcome_max_bytes: must be at least {LEAST_BYTES}: {self.max_bytes}")
        if not 0 < self.retention_s <= 1e9:
            raise ParsError(
                f"outcome_retention_s: must be more than 0, up to 1e9: {self.retention_s}"
            )

    @property
    def segment_bytes(self) -> int:
        """At which a new file is begun."""
        return min(MOST_SEGMENT_BYTES, self.max_bytes // SEGMENTS_IN_ALL)


def load_redact(name: str) -> Redact:
    """
    The function called `package.module:function`.

    Raises:
        ParsError: there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ParsError(f"outcome_redact: {name!r} is not package.module:function: {error}") from (
            error
        )
    if not callable(function):
        raise ParsError(f"outcome_redact: {name!r} cannot be called")
    return function  # type: ignore[no-any-return]
