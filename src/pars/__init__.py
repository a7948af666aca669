"""
Ranks LLM requests by predicted answer length: the public names, each loaded when it is first used.

`import pars` alone loads neither numpy nor ONNX Runtime. docs/api.md has them all, with examples.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pars.errors import ParsError
    from pars.prove.simulation import Simulation, simulate
    from pars.prove.workload.workload import Workload
    from pars.ranking.evaluation import Order, evaluate
    from pars.ranking.online.ranker import OnlineRanker
    from pars.ranking.ranker import Ranker, Scorer
    from pars.request.features import Signals
    from pars.request.prompts import Request
    from pars.scheduling.demand import Demand, demand_of
    from pars.scheduling.policies.fcfs import FCFS
    from pars.scheduling.policies.max_slowdown import MaxSlowdown
    from pars.scheduling.policies.policy import Place, Policy
    from pars.scheduling.policies.shortest_first import ShortestFirst
    from pars.serving.middleware import PriorityMiddleware

__version__ = "0.1.0"
__all__ = [
    "FCFS",
    "Demand",
    "MaxSlowdown",
    "OnlineRanker",
    "Order",
    "ParsError",
    "Place",
    "Policy",
    "PriorityMiddleware",
    "Ranker",
    "Request",
    "Scorer",
    "ShortestFirst",
    "Signals",
    "Simulation",
    "Workload",
    "__version__",
    "demand_of",
    "evaluate",
    "simulate",
]

_HOMES = {
    "Demand": "pars.scheduling.demand",
    "FCFS": "pars.scheduling.policies.fcfs",
    "MaxSlowdown": "pars.scheduling.policies.max_slowdown",
    "OnlineRanker": "pars.ranking.online.ranker",
    "Order": "pars.ranking.evaluation",
    "ParsError": "pars.errors",
    "Place": "pars.scheduling.policies.policy",
    "Policy": "pars.scheduling.policies.policy",
    "PriorityMiddleware": "pars.serving.middleware",
    "Ranker": "pars.ranking.ranker",
    "Request": "pars.request.prompts",
    "Scorer": "pars.ranking.ranker",
    "ShortestFirst": "pars.scheduling.policies.shortest_first",
    "Signals": "pars.request.features",
    "Simulation": "pars.prove.simulation",
    "Workload": "pars.prove.workload.workload",
    "demand_of": "pars.scheduling.demand",
    "evaluate": "pars.ranking.evaluation",
    "simulate": "pars.prove.simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pars' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # so that the next look is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
