"""
The score service: PARS's HTTP interface over any ranker, and what an operator needs beside it.

    pars serve --ranker DIR
    PREDICTOR_MODEL_PATH=DIR uvicorn --factory pars.server:create_app

    /score  /score_batch  /compare  /compare_batch     POST: pars.score_service.api
    /  /health  /metrics  /docs  /openapi.json         GET

Nothing here imports torch, unless the model path is a PARS checkpoint (`.pt`). Prompts are never
logged. Bind it to 127.0.0.1 or a private network: it asks nobody who they are.
"""

import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pars import __version__
from pars.errors import MissingExtra, RankerError
from pars.outcomes.metrics import Exposed
from pars.ranking.batching import Batcher, finite_scores
from pars.ranking.ranker import Ranker, Scorer, bundled_ranker
from pars.ranking.scorers import is_object_name, load_for_serving
from pars.request.body import ByteBudget
from pars.score_service.api import OPERATIONS, Problem
from pars.score_service.endpoint import Limits, ScoreEndpoint
from pars.score_service.metrics import ScoreMetrics

DESCRIPTION = (
    "Scores prompts by the length of the answer to expect, so that a scheduler can run short"
    " requests first. Scores only order prompts: the higher, the longer the answer."
)


def create_app(scorer: Scorer | None = None, *, limits: Limits | None = None) -> FastAPI:
    """
    The score service as an app of its own, with its own queue, worker thread and metrics.

    Args:
        scorer: What scores; None takes what the PREDICTOR_* variables name (`scorer_from`).
        limits: Bounds on calls and on the queue.

    Raises:
        RankerError, MissingExtra: as `scorer_from`.
    """
    scorer = scorer_from(os.environ) if scorer is None else scorer
    limits = limits or Limits()
    metrics = ScoreMetrics()
    batcher = Batcher(
        finite_scores(scorer),
        max_queued_prompts=limits.max_queued_prompts,
        on_batch=metrics.observe_batch,
    )
    metrics.queued_prompts.set_function(lambda: batcher.num_queued)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title="pars score service", version=__version__, description=DESCRIPTION, lifespan=lifespan
    )
    budget = ByteBudget(limits.max_buffered_bytes)
    endpoints = {
        operation.path: ScoreEndpoint(
            operation,
            batcher,
            limits,
            budget,
            on_rejected=metrics.rejected.inc,
            on_cancelled=metrics.cancelled.inc,
        )
        for operation in OPERATIONS
    }
    app.router.routes += map(_ScoreRoute, endpoints.values())
    _add_pages(app, facts_of(scorer), metrics)
    paths = {path for route in app.routes if (path := getattr(route, "path", None))}
    app.add_middleware(_ScoresFirst, endpoints=endpoints, paths=paths, count=metrics.count_answer)
    return app


def scorer_from(environment: Mapping[str, str], *, num_threads: int | None = None) -> Scorer:
    """
    The scorer that PARS's own variables name; without any, the ranker that comes with pars.

    PREDICTOR_MODEL_PATH is a ranker folder, module:object, or a PARS checkpoint (.pt), for which
    PREDICTOR_MODEL_NAME (bert-base-uncased), PREDICTOR_MAX_LENGTH (128) and PREDICTOR_DEVICE (cpu)
    count too. A ranker folder carries its own: a length or device that disagrees is an error.

    Raises:
        RankerError: no usable ranker there, or a variable that disagrees with it.
        MissingExtra: a checkpoint, and torch is not installed.
    """
    path = Path(environment.get("PREDICTOR_MODEL_PATH") or bundled_ranker())
    if is_object_name(str(path)):
        return load_for_serving(path)
    device = environment.get("PREDICTOR_DEVICE") or "cpu"
    given_length = environment.get("PREDICTOR_MAX_LENGTH")
    if given_length and not (given_length.isdecimal() and int(given_length) > 0):
        raise RankerError(
            f"PREDICTOR_MAX_LENGTH is {given_length!r}: it must be a number of tokens, such as 128"
        )
    if path.suffix == ".pt":
        model_name = environment.get("PREDICTOR_MODEL_NAME") or "bert-base-uncased"
        return _load_checkpoint(path, model_name, int(given_length or 128), device)
    ranker = Ranker.load(path, num_threads=num_threads)
    if given_length and int(given_length) != ranker.info.max_length:
        raise RankerError(
            f"PREDICTOR_MAX_LENGTH is {given_length}, but {path} was made for"
            f" {ranker.info.max_length} tokens: unset it, or export the ranker again"
        )
    if device != "cpu":
        raise RankerError(f"PREDICTOR_DEVICE is {device!r}, but a ranker folder runs on the cpu")
    return ranker


