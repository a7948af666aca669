"""The name that users type: `uvicorn --factory pars.server:create_app`."""

from pars.score_service.server import create_app

__all__ = ["create_app"]
