"""
What `pars collect` is told: whom to ask, what for, and how fast.

    CollectConfig(endpoints=(URL,), model="m", prompts=Path("p.jsonl"), output=Path("a.jsonl"))
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pars.errors import ParsError
from pars.learn.collect.prompts import APIS, Prompt

OWN_OPTIONS = {  # fields of a body that an option of ours sets
    **{"model": "--model", "messages": "--prompts", "prompt": "--prompts", "n": "--samples"},
    **{"max_tokens": "--max-tokens", "temperature": "--temperature", "seed": "--seed"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """
    What is asked, of whom, and how fast.

    Attributes:
        samples: Answers to each prompt; sample s is asked with seed + s.
        endpoints: Several serve the same model; whichever has room is asked.
        concurrency: Requests at once, at each endpoint.
        rate: Requests a second at each, retries among them; None: as fast as they are answered.
        timeout_s: For a whole answer.

    Raises:
        ParsError: a value makes no sense.
    """

    endpoints: tuple[str, ...]
    model: str
    prompts: Path
    output: Path
    api: str = "chat"
    prompt_field: str | None = None
    samples: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    rate: float | None = None
    timeout_s: float = 600.0
    max_retries: int = 8
    keep_text: bool = False

    def __post_init__(self) -> None:
        checks = {
            f"--api must be one of {', '.join(APIS)}": self.api in APIS,
            "--samples must be at least 1": self.samples >= 1,
            "--max-tokens must be at least 1": self.max_tokens is None or self.max_tokens >= 1,
            "--temperature must be 0 or more": 0 <= (self.temperature or 0) < math.inf,
            "--concurrency must be at least 1": self.concurrency >= 1,
            "--rate must be more than 0": self.rate is None or 0 < self.rate < math.inf,
            "--timeout-s must be more than 0": 0 < self.timeout_s < math.inf,
            "--max-retries must be 0 or more": self.max_retries >= 0,
        }
        for told, holds in checks.items():
            if not holds:
                raise ParsError(told)
        for name, option in OWN_OPTIONS.items():
            if name in self.extra_body:
                raise ParsError(f"--extra-body: {name} is set by {option}")
        if self.extra_body.get("stream"):
            raise ParsError("--extra-body: answers are taken whole, without stream")
        if self.api == "completions" and self.max_tokens is None:
            raise ParsError(
                "--api completions needs --max-tokens: servers end an answer after 16 tokens else"
            )

    def settings(self, urls: Sequence[str]) -> dict[str, Any]:
        """What decides the answers, and so must stay the same in one file. No secrets."""
        return {
            "endpoint": urls[0] if len(urls) == 1 else list(urls),
            "model": self.model,
            "api": self.api,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "extra_body": dict(self.extra_body),
            "keep_text": self.keep_text,
        }

    def body(self, prompt: Prompt, sample: int) -> dict[str, Any]:
        """The request for one answer."""
        name = "messages" if self.api == "chat" else "prompt"
        body: dict[str, Any] = {"model": self.model, name: prompt.asked}
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        body |= {name: value for name, value in given.items() if value is not None}
        if self.seed is not None:
            body["seed"] = self.seed + sample
        return body | dict(self.extra_body)


def parse_extra_body(text: str) -> dict[str, Any]:
    """
    The JSON object of --extra-body.

    Raises:
        ParsError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParsError(f"--extra-body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ParsError("--extra-body must be a JSON object")
    return value
