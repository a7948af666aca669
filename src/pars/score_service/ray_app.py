"""
The score service on Ray Serve: the app of `pars serve`, in replicas behind Ray's proxy.

    serve run pars.score_service.ray_app:app
    serve run pars.score_service.ray_app:app ranker=/models/ranker replicas=8

Needs the `ray` extra on every node. /health and /metrics are those of the replica that answers.
"""

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from pars.errors import MissingExtra
from pars.score_service.endpoint import Limits
from pars.score_service.server import create_app, scorer_from

CALLS_A_REPLICA = 100  # at once; more wait at Ray's proxy


class Wanted(BaseModel):
    """
    What `serve run` or a Serve config is told, as name=value.

    Attributes:
        ranker: As `pars serve --ranker`, at the same path on every node; None: PREDICTOR_MODEL_PATH
            there, else the bundled one.
        num_cpus: That Ray sets aside for a replica, which scores in one thread.
    """

    model_config = ConfigDict(extra="forbid")

    ranker: str | None = None
    replicas: int = Field(default=2, ge=1)
    num_cpus: float = Field(default=0.5, ge=0)
    max_queued_prompts: int = 32_768
    max_prompts_per_call: int = 16_384
    max_body_bytes: int = 16 << 20

    @property
    def limits(self) -> Limits:
        """Of each replica."""
        return Limits(
            max_queued_prompts=self.max_queued_prompts,
            max_prompts_per_call=self.max_prompts_per_call,
            max_body_bytes=self.max_body_bytes,
        )


def app(wanted: Wanted) -> Any:
    """
    The application for Ray Serve, not yet deployed.

    Raises:
        ParsError: a limit makes no sense, or Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtra("the score service on Ray", "ray") from error
    limits = wanted.limits
    ranker = {"PREDICTOR_MODEL_PATH": wanted.ranker} if wanted.ranker else {}

    def build() -> FastAPI:
        return create_app(scorer_from({**os.environ, **ranker}, num_threads=1), limits=limits)

    class Scores:
        """A replica: it builds an app of its own."""

    deployed: Any = serve.deployment(
        serve.ingress(build)(Scores),
        num_replicas=wanted.replicas,
        max_ongoing_requests=CALLS_A_REPLICA,
        ray_actor_options={"num_cpus": wanted.num_cpus},
    )
    return deployed.bind()
