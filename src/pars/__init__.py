"""
Ranks LLM requests by predicted answer length: the public names, each loaded when it is first used.

`import pars` alone loads neither numpy nor ONNX Runtime. docs/api.md has them all, with examples.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pars.errors import ParsError
    from pars.ranking.evaluation import Order, evaluate
    from pars.ranking.ranker import Ranker
    from pars.request.prompts import GenerationRequest as Request
    from pars.serving.middleware import PriorityMiddleware

__version__ = "0.1.0"
__all__ = [
    "Order",
    "ParsError",
    "PriorityMiddleware",
    "Ranker",
    "Request",
    "__version__",
    "evaluate",
]

_HOMES = {
    "Order": "pars.ranking.evaluation",
    "ParsError": "pars.errors",
    "PriorityMiddleware": "pars.serving.middleware",
    "Ranker": "pars.ranking.ranker",
    "Request": "pars.request.prompts:GenerationRequest",
    "evaluate": "pars.ranking.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pars' has no attribute {name!r}")
    module, _, own_name = _HOMES[name].partition(":")
    value = getattr(import_module(module), own_name or name)
    globals()[name] = value  # so that the next look is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
