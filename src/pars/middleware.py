"""The name that users type: `--middleware pars.middleware.PriorityMiddleware`."""

from pars.serving.middleware import PriorityMiddleware

__all__ = ["PriorityMiddleware"]
