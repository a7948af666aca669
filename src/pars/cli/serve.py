"""Commands of the serve lane: serve, gateway."""

import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from pars.cli.logs import Say, set_up_logs, told_in_log
from pars.cli.open_files import raise_open_files
from pars.errors import ParsError
from pars.processes import leave_to_serve
from pars.serving.settings import Settings, declared_settings, unknown_variables

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pars.serving.gateway import Gateway
    from pars.serving.reload import Reload
    from pars.serving.upstream import Upstream

log = logging.getLogger("pars")

SHUTDOWN_S = 30  # for requests in flight, after SIGTERM or Ctrl-C
at_least_one = click.IntRange(min=1)


def setting_option(name: str) -> Callable[[Any], Any]:
    """The option of a setting: its own check, help and default, as `serving.settings` declares."""
    [it] = [it for it in declared_settings() if it.name == name]
    default = f"[default: {it.variable}, else {it.shown_default or 'none'}]"
    says = it.help.removeprefix("1: ")  # of a switch
    return click.option(
        it.option,
        is_flag=isinstance(it.default, bool),
        default=None,
        type=click.Choice(it.choices) if it.choices else type(it.default),
        metavar=it.metavar,
        help=f"{says[0].upper()}{says[1:]}.  {default}".replace("`", ""),
    )


@click.command()
@click.option(
    "--ranker",
    metavar="RANKER",
    help="Ranker folder (`pars train` and `pars export` make one), module:object with"
    " score(list[str]), or a PARS checkpoint .pt with the PREDICTOR_* variables."
    "  [default: PREDICTOR_MODEL_PATH, else the bundled ranker]",
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
    "--max-buffered-bytes",
    type=at_least_one,
    default=64 << 20,
    show_default=True,
    help="Bodies of all calls held at once; beyond it the oldest upload is refused with 503.",
)
@click.option(
    "--num-threads",
    type=at_least_one,
    help="Threads of one forward pass.  [default: one a core, up to 4; 1 for lite]",
)
@setting_option("log_format")
def serve(
    ranker: str | None,
    host: str,
    port: int,
    max_queued_prompts: int,
    max_prompts_per_call: int,
    max_body_bytes: int,
    max_buffered_bytes: int,
    num_threads: int | None,
    log_format: str | None,
) -> None:
    """
    Score prompts over HTTP.

    /score, /score_batch, /compare and /compare_batch, as PARS has them; docs at /docs.
    """
    from pars.score_service.endpoint import Limits
    from pars.score_service.server import create_app, facts_of, scorer_from
    from pars.serving.client_protocol import ClientProtocol

    limits = Limits(
        max_queued_prompts=max_queued_prompts,
        max_prompts_per_call=max_prompts_per_call,
        max_body_bytes=max_body_bytes,
        max_buffered_bytes=max_buffered_bytes,
    )
    log_format = log_format_of(log_format)
    say = set_up_logs(log_format)
    environment = {**os.environ, "PREDICTOR_MODEL_PATH": ranker} if ranker else os.environ
    with told_in_log(log_format):
        scorer = scorer_from(environment, num_threads=num_threads)
        facts = facts_of(scorer)
        raise_open_files()
        run_app(
            create_app(scorer, limits=limits),
            host,
            port,
            f"ranker {facts['model_name']} ({facts['model_path']}) listens on {{url}}"
            " - docs at /docs, stop with Ctrl-C",
            {"http": ClientProtocol},
            say=say,
        )


def log_format_of(option: str | None) -> str:
    """The log's format, as the option or PARS_LOG_FORMAT says it; it is wanted before the rest."""
    [it] = [it for it in declared_settings() if it.name == "log_format"]
    chosen = option or os.environ.get(it.variable, "").strip() or it.default
    if problem := it.problem(chosen):
        raise ParsError(f"{it.variable}: {problem}")
    return str(chosen)


