"""Ranks LLM requests by predicted answer length. Names load when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pars.serving.middleware import PriorityMiddleware

__version__ = "0.1.0"
__all__ = ["PriorityMiddleware", "__version__"]

# Where each public name lives. `import pars` alone loads none of them.
_HOMES = {"PriorityMiddleware": "pars.serving.middleware"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pars' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
