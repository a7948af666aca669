"""
How long one step of an engine takes: a straight line with four coefficients.

    preset = EnginePreset.named("h100-8b")
    preset.step_time.seconds(num_prefill_tokens=512, num_decode_seqs=64, num_kv_tokens=40_000)

    seconds = base + prefill_token · prompt tokens + decode_seq · decoding requests
              + kv_token · tokens in their KV cache

A preset is such a line and the engine's limits. `pars simulate --fit` makes one from a live run.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pars.errors import DataError, ParsError
from pars.files import write_json
from pars.prove.engine.stepping import EngineLimits, Step

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """
    Seconds of a step.

    Attributes:
        base_s: Of any step: reading the weights, starting kernels, the scheduler.
        prefill_token_s: For a prompt token computed.
        decode_seq_s: For a request that decodes.
        kv_token_s: For a token in the KV cache of a request in the step.
    """

    base_s: float
    prefill_token_s: float
    decode_seq_s: float
    kv_token_s: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if not good or not 0 <= value < math.inf:
                raise ParsError(f"{name} must be seconds from 0 on, not {value!r}")
        if self.base_s + self.decode_seq_s <= 0:
            raise ParsError("base_s and decode_seq_s must not both be 0: time would stand still")

    def seconds(
        self, *, num_prefill_tokens: int, num_decode_seqs: int, num_kv_tokens: int
    ) -> float:
        """Of one step; 0 when nothing was scheduled, since then no model runs."""
        if not num_prefill_tokens and not num_decode_seqs:
            return 0.0
        return (
            self.base_s
            + self.prefill_token_s * num_prefill_tokens
            + self.decode_seq_s * num_decode_seqs
            + self.kv_token_s * num_kv_tokens
        )

    def of(self, step: Step) -> float:
        """Seconds of a step that an engine reported."""
        return self.seconds(
            num_prefill_tokens=step.num_prefill_tokens,
            num_decode_seqs=step.num_decode_seqs,
            num_kv_tokens=step.num_kv_tokens,
        )

    def decode_seconds(self, num_steps: int, num_seqs: int, num_kv_tokens: int) -> float:
        """
        Of `num_steps` steps in which the same requests decode, the KV cache growing with them.

        Args:
            num_kv_tokens: In the KV cache before the first of the steps.
        """
        first = self.base_s + self.decode_seq_s * num_seqs
        first += self.kv_token_s * (num_kv_tokens + num_seqs)
        return num_steps * (first + self.kv_token_s * num_seqs * (num_steps - 1) / 2)

    def decode_steps_until(self, seconds: float, num_seqs: int, num_kv_tokens: int) -> float:
        """The least number of such steps that take `seconds` or more; infinity for infinity."""
        if math.isinf(seconds):
            return math.inf
        growth = self.kv_token_s * num_seqs
        first = self.base_s + self.decode_seq_s * num_seqs
        first += self.kv_token_s * num_kv_tokens + growth
        # n·first + growth·n(n-1)/2 = seconds, solved for n without cancellation
        slope = first - growth / 2
        steps = 2 * seconds / (slope + math.sqrt(slope * slope + 2 * growth * seconds))
        return max(1, math.ceil(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePreset:
    """
    An engine to simulate.

    Attributes:
        source: Where the numbers come from, for whoever reads the result.
    """

    name: str
    step_time: StepTime
    limits: EngineLimits = field(default_factory=EngineLimits)
    source: str = ""

    @classmethod
    def named(cls, text: str) -> "EnginePreset":
        """
        A preset by its name, or out of a JSON file that `--fit` wrote.

        Raises:
            ParsError: neither, or a value in the file is not what it must be.
        """
        if text in PRESETS:
            return PRESETS[text]
        path = Path(text)
        if path.suffix != ".json":
            raise ParsError(
                f"engine {text!r} is none of {', '.join(PRESETS)}, and no .json file of"
                " `pars simulate --fit`"
            )
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> "EnginePreset":
        """A preset file; fields it does not have keep their defaults."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError.at(path, f"cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError.at(path, f"is not JSON: {error}") from error
        if not isinstance(values, dict) or "pars_engine" not in values:
            raise DataError.at(path, "is no engine preset: it has no field 'pars_engine'")
        try:
            return cls(
                name=str(values.get("name", path.stem)),
                step_time=StepTime(**_known(StepTime, values.get("step_time"))),
                limits=EngineLimits(**_known(EngineLimits, values.get("limits", {}))),
                source=str(values.get("source", "")),
            )
        except (TypeError, ParsError) as error:
            raise DataError.at(path, str(error)) from error

    def as_json(self) -> dict[str, Any]:
        """What `read` takes."""
        return {"pars_engine": FORMAT_VERSION, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the preset, whole or not at all."""
        write_json(path, self.as_json())


def _known(kind: Any, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ParsError(f"the fields of {kind.__name__} must be a JSON object")
    unknown = set(values) - {it.name for it in fields(kind)}
    if unknown:
        raise ParsError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return values


PRESETS = {
    "h100-8b": EnginePreset(
        name="h100-8b",
        step_time=StepTime(base_s=6e-3, prefill_token_s=35e-6, decode_seq_s=12e-6, kv_token_s=4e-8),
        limits=EngineLimits(
            max_num_seqs=256, max_num_batched_tokens=8192, num_blocks=28_000, block_size=16
        ),
        source=(
            "assumed, not fitted to a device: arithmetic for an 8B model in bfloat16 (Llama 3: 32"
            " layers, 8 KV heads of 128) on an H100 SXM (data sheet: 3.35 TB/s, 990 TFLOP/s"
            " dense). base: 16 GB of weights read in 4.8 ms, and 1.2 ms of launches (a guess)."
            " prefill: 16 GFLOP a token at 46% of the peak (a guess). kv: 131,072 bytes a token"
            " read. decode_seq: a guess. num_blocks: 58.8 GB left of 90% of 79.6 GiB after"
            " weights and 2 GB of activations. max_num_seqs: chosen; vLLM 0.32's default on this"
            " device is 1024, and 8192 batched tokens"
        ),
    )
}
