"""
Settings of the serve lane. Inside vLLM, which builds a middleware from its app alone, only the
environment reaches it; so every setting has a PARS_* variable, named after its field here.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from pars.errors import ParsError
from pars.outcomes.drift import DriftSettings
from pars.outcomes.writer import OutcomeLimits, load_redact
from pars.ranking.ranker import boxed_ranker
from pars.scheduling.engines import ENGINES
from pars.scheduling.priority import DEFAULT_MAX_OVERTAKE_S, PriorityPolicy
from pars.scheduling.trust import Trust, read_key_offsets_s, read_proxies

PREFIX = "PARS_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may set; docs/serving.md has the table with reasons."""

    ranker: str = ""  # folder; empty: the ranker in the box
    engine: str = "auto"
    max_overtake_s: float = DEFAULT_MAX_OVERTAKE_S
    priority_bits: int = 64
    budget_ms: float = 20.0
    max_wait_ms: float = 500.0
    obey_limits: bool = True
    reload_s: float = 10.0
    max_body_bytes: int = 1 << 20
    max_buffered_bytes: int = 64 << 20
    max_prompts: int = 16
    max_prompt_chars: int = 8192
    max_queued_prompts: int = 1024
    trusted_proxies: str = ""
    trusted_secret: str = ""
    key_offsets: str = ""  # file
    outcomes: str = ""  # folder; empty: none are kept
    outcome_prompts: bool = False
    outcome_retention_s: float = 7 * 86_400.0
    outcome_max_bytes: int = 256 << 20
    outcome_redact: str = ""  # package.module:function
    drift: bool = True
    drift_limit: float = 0.0
    drift_window: int = 1000

    def __post_init__(self) -> None:
        if self.engine not in ("auto", *ENGINES):
            raise ParsError(f"engine: {self.engine!r} is not one of auto, {', '.join(ENGINES)}")
        for name in ("max_body_bytes", "max_buffered_bytes", "max_prompts", "max_prompt_chars"):
            if getattr(self, name) < 1:
                raise ParsError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.max_queued_prompts < 1:
            raise ParsError(f"max_queued_prompts: must be at least 1: {self.max_queued_prompts}")
        for name in ("budget_ms", "max_wait_ms", "reload_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ParsError(f"{name}: must be 0 or more, not {getattr(self, name)}")
        self.policy()
        self.outcome_limits()
        self.drift_settings()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """
        Settings from PARS_* variables; `overrides` that are not None win over them.

        Raises:
            ParsError: a value is not what its setting must be; the variable is named.
        """
        values: dict[str, Any] = {}
        for it in fields(cls):
            text = environ.get(PREFIX + it.name.upper(), "").strip()
            if text:
                values[it.name] = _parsed(PREFIX + it.name.upper(), text, type(it.default))
        values.update((name, value) for name, value in overrides.items() if value is not None)
        return cls(**values)

    @property
    def ranker_folder(self) -> Path:
        """The folder of the ranker to load."""
        return Path(self.ranker) if self.ranker else boxed_ranker()

    def policy(self, *, larger_first: bool = False) -> PriorityPolicy:
        """The priority policy for an engine that takes larger or smaller values first."""
        try:
            return PriorityPolicy(
                max_overtake_s=self.max_overtake_s,
                bits=self.priority_bits,
                larger_first=larger_first,
            )
        except ValueError as error:
            raise ParsError(str(error)) from None

    def outcome_limits(self) -> OutcomeLimits:
        """What may be kept of finished requests; imports the redaction hook."""
        return OutcomeLimits(
            max_bytes=self.outcome_max_bytes,
            keeps_prompts=self.outcome_prompts,
            retention_s=self.outcome_retention_s,
            redact=load_redact(self.outcome_redact) if self.outcome_redact else None,
        )

    def drift_settings(self) -> DriftSettings:
        """When the ranker counts as worse than useless."""
        usual = DriftSettings()
        if self.drift_window < 3:
            raise ParsError(f"drift_window: must be at least 3, not {self.drift_window}")
        try:
            return DriftSettings(
                limit=self.drift_limit,
                window=self.drift_window,
                min_answers=min(usual.min_answers, self.drift_window),
                judge_every=min(usual.judge_every, self.drift_window),
            )
        except ParsError as error:
            raise ParsError(f"drift_{error}") from None

    def trust(self) -> Trust:
        """Who may move a request; reads the file of key offsets."""
        return Trust(
            proxies=read_proxies(self.trusted_proxies),
            secret=self.trusted_secret.encode(),
            key_offsets_s=read_key_offsets_s(Path(self.key_offsets)) if self.key_offsets else {},
        )


def _parsed(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "0 or 1", int: "a whole number", float: "a number"}[kind]
        raise ParsError(f"{name}: {text!r} is not {wanted}") from None