@click.command()
@click.option(
    "--upstream",
    "upstreams",
    required=True,
    multiple=True,
    metavar="URL",
    help="The server to stand in front of; a /v1 at its end is understood. Of several that do the"
    " same, each request goes to one that has room.",
)
@setting_option("ranker")
@setting_option("learn")
@setting_option("state")
@setting_option("engine")
@setting_option("dialect")
@setting_option("hold")
@setting_option("slots")
@setting_option("max_held")
@setting_option("max_held_s")
@setting_option("max_slowdown")
@setting_option("max_overtake_s")
@setting_option("holdout")
@setting_option("tenants")
@setting_option("upstream_api_key_file")
@setting_option("upstream_ca_file")
@setting_option("outcomes")
@setting_option("otel")
@setting_option("log_format")
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
    help="Give up after this long without data from the upstream (0: never).",
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
    "--probe",
    is_flag=True,
    help="Do not serve: fill the upstream's slots, see whether it admits by priority, and say so.",
)
def gateway(
    upstreams: tuple[str, ...],
    host: str,
    port: int,
    timeout_s: float,
    max_connections: int,
    drain_s: int,
    probe: bool,
    **chosen: Any,
) -> None:
    """
    Proxy an engine and give each request a priority.

    Short requests go first, before any OpenAI-compatible server. Clients must send one of the keys
    in PARS_API_KEYS, which commas part; PARS_UPSTREAM_API_KEY is sent to the upstream. More
    settings: docs/serving.md.
    """
    from pars.serving.gateway import UVICORN_OPTIONS

    log_format = log_format_of(chosen["log_format"])
    say = set_up_logs(log_format)
    with told_in_log(log_format):
        settings = Settings.from_env(**chosen)
        _check(upstreams, settings, probe=probe)
        for line in unknown_variables():
            log.warning("%s", line)
        servers = _servers(upstreams, settings, timeout_s, max_connections)
        if probe:
            from pars.doctor.probe import run_probe

            click.echo(run_probe(servers[0], settings))
            return
        raise_open_files(max_connections)
        app = _gateway_to(servers, settings)
        greeting = f"{' and '.join(upstreams)} is served at {{url}}, by priority - stop with Ctrl-C"
        options = {**UVICORN_OPTIONS, "timeout_graceful_shutdown": drain_s}
        _reload_when_told(app.reload)
        run_app(app, host, port, greeting, options, say=say)


def _servers(
    upstreams: tuple[str, ...], settings: Settings, timeout_s: float, max_connections: int
) -> "list[Upstream]":
    from pars.serving.upstream import Upstream

    servers = [
        Upstream(
            upstream,
            timeout_s=timeout_s,
            max_connections=max_connections,
            api_key=settings.upstream_key,
            ca_file=settings.upstream_ca_file,
        )
        for upstream in upstreams
    ]
    if any(server.has_proxy for server in servers):
        log.info("the upstream is asked through the proxy that the environment names")
    return servers


def _gateway_to(servers: "list[Upstream]", settings: Settings) -> "Gateway":
    """The gateway before them; says what it learns by, and ends where there is no ranker."""
    from pars.scheduling.engines import way_of
    from pars.serving.gateway import Gateway

    app = Gateway(servers, settings)
    if settings.ranker != "none" and not app.middleware.predictor.offline.live.is_loaded:
        raise ParsError(f"no ranker can be loaded from {settings.ranker_folder}")
    if settings.named_engine is not None and settings.named_engine.dialect is not None:
        log.info("%s: %s", settings.dialect, way_of(settings.named_engine))
    learner = app.middleware.predictor.learner
    if learner is not None:
        log.info("learns as it serves, %s", _kept(learner.folder))
    return app


def _reload_when_told(reload: "Reload") -> None:
    """
    SIGHUP has the files read again. In a terminal it ends the process as ever: there it is sent
    when the window is closed.
    """
    if hasattr(signal, "SIGHUP") and not sys.stderr.isatty():
        signal.signal(signal.SIGHUP, lambda *_: reload.soon())


def _kept(folder: Path | None) -> str:
    return "in memory only" if folder is None else f"kept in {folder}"


def _check(upstreams: tuple[str, ...], settings: Settings, *, probe: bool) -> None:
    """Several servers have one held queue."""
    twice = sorted({it for it in upstreams if upstreams.count(it) > 1})
    if twice:
        raise ParsError(f"--upstream {twice[0]} is given twice; give each server once")
    if len(upstreams) > 1 and settings.hold == "off":
        raise ParsError("--hold off: several --upstream share one queue, which is held here")
    if len(upstreams) > 1 and probe:
        raise ParsError("--probe looks at one server: give one --upstream")


def run_app(
    app: "ASGIApp",
    host: str,
    port: int,
    greeting: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    say: Say = click.echo,
) -> None:
    """
    Serve `app` until SIGTERM or Ctrl-C, and let requests in flight finish.

    Args:
        greeting: Said once the port is open; `{url}` in it becomes the address.
        options: More of uvicorn's options; they win over the ones chosen here.
        say: How.

    Raises:
        ParsError: the address cannot be listened on, or the app did not start.
    """
    import uvicorn

    listener = _listen(host, port)
    open_host, open_port = listener.getsockname()[:2]
    shown_host = f"[{open_host}]" if ":" in open_host else open_host
    chosen: dict[str, Any] = {
        "log_level": "warning",
        "log_config": None,  # by the handler of all
        "access_log": False,
        "ws": "none",
        "timeout_graceful_shutdown": SHUTDOWN_S,
        **options,
    }
    server = uvicorn.Server(uvicorn.Config(app, **chosen))
    say(greeting.replace("{url}", f"http://{shown_host}:{open_port}"))
    leave_to_serve()
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
