"""The command that looks at a running server and says what to change: doctor."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from pars.scheduling.engines import ENGINES
from pars.scheduling.policies.shortest_first import DEFAULT_MAX_OVERTAKE_S


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
    default=DEFAULT_MAX_OVERTAKE_S,
    show_default=True,
    envvar="PARS_MAX_OVERTAKE_S",
    help="As set where pars runs.  [env: PARS_MAX_OVERTAKE_S]",
)
@click.option(
    "--probe",
    is_flag=True,
    help="Also fill the server for some seconds and see whether it admits by priority. It must be"
    " idle.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool, **options: Any) -> None:
    """
    Say whether pars can help a server, and what to change.

    Nothing is sent but requests for its pages, unless --probe. Exit code 0: no line is a problem;
    1: one is; 2: the options make no sense, or the outcomes cannot be read.
    """
    from pars.doctor.doctor import DoctorOptions, diagnose

    report = diagnose(DoctorOptions(**options))
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.render())
    sys.exit(report.exit_code)


DOCTOR_COMMANDS: tuple[click.Command, ...] = (doctor,)