def _load_checkpoint(path: Path, model_name: str, max_length: int, device: str) -> Scorer:
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra("serving a .pt checkpoint", "train")
    from pars.learn.training.checkpoint import CheckpointRanker

    return CheckpointRanker.load(path, model_name, max_length, device)


def facts_of(scorer: Scorer) -> dict[str, Any]:
    """What the service says about its scorer; a scorer that is no ranker has only a name."""
    info = getattr(scorer, "info", None)
    kind = f"{type(scorer).__module__}:{type(scorer).__qualname__}"
    place = getattr(scorer, "folder", None) or getattr(scorer, "path", None) or kind
    return {
        "model_path": str(place),
        "model_name": getattr(info, "model_name", None) or type(scorer).__name__,
        "device": str(getattr(scorer, "device", "cpu")),
        "kind": getattr(info, "kind", None),
        "max_length": getattr(info, "max_length", None),
        "tau_b": getattr(info, "tau_b", None),
    }


class _ScoreRoute(APIRoute):
    """FastAPI documents the operation from its models; the endpoint answers, as bare ASGI."""

    def __init__(self, endpoint: ScoreEndpoint) -> None:
        operation = endpoint.operation

        def documented(body: Any) -> Any:
            """Never called: its annotations make the OpenAPI entry."""

        documented.__annotations__ = {"body": operation.request, "return": operation.reply}
        super().__init__(
            operation.path,
            documented,
            methods=["POST"],
            name=operation.path.removeprefix("/"),
            summary=operation.summary,
            description="",
            response_model=operation.reply,
            responses={
                413: {"model": Problem, "description": "The body is too large"},
                500: {"model": Problem, "description": "The ranker failed"},
                503: {"model": Problem, "description": "The queue is full: see Retry-After"},
            },
        )
        self.app = endpoint


def _add_pages(app: FastAPI, facts: dict[str, Any], metrics: ScoreMetrics) -> None:
    @app.get("/", summary="Name the model behind the service")
    async def root() -> dict[str, str]:
        return {
            "message": "Predictor score model is running.",
            **{name: facts[name] for name in ("model_path", "model_name", "device")},
        }

    @app.get("/health", summary="Say that the service is up, and which ranker it has")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "ranker": facts}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def show_metrics() -> Response:
        return Response(generate_latest(Exposed(metrics.registry)), media_type=CONTENT_TYPE_LATEST)


class _ScoresFirst:
    """
    ASGI middleware: takes a POST to its endpoint by one look-up, and counts every answer.

    Finding the way through FastAPI's inner layers costs as much CPU time as the endpoint (25 us).
    Middleware added to the app stands in front of this one, so that nothing is by-passed that a
    user of the app puts there.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[str, ScoreEndpoint],
        paths: Collection[str],
        count: Callable[[str, int], None],
    ) -> None:
        self.app = app
        self.endpoints = endpoints
        self.paths = paths
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        label = path if path in self.paths else "other"
        try:
            if path in self.endpoints and scope["method"] == "POST":
                status = await self.endpoints[path].answer(scope, receive, send)
                if status:
                    self.count(path, status)
            else:
                await self.app(scope, receive, self._counting(send, label))
        except Exception:  # Starlette answers it, in front of all middleware
            self.count(label, 500)
            raise

    def _counting(self, send: Send, label: str) -> Send:
        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(label, message["status"])
            await send(message)

        return counting_send
