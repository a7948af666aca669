"""The command that learns from what was served: learn."""

import json
from pathlib import Path
from typing import Any

import click

from pars.cli.learn import FOLDER, TRAINING, need
from pars.errors import ParsError


@click.command()
@click.option("--outcomes", type=FOLDER, help="What requests became: the folder in PARS_OUTCOMES.")
@click.option(
    "--ranker",
    type=FOLDER,
    required=True,
    help="The ranker that serves; made from the bundled one where there is none yet.",
)
@click.option(
    "--newest-share",
    type=float,
    default=0.2,
    show_default=True,
    help="Of the requests, to judge by.",
)
@click.option(
    "--start",
    type=click.Choice(["auto", "present", "scratch"]),
    default="auto",
    show_default=True,
    help="From the present ranker's weights, or from scratch; auto: the former if it is lite.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Of weights and order.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="For the intervals.")
@click.option("--rollback", is_flag=True, help="Do not learn: serve the version before this one.")
@click.option("--history", is_flag=True, help="Do not learn: list the versions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def learn(
    outcomes: Path | None,
    ranker: Path,
    rollback: bool,
    history: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on own traffic; the new ranker serves if it is better."""
    if sum([rollback, history, outcomes is not None]) != 1:
        raise ParsError("give one of --outcomes, --rollback and --history")
    if rollback:
        _roll_back(ranker, as_json)
    elif history:
        _list(ranker, as_json)
    elif outcomes:
        need("pars learn", TRAINING)
        from pars.learn.own_traffic.from_outcomes import LearnConfig
        from pars.learn.own_traffic.from_outcomes import learn as run

        options["num_resamples"] = options.pop("resamples")
        report = run(LearnConfig(outcomes=outcomes, ranker=ranker, **options))
        print(json.dumps(report.as_json(), indent=2) if as_json else report.render())


def _roll_back(ranker: Path, as_json: bool) -> None:
    from pars.learn.own_traffic.versions import Versions

    versions = Versions(ranker)
    with versions.locked():
        before, now = versions.roll_back()
    if as_json:
        print(json.dumps({"ranker": str(ranker), "version": now, "rolled_back_from": before}))
    else:
        print(f"{ranker}: version {now} serves again, in place of {before}")


def _list(ranker: Path, as_json: bool) -> None:
    from pars.learn.own_traffic.versions import Versions, render_history

    entries = Versions(ranker).history()
    print(json.dumps(entries, indent=2) if as_json else render_history(entries))


OWN_TRAFFIC_COMMANDS: tuple[click.Command, ...] = (learn,)
