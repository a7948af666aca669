"""The command that serves Envoy: ext-proc."""

import asyncio
import logging
import signal
from typing import Any

import click

from pars.cli.logs import Say, set_up_logs, told_in_log
from pars.cli.open_files import raise_open_files
from pars.cli.serve import log_format_of, setting_option
from pars.errors import ParsError
from pars.processes import leave_to_serve
from pars.serving.settings import Settings, unknown_variables

log = logging.getLogger("pars")


@click.command("ext-proc")
@setting_option("ranker")
@setting_option("learn")
@setting_option("state")
@setting_option("engine")
@setting_option("dialect")
@setting_option("max_slowdown")
@setting_option("max_overtake_s")
@setting_option("tenants")
@setting_option("outcomes")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9002,
    show_default=True,
    help="Port; 0 takes a free one and says which.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Port of /metrics, for Prometheus.  [default: none]",
)
@click.option("--metrics-host", help="Address for it.  [default: that of --host]")
def ext_proc(
    host: str, port: int, metrics_port: int | None, metrics_host: str | None, **chosen: Any
) -> None:
    """
    Give the requests that pass an Envoy a priority.

    An external processor (gRPC); deploy/envoy/envoy.yaml is an Envoy that asks it. Needs
    `pip install 'pars-llm[envoy]'`. More: docs/envoy.md.
    """
    try:
        import grpc  # noqa: F401
    except ImportError:
        raise ParsError("ext-proc needs gRPC: pip install 'pars-llm[envoy]'") from None
    log_format = log_format_of(None)
    say = set_up_logs(log_format)
    with told_in_log(log_format):
        settings = Settings.from_env(**chosen)
        for line in unknown_variables():
            log.warning("%s", line)
        raise_open_files()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        metrics_at = metrics_host or host, metrics_port
        asyncio.run(_serve(settings, address, metrics_at, say))


async def _serve(
    settings: Settings, address: str, metrics_at: tuple[str, int | None], say: Say
) -> None:
    from prometheus_client import CollectorRegistry, start_http_server

    from pars.outcomes.metrics import ServeMetrics
    from pars.serving.ext_proc.service import ExtProcService

    registry = CollectorRegistry()
    service = ExtProcService(settings, metrics=ServeMetrics(registry))
    host = address.rpartition(":")[0]
    metrics_host, metrics_port = metrics_at
    if metrics_port is not None:
        try:
            start_http_server(metrics_port, metrics_host, registry)
        except OSError as error:
            raise ParsError(f"--metrics-port {metrics_port}: {error.strerror}") from None
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    leave_to_serve()
    async with service.listening(address) as open_port:
        say(f"Envoy is answered at {host}:{open_port} - stop with Ctrl-C")
        await stopped.wait()


EXT_PROC_COMMANDS: tuple[click.Command, ...] = (ext_proc,)
