"""Commands of the serve lane: serve, gateway."""

import errno
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from pars.errors import ParsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

SHUTDOWN_S = 30  # for requests in flight, after SIGTERM or Ctrl-C
at_least_one = click.IntRange(min=1)


@click.command()
@click.option(
    "--ranker",
    metavar="DIR",
    help="Ranker folder (`pars train` and `pars export` make one), or a PARS checkpoint .pt with"
    " the PREDICTOR_* variables.  [default: PREDICTOR_MODEL_PATH, else the ranker in the package]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port; 0 takes a free one and says which.",
)
@click.option(
    "--max-queued-prompts",
    type=at_least_one,
    default=32_768,
    show_default=True,
    help="Prompts that may wait for the ranker; more are refused with 503.",
)
@click.option(
    "--max-prompts-per-call",
    type=at_least_one,
    default=16_384,
    show_default=True,
    help="Prompts in one call (a pair is two); more are refused with 422.",
)
@click.option(
    "--max-body-bytes",
    type=at_least_one,
    default=16 << 20,
    show_default=True,
    help="Size of one request's body; more is refused with 413.",
)
@click.option(
    "--num-threads",
    type=at_least_one,
    help="Threads of one forward pass.  [default: one a core, up to 4; 1 for lite]",
)
def serve(
    ranker: str | None,
    host: str,
    port: int,
    max_queued_prompts: int,
    max_prompts_per_call: int,
    max_body_bytes: int,
    num_threads: int | None,
) -> None:
    """Score prompts over HTTP: /score, /score_batch, /compare, /compare_batch; docs at /docs."""
    from pars.score_service.endpoint import Limits
    from pars.score_service.server import create_app, facts_of, scorer_from

    limits = Limits(
        max_queued_prompts=max_queued_prompts,
        max_prompts_per_call=max_prompts_per_call,
        max_body_bytes=max_body_bytes,
    )
    environment = {**os.environ, "PREDICTOR_MODEL_PATH": ranker} if ranker else os.environ
    scorer = scorer_from(environment, num_threads=num_threads)
    facts = facts_of(scorer)
    run_app(
        create_app(scorer, limits=limits),
        host,
        port,
        f"ranker {facts['model_name']} ({facts['model_path']}) listens on {{url}}"
        " - docs at /docs, stop with Ctrl-C",
    )


@click.command()
@click.option("--upstream", required=True, metavar="URL", help="The server to stand in front of.")
@click.option(
    "--ranker",
    metavar="DIR",
    help="Ranker folder.  [default: PARS_RANKER, else the one in the box]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "vllm", "vllm-body", "sglang", "sglang-low-first", "none"]),
    help="How the upstream takes priorities.  [default: PARS_ENGINE, else auto: it is asked]",
)
@click.option(
    "--max-overtake-s",
    type=float,
    metavar="SECONDS",
    help="A request can be overtaken only by requests that come within this time after it: 0 is"
    " first come first served, inf shortest first.  [default: PARS_MAX_OVERTAKE_S, else 30]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8100,
    show_default=True,
    help="Port; 0 takes a free one and says which.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Without a byte from the upstream; 0 waits for ever.",
)
@click.option(
    "--max-connections",
    type=at_least_one,
    default=4096,
    show_default=True,
    help="Requests at the upstream at once; more get 503.",
)
@click.option(
    "--drain-s",
    type=at_least_one,
    default=600,
    show_default=True,
    help="How long streams may go on after SIGTERM.",
)
@click.option(
    "--outcomes",
    metavar="DIR",
    help="Keep what became of each request in this folder; prompts only with PARS_OUTCOME_PROMPTS."
    "  [default: PARS_OUTCOMES, else nothing is kept]",
)
@click.option(
    "--probe",
    is_flag=True,
    help="Do not serve: fill the upstream's slots, see whether it admits by priority, and say so.",
)
def gateway(
    upstream: str,
    ranker: str | None,
    engine: str | None,
    max_overtake_s: float | None,
    host: str,
    port: int,
    timeout_s: float,
    max_connections: int,
    drain_s: int,
    outcomes: str | None,
    probe: bool,
) -> None:
    """
    Proxy an OpenAI-compatible server and give each request a priority, so that short ones go first.

    PARS_API_KEYS, separated by commas, are asked of clients. More settings: docs/serving.md.
    """
    from pars.serving.gateway import UVICORN_OPTIONS, Gateway
    from pars.serving.settings import Settings
    from pars.serving.upstream import Upstream

    server = Upstream(upstream, timeout_s=timeout_s, max_connections=max_connections)
    settings = Settings.from_env(
        ranker=ranker, engine=engine, max_overtake_s=max_overtake_s, outcomes=outcomes
    )
    if probe:
        from pars.doctor.probe import run_probe

        click.echo(run_probe(server, settings))
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    app = Gateway(server, settings, api_keys=_api_keys())
    if not app.middleware.ranker.is_loaded:
        raise ParsError(f"no ranker can be loaded from {settings.ranker_folder}")
    greeting = f"{upstream} is served at {{url}}, by priority - stop with Ctrl-C"
    options = {**UVICORN_OPTIONS, "timeout_graceful_shutdown": drain_s}
    run_app(app, host, port, greeting, options)


def _api_keys() -> list[str]:
    return [key.strip() for key in os.environ.get("PARS_API_KEYS", "").split(",") if key.strip()]


def run_app(
    app: "ASGIApp",
    host: str,
    port: int,
    greeting: str,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """
    Serve `app` until SIGTERM or Ctrl-C, and let requests in flight finish.

    Args:
        greeting: Printed once the port is open; `{url}` in it becomes the address.
        options: More of uvicorn's options; they win over the ones chosen here.

    Raises:
        ParsError: the address cannot be listened on, or the app did not start.
    """
    import uvicorn

    listener = _listen(host, port)
    open_host, open_port = listener.getsockname()[:2]
    shown_host = f"[{open_host}]" if ":" in open_host else open_host
    chosen: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "ws": "none",
        "timeout_graceful_shutdown": SHUTDOWN_S,
        **options,
    }
    server = uvicorn.Server(uvicorn.Config(app, **chosen))
    click.echo(greeting.replace("{url}", f"http://{shown_host}:{open_port}"))
    with listener, suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        raise ParsError("the service did not start; the reason stands above")


def _listen(host: str, port: int) -> socket.socket:
    """An open TCP listener, so that a port in use is known before anything is loaded or said."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ParsError(
                f"port {port} on {host} is in use: choose another with --port"
            ) from error
        raise ParsError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


SERVE_COMMANDS: tuple[click.Command, ...] = (serve, gateway)
