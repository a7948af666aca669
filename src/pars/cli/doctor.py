"""The command that looks at a running server and says what to change: doctor."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pars.errors import INTERRUPTED
from pars.scheduling.engines import ENGINES

if TYPE_CHECKING:
    from pars.doctor.doctor import DoctorOptions


@click.command()
@click.option("--endpoint", required=True, metavar="URL", help="vLLM, SGLang, or pars gateway.")
@click.option(
    "--outcomes",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder that PARS_OUTCOMES names where pars runs: tells how well the ranker orders.",
)
@click.option("--watch-s", type=float, default=10.0, show_default=True, help="How long to look.")
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    show_default=True,
    help="How the server takes priorities; auto: it is asked.",
)
@click.option(
    "--max-overtake-s",
    type=float,
    envvar="PARS_MAX_OVERTAKE_S",
    help="If it is set where pars runs: as there.  [env: PARS_MAX_OVERTAKE_S]",
)
@click.option(
    "--probe",
    is_flag=True,
    help="Also fill the server for some seconds and see whether it admits by priority. It must be"
    " idle.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Look again and again, --watch-s long each, and say what changed; Ctrl-C ends it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, a line a look.")
def doctor(as_json: bool, watch: bool, **options: Any) -> None:
    """
    Say whether pars can help a server, and what to change.

    Nothing is sent but requests for its pages, unless --probe. Exit code 0: no line is a problem;
    1: one is; 2: the options make no sense, or the outcomes cannot be read; 3: the endpoint does
    not answer. With --watch, that of the last look.
    """
    from pars.doctor.doctor import DoctorOptions, diagnose

    chosen = DoctorOptions(**options)
    if watch:
        sys.exit(_keep_looking(chosen, as_json=as_json))
    report = diagnose(chosen)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.render())
    sys.exit(report.exit_code)


def _keep_looking(options: "DoctorOptions", *, as_json: bool) -> int:
    """Look until Ctrl-C; the exit code by the last look."""
    from pars.doctor.watch import looks

    exit_code = INTERRUPTED
    with suppress(KeyboardInterrupt):
        for look in looks(options):
            exit_code = look.report.exit_code
            if text := json.dumps(look.as_json()) if as_json else look.render():
                click.echo(text)
    return exit_code


DOCTOR_COMMANDS: tuple[click.Command, ...] = (doctor,)
